-- Note that a worker runs these now. ARGV: group, type, worker, tokens with serials, most it may hold.
local tokens = cmsgpack.unpack(ARGV[4])
local held = held_by(ARGV[3], tokens, tonumber(ARGV[5]))
for _, token in ipairs(tokens) do
  if is_held(held, token) then
    local note = read_note(bare(token))
    note[5] = 1
    write_note(bare(token), note)
  end
end
return 1
