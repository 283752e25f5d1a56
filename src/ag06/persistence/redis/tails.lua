-- Forget subjects whose last event was trimmed. ARGV: type, cursor. Returns the next cursor.
local event_type = ARGV[1]
local tails = P .. 'tails:' .. event_type
local page = redis.call('HSCAN', tails, ARGV[2], 'COUNT', 1000)
for i = 1, #page[2], 2 do
  local level, id = string.match(page[2][i + 1], '^(%d):(%d+%-%d+)$')
  if level and #redis.call('XRANGE', stream(event_type, level), id, id) == 0 then
    redis.call('HDEL', tails, page[2][i])
  end
end
return page[1]
