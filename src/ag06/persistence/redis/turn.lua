-- Take the turn to trim, if nobody has had one for a while. ARGV: how long the turn lasts, in ms. Returns 1 if it was free.
-- A turn that lasts longer was taken while the server's clock was ahead.
local key = P .. 'trimming'
if redis.call('PTTL', key) > tonumber(ARGV[1]) then
  redis.call('PEXPIRE', key, ARGV[1])
  return 0
end
return redis.call('SET', key, '1', 'NX', 'PX', ARGV[1]) and 1 or 0
