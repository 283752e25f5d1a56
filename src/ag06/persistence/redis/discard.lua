-- Delete dead letters for good. ARGV: (group, event id) pairs. Returns how many were found.
local found = 0
for _, pair in ipairs(cmsgpack.unpack(ARGV[1])) do
  found = found + redis.call('HDEL', P .. 'dead:' .. pair[1], pair[2])
  redis.call('ZREM', P .. 'dead', pair[1] .. '\31' .. pair[2])
end
return found
