-- Remember that an archive holds events of the log, or forget it. ARGV: its URL, '1' or '0'.
local key = P .. 'archives'
if ARGV[2] == '0' then
  redis.call('LREM', key, 0, ARGV[1])
elseif not redis.call('LPOS', key, ARGV[1]) then
  redis.call('RPUSH', key, ARGV[1])
end
redis.call('SET', P .. 'archived', now) -- a write in any case, so that a WAITAOF or WAIT behind it waits for what came before
return 1
