-- Let somebody lead in a role, if it is free or his own. ARGV: role, holder, ms (0: give it up). Returns 1 if it was.
local key = P .. 'leader:' .. ARGV[1]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then
  if ARGV[3] ~= '0' and redis.call('PTTL', key) > tonumber(ARGV[3]) then
    redis.call('PEXPIRE', key, ARGV[3]) -- all lead for as long: the clock was ahead when this lead was taken
  end
  return 0
end
if ARGV[3] == '0' then
  redis.call('DEL', key)
else
  redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
end
return 1
