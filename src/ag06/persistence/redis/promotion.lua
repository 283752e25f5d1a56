-- Append what was due by now, at most `limit` events; return the ms until the next one is due, or nothing.
local function promote(limit)
  begin_anew(P .. 'scheduled', P .. 'scheduled:since')
  local due = redis.call('ZRANGE', P .. 'scheduled', 0, limit, 'WITHSCORES')
  for i = 1, #due, 2 do
    local wait = tonumber(due[i + 1]) - now
    if wait > 0 or i > 2 * limit then
      return math.max(wait, 0)
    end
    local packed = redis.call('HGET', P .. 'scheduled:events', due[i])
    if packed then
      local event = cmsgpack.unpack(packed)
      add(event[1], event[2], event[3] or nil, event[4])
      redis.call('HDEL', P .. 'scheduled:ids', event[5])
    end
    redis.call('ZREM', P .. 'scheduled', due[i])
    redis.call('ZREM', P .. 'scheduled:since', due[i])
    redis.call('HDEL', P .. 'scheduled:events', due[i])
  end
end
