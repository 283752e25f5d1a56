local PUT_OFF_MS = 5000

local function append_due(event)
  check_keys(event[1], event[2], event[3], true)
  add(event[1], event[2], event[3] or nil, event[4])
end

-- Append what was due by now, at most `limit` events; return the ms until the next one is due, or nothing.
-- One that cannot be appended, as a key holds something else, is put off: it must not hold up the others.
local function promote(limit)
  begin_anew(P .. 'scheduled', P .. 'scheduled:since')
  local is_put_off = false
  local due = redis.call('ZRANGE', P .. 'scheduled', 0, limit, 'WITHSCORES')
  for i = 1, #due, 2 do
    local wait = tonumber(due[i + 1]) - now
    if wait > 0 or i > 2 * limit then
      return math.max(wait, 0)
    end
    local packed = redis.call('HGET', P .. 'scheduled:events', due[i])
    local event = packed and cmsgpack.unpack(packed)
    redis.call('ZREM', P .. 'scheduled:since', due[i])
    if event and not pcall(append_due, event) then
      redis.call('ZADD', P .. 'scheduled', now + PUT_OFF_MS, due[i])
      is_put_off = true
    else
      redis.call('ZREM', P .. 'scheduled', due[i])
      redis.call('HDEL', P .. 'scheduled:events', due[i])
      if event then
        redis.call('HDEL', P .. 'scheduled:ids', event[5])
      end
    end
  end
  return is_put_off and PUT_OFF_MS or nil
end
