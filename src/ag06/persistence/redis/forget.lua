-- Forget workers that were not here for long and hold nothing: a killed one cannot take its leave. ARGV: group, type, ms.
-- Returns how many were forgotten.
if redis.call('EXISTS', LATER) == 0 then
  redis.call('DEL', SINCE) -- what workers of an older release left there
end
local holders = {}
for _, level in ipairs(STREAMS) do
  local known = redis.pcall('XPENDING', stream_of(level), group)
  if known.err then
    return 0
  end
  for _, holding in ipairs(known[4] or {}) do
    holders[holding[1]] = true
  end
end
local count = 0
local leases = redis.call('HGETALL', LEASES)
for i = 1, #leases, 2 do
  local seen = tonumber(string.match(leases[i + 1], ' (%d+)$'))
  if seen and now - seen > tonumber(ARGV[3]) and not holders[leases[i]] then
    forget_worker(leases[i])
    count = count + 1
  end
end
return count
