-- Up to where every group is done with the streams of one type. ARGV: type, ms: only what was recorded before.
-- Returns {level, id: what lies before it is settled} of each stream that has something there.
local event_type = ARGV[1]
local groups = redis.call('HKEYS', P .. 'done:' .. event_type)
local cuts = {}
for _, level in ipairs(LEVELS) do
  local key = stream(event_type, level)
  local found, last = places(key)
  local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  if first then
    local below, behind_last = ARGV[2] .. '-0', id_after(last)
    if is_before(behind_last, below) then
      below = behind_last -- what comes later is no part of it
    end
    below = done_below(found, groups, below)
    if below and is_before(first[1], below) then
      cuts[#cuts + 1] = { level, below }
    end
  end
end
return cuts
