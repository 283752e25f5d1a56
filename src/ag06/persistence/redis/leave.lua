-- Hand out again what a worker holds, some at a time; once nothing is left, it leaves the group.
-- ARGV: group, type, worker, '1' if it is dead, tokens to keep. Returns how many were handed back.
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
for _, token in ipairs(tokens_of(worker, 200, 0)) do
  if kept[token] then
    left = true
  else
    hand_back(token, dead)
    count = count + 1
  end
end
if count == 0 and not left then
  for _, level in ipairs(LEVELS) do
    redis.call('XGROUP', 'DELCONSUMER', stream(event_type, level), group, worker)
  end
  redis.call('XGROUP', 'DELCONSUMER', P .. 'x:' .. group, group, worker)
  redis.call('XGROUP', 'DELCONSUMER', WAKE, group, worker)
  redis.call('HDEL', LEASES, worker)
end
wake()
return count
