-- Trim the streams of one type: what every group is done with and what is older than the retention.
-- ARGV: type, retention in ms (0: for ever), most entries to trim of each stream. Returns how many were trimmed.
local event_type, retention, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local old = string.format('%.0f-0', math.max(now - retention, 0))
local FLOORS = P .. 'floors'

local trimmed = 0
local groups, unfinished, caught_up = redis.call('HKEYS', P .. 'done:' .. event_type), {}, {}
for _, level in ipairs(LEVELS) do
  local key = stream(event_type, level)
  local found, last = places(key)
  local below = done_below(found, groups, old)
  for _, group in ipairs(groups) do
    local place = found[group]
    if place then
      redis.call('HSET', FLOORS, group .. ' ' .. level, id_before(place.floor))
      unfinished[group] = (unfinished[group] or 0) + place.pending
      if caught_up[group] ~= false then
        caught_up[group] = not is_before(place.read, last)
      end
    else
      caught_up[group] = false
    end
  end
  if below and last and retention > 0 then
    trimmed = trimmed + cut(key, below, most)
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
