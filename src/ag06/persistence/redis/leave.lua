-- Hand out again what a worker holds, some at a time; once nothing is left, it leaves the group.
-- ARGV: group, type, worker, '1' if it is dead, tokens with serials to keep. Returns how many were handed back.
-- A consumer is deleted only when nothing is pending under it: its pending entries would be lost with it.
local worker, dead = ARGV[3], ARGV[4] == '1'
if redis.call('HEXISTS', P .. 'groups', group) == 0 then
  return 0
end
local kept = {}
for _, token in ipairs(cmsgpack.unpack(ARGV[5])) do
  kept[token] = true
end
local count, left = 0, false
for _, level in ipairs(STREAMS) do
  local tokens, spared = tokens_of(worker, level, 200, 0, kept)
  left = left or spared
  for _, token in ipairs(tokens) do
    hand_back(token, dead)
    count = count + 1
  end
end
if count == 0 and not left then
  forget_worker(worker)
end
wake()
return count
