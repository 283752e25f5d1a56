-- Deliver dead letters of one group again, to it alone. ARGV: group, type, event ids. Returns how many were found; those of
-- another type stay: the step of this name listens to something else now.
-- Such an event goes to the end of its subject: behind what is in the log now, before what comes later.

-- Whether the group has an event still before it, because its step was removed and registered again.
local function is_open(recorded, level, body)
  local key = stream(event_type, level)
  local is_read = is_before(recorded .. '-' .. LARGEST_N, cursor(key))
  if is_read and #redis.call('XPENDING', key, group, recorded, recorded, 1) == 0 then
    return false
  end
  for _, entry in ipairs(redis.call('XRANGE', key, recorded, recorded)) do
    if entry[2][2] == body then
      return is_before(cursor(key), entry[1]) or holder(level .. ':' .. entry[1]) ~= nil
    end
  end
  return false
end

local function forget_letter(event_id)
  redis.call('HDEL', P .. 'dead:' .. group, event_id)
  redis.call('ZREM', P .. 'dead', group .. '\31' .. event_id)
end

-- All that may fail comes before the first write.
redis.call('XPENDING', P .. 'x:' .. group, group)
redis.call('HLEN', AGAIN)
redis.call('ZCARD', READY)
redis.call('ZCARD', P .. 'dead')
redis.call('XLEN', WAKE)
redis.call('HINCRBY', P .. 'done:' .. event_type, group, 0)
local ids, letters = cmsgpack.unpack(ARGV[3]), {}
for _, event_id in ipairs(ids) do
  local packed = redis.call('HGET', P .. 'dead:' .. group, event_id)
  local letter = packed and cjson.decode(packed)
  if letter and cjson.decode(letter[3]).type == event_type then
    letters[event_id] = letter
  end
end
local found = 0
for _, event_id in ipairs(ids) do
  local letter = letters[event_id]
  letters[event_id] = nil -- it may be named twice
  if letter and is_open(letter[1], letter[2], letter[3]) then
    forget_letter(event_id)
    found = found + 1
  elseif letter then
    local recorded, level, body, subject = letter[1], letter[2], letter[3], letter[4]
    local key, id, order = P .. 'x:' .. group, next_id(), recorded - level * AGEING_MS
    local token = 'x:' .. id .. ':' .. order
    local previous = '-'
    if subject ~= '' then
      local tries = redis.call('HGET', AGAIN, subject)
      local last = tries and string.match(tries, '(%S+)$')
      previous = redis.call('HGET', P .. 'tails:' .. event_type, subject) or ''
      if last and (previous == '' or is_before(string.sub(previous, 3), string.match(last, '^x:([^:]+)'))) then
        previous = last
      end
      redis.call('HSET', AGAIN, subject, tries and (tries .. ' ' .. token) or token)
    end
    redis.call('XADD', key, id, 'b', body, 'p', previous, 'k', order, 'r', recorded, 'l', level, 's', subject)
    redis.call('XREADGROUP', 'GROUP', group, NOBODY, 'COUNT', 1, 'STREAMS', key, '>')
    make_ready(token)
    forget_letter(event_id)
    redis.call('HINCRBY', P .. 'done:' .. event_type, group, -1)
    found = found + 1
  end
end
keep_counts()
wake()
return found
