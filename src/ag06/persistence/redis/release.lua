-- Give deliveries back, to be handed out at once. ARGV: group, type, worker, tokens with serials, most it may hold, and
-- '1' if they are of an earlier worker of this name, which is dead.
local tokens = cmsgpack.unpack(ARGV[4])
local held = held_by(ARGV[3], tokens, tonumber(ARGV[5]))
for _, token in ipairs(tokens) do
  if is_held(held, token) then
    hand_back(bare(token), ARGV[6] == '1')
  end
end
wake()
return 1
