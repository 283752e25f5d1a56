-- Forget a group. ARGV: group, type. Returns 1 if it was known. Its dead letters stay.
if redis.call('HEXISTS', P .. 'groups', group) == 0 then
  return 0
end
for _, level in ipairs(LEVELS) do
  redis.pcall('XGROUP', 'DESTROY', stream(event_type, level), group)
end
redis.call('DEL', P .. 'x:' .. group, WAKE, READY, LATER, SINCE, BLOCKED, NOTES, AGAIN, LEASES, P .. 'swept:' .. group)
redis.call('HDEL', P .. 'done:' .. event_type, group)
for _, level in ipairs(LEVELS) do
  redis.call('HDEL', P .. 'floors', group .. ' ' .. level)
end
redis.call('HSET', P .. 'removed', group, now) -- so that a worker that still runs does not bring it back
redis.call('HDEL', P .. 'groups', group) -- last: a call that failed can be repeated
return 1
