-- Delete a bite of what every group is done with. ARGV: type, level, id: only what lies before it, about how many entries.
-- Returns how many were deleted.
local event_type = ARGV[1]
local key = stream(event_type, ARGV[2])
local below = done_below(places(key), redis.call('HKEYS', P .. 'done:' .. event_type), ARGV[3])
if not below or redis.call('EXISTS', key) == 0 then
  return 0
end
return cut(key, below, tonumber(ARGV[4]))
