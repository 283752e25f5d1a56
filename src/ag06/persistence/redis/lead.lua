-- Let somebody lead in a role, if it is free or his own. ARGV: role, holder, ms (0: give it up). Returns 1 if it was.
-- `leads` has the holder and the length of each lead: one that ends later than that from now was taken while the server's
-- clock was ahead, and begins now. Workers of an older release note no length.
local key, leads = P .. 'leader:' .. ARGV[1], P .. 'leads'
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then
  local leader, length = string.match(redis.call('HGET', leads, ARGV[1]) or '', '^(.*)\31(%d+)$')
  if leader == holder and redis.call('PTTL', key) > tonumber(length) then
    redis.call('PEXPIRE', key, length)
  end
  return 0
end
if ARGV[3] == '0' then
  redis.call('DEL', key)
  redis.call('HDEL', leads, ARGV[1])
else
  redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
  redis.call('HSET', leads, ARGV[1], ARGV[2] .. '\31' .. ARGV[3])
end
return 1
