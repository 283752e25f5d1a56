-- Trim the streams of one type: what every group is done with and what is older than the retention.
-- ARGV: type, retention in ms (0: for ever), most entries to trim of each stream. Returns how many were trimmed.
local event_type, retention, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local old = string.format('%.0f-0', math.max(now - retention, 0))
local FLOORS = P .. 'floors'

local function fields_of(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

-- Of one stream, each group's number of pending entries and the first entry that it is not done with.
local function places(key)
  local found = {}
  local exists = redis.call('EXISTS', key) == 1
  for _, info in ipairs(exists and redis.call('XINFO', 'GROUPS', key) or {}) do
    info = fields_of(info)
    local place = { pending = info['pending'], read = info['last-delivered-id'] }
    place.floor = id_after(place.read)
    if place.pending > 0 then
      place.floor = redis.call('XPENDING', key, info['name'])[2]
    end
    found[info['name']] = place
  end
  return found, exists and fields_of(redis.call('XINFO', 'STREAM', key))['last-generated-id']
end

local function cut(key, behind)
  local gone = redis.call('XTRIM', key, 'MINID', '~', behind, 'LIMIT', most)
  if gone == 0 then
    gone = redis.call('XTRIM', key, 'MINID', '=', behind) -- less than one node of the stream is left to cut
  end
  return gone
end

local trimmed = 0
local groups, unfinished, caught_up = redis.call('HKEYS', P .. 'done:' .. event_type), {}, {}
for _, level in ipairs(LEVELS) do
  local key = stream(event_type, level)
  local found, last = places(key)
  local behind, safe = old, last and retention > 0
  for _, group in ipairs(groups) do
    local place = found[group]
    if place then
      redis.call('HSET', FLOORS, group .. ' ' .. level, id_before(place.floor))
      if is_before(place.floor, behind) then
        behind = place.floor
      end
      unfinished[group] = (unfinished[group] or 0) + place.pending
      if caught_up[group] ~= false then
        caught_up[group] = not is_before(place.read, last)
      end
    else
      safe, caught_up[group] = false, false -- its place is lost: it will begin again, so nothing may go
    end
  end
  if safe then
    trimmed = trimmed + cut(key, behind)
  end
end
-- Where a group has read everything, its backlog is known exactly: this heals a counter that a crash left behind.
for _, group in ipairs(groups) do
  local retried = redis.pcall('XPENDING', P .. 'x:' .. group, group)
  if caught_up[group] and not retried.err then
    local total = tonumber(redis.call('HGET', P .. 'added', event_type) or '0')
    redis.call('HSET', P .. 'done:' .. event_type, group, total - unfinished[group] - retried[1])
  end
end
return trimmed
