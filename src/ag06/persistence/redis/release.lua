-- Give some tokens back, to be handed out at once. ARGV: group, type, worker, most it may hold, tokens.
local tokens = cmsgpack.unpack(ARGV[5])
local held = held_by(ARGV[3], tokens, tonumber(ARGV[4]))
for _, token in ipairs(tokens) do
  if is_held(held, token) then
    hand_back(token, false)
  end
end
wake()
return 1
