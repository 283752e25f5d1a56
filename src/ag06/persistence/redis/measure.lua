-- The first entry of a stream between two ids, and its size in bytes. KEYS[1]: the prefix; ARGV: key, first id, last id.
local entry = redis.call('XRANGE', ARGV[1], ARGV[2], ARGV[3], 'COUNT', 1)[1]
return entry and { entry[1], #entry[2][2] }
