-- Append plain events: with an identity, without subject, chosen id or due time, as most are. Here the server spends
-- its time, so this script stands alone: the parts that the others share cost it a third more. What it does to the clock,
-- the counters and the receipts is what clock.lua, counts.lua and receipt.lua do; admit.lua takes every kind of event.
--
-- KEYS[1]: the prefix of every key. ARGV: receipt (name, number, '1' if sent again), runs. A run is type, level, window in
-- ms, max_backlog, number of records, then body, id and identity of each. Returns a digit for each record.
local P = KEYS[1]
local receipt_key = P .. 'receipt:' .. ARGV[1]
if ARGV[3] == '1' then
  local number, reply = string.match(redis.call('GET', receipt_key) or '', '^(%d+) (.*)$')
  if number == ARGV[2] then
    redis.call('PEXPIRE', receipt_key, '604800000') -- see receipt.lua
    return reply
  end
end
local STORED, DUPLICATE, REPEATED, FULL = '0', '1', '2', '4'
local LARGEST_N = 1048575
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ms, n = string.match(redis.call('GET', P .. 'clock') or '0-0', '^(%d+)%-(%d+)')
ms, n = tonumber(ms), tonumber(n)
local is_behind = ms > now -- the clock was set back
if now > ms then
  ms, n = now, -1
end
local outcomes, count, stored_in_all, duplicates = {}, 0, 0, 0
local added = {}
local refused

-- How many more events of a type its slowest group lets in; asked only where there is a bound.
local function room_in(event_type, max_backlog)
  local slowest = math.huge
  for _, done in ipairs(redis.call('HVALS', P .. 'done:' .. event_type)) do
    slowest = math.min(slowest, tonumber(done))
  end
  local total = tonumber(redis.call('HGET', P .. 'added', event_type) or '0') + (added[event_type] or 0)
  return max_backlog - (total - slowest)
end

-- What `reclaim` of counts.lua does.
local function reclaim(identity_key, id, window)
  if redis.call('GET', identity_key) == id then
    return false
  end
  local left = redis.call('PTTL', identity_key)
  if left > 2 * window then
    redis.call('SET', identity_key, id, 'PX', window)
    return true
  elseif left > window then
    redis.call('PEXPIRE', identity_key, window)
  end
  return false
end

local at = 4
while at < #ARGV do
  local event_type, window, max_backlog = ARGV[at], ARGV[at + 2], tonumber(ARGV[at + 3])
  local key, last = P .. 's:' .. event_type .. ':' .. ARGV[at + 1], at + 2 + 3 * ARGV[at + 4]
  local room = max_backlog > 0 and room_in(event_type, max_backlog) or math.huge
  local stored = 0
  for i = at + 5, last, 3 do
    local id, identity_key = ARGV[i + 1], P .. 'd:' .. ARGV[i + 2]
    local outcome = STORED
    local is_free = redis.call('SET', identity_key, id, 'NX', 'PX', window)
    if not (is_free or (is_behind and reclaim(identity_key, id, tonumber(window)))) then
      outcome = REPEATED
      if redis.call('GET', identity_key) ~= id then
        outcome = DUPLICATE
        duplicates = duplicates + 1
      end
    elseif stored >= room then
      redis.call('DEL', identity_key)
      outcome = FULL
    else
      n = n + 1
      if n > LARGEST_N then
        ms, n = ms + 1, 0
      end
      local reply = redis.pcall('XADD', key, ms .. '-' .. n, 'b', ARGV[i])
      if type(reply) == 'table' and reply.err then
        redis.call('DEL', identity_key) -- or the event would pass for stored when it is published again
        refused = reply
        break
      end
      stored = stored + 1
    end
    count = count + 1
    outcomes[count] = outcome
  end
  if stored > 0 then
    added[event_type] = (added[event_type] or 0) + stored
    stored_in_all = stored_in_all + stored
  end
  if refused then
    break
  end
  at = last + 3
end
for event_type, more in pairs(added) do
  redis.call('HINCRBY', P .. 'added', event_type, more)
end
if stored_in_all > 0 then
  redis.call('SET', P .. 'clock', ms .. '-' .. n)
end
if duplicates > 0 then
  redis.call('HINCRBY', P .. 'counters', 'duplicates', duplicates)
end
if refused then
  return refused
end
local reply = table.concat(outcomes)
redis.call('SET', receipt_key, ARGV[2] .. ' ' .. reply, 'PX', '604800000')
return reply
