-- Give deliveries back, to be handed out at once. ARGV: group, type, worker, most it may hold, tokens with serials, and
-- '1' if they are of an earlier worker of this name, which is dead.
local tokens = cmsgpack.unpack(ARGV[5])
local held = held_by(ARGV[3], tokens, tonumber(ARGV[4]))
for _, token in ipairs(tokens) do
  if is_held(held, token) then
    hand_back(bare(token), ARGV[6] == '1')
  end
end
wake()
return 1
