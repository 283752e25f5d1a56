-- Note that a worker runs these now. ARGV: group, type, worker, most it may hold, tokens with serials.
local tokens = cmsgpack.unpack(ARGV[5])
local held = held_by(ARGV[3], tokens, tonumber(ARGV[4]))
for _, token in ipairs(tokens) do
  if is_held(held, token) then
    local note = read_note(bare(token))
    note[5] = 1
    write_note(bare(token), note)
  end
end
return 1
