-- Which of the commands that a log needs this user may not run, or this server does not have. Nothing is written, and
-- nothing is run, so that it can be asked of a server in any state. KEYS[1]: the prefix of every key.
local key = KEYS[1] .. 'x'
local NEEDED = {
  { 'CLIENT', 'ID' },
  { 'DEL', key },
  { 'EXISTS', key },
  { 'GET', key },
  { 'GETEX', key },
  { 'HDEL', key, 'f' },
  { 'HEXISTS', key, 'f' },
  { 'HGET', key, 'f' },
  { 'HGETALL', key },
  { 'HINCRBY', key, 'f', '1' },
  { 'HKEYS', key },
  { 'HLEN', key },
  { 'HSCAN', key, '0' },
  { 'HSET', key, 'f', 'v' },
  { 'HSETNX', key, 'f', 'v' },
  { 'HSTRLEN', key, 'f' },
  { 'HVALS', key },
  { 'INCR', key },
  { 'LPOS', key, 'v' },
  { 'LRANGE', key, '0', '0' },
  { 'LREM', key, '0', 'v' },
  { 'PEXPIRE', key, '1' },
  { 'PTTL', key },
  { 'RPUSH', key, 'v' },
  { 'SCRIPT', 'LOAD', 'return 1' },
  { 'SET', key, 'v' },
  { 'SETRANGE', key, '0', 'v' },
  { 'TIME' },
  { 'XACK', key, 'g', '1-1' },
  { 'XADD', key, '*', 'f', 'v' },
  { 'XCLAIM', key, 'g', 'c', '0', '1-1' },
  { 'XDEL', key, '1-1' },
  { 'XGROUP', 'CREATE', key, 'g', '0' },
  { 'XGROUP', 'DELCONSUMER', key, 'g', 'c' },
  { 'XGROUP', 'DESTROY', key, 'g' },
  { 'XGROUP', 'SETID', key, 'g', '0' },
  { 'XINFO', 'GROUPS', key },
  { 'XINFO', 'STREAM', key },
  { 'XLEN', key },
  { 'XPENDING', key, 'g' },
  { 'XRANGE', key, '-', '+' },
  { 'XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', key, '>' },
  { 'XREVRANGE', key, '+', '-' },
  { 'XTRIM', key, 'MAXLEN', '0' },
  { 'ZADD', key, '0', 'm' },
  { 'ZCARD', key },
  { 'ZRANGE', key, '0', '0' },
  { 'ZRANGEBYSCORE', key, '0', '0' },
  { 'ZREM', key, 'm' },
  { 'ZSCORE', key, 'm' },
}
local refused = {}
if redis.acl_check_cmd then -- from Redis 7 on
  for _, command in ipairs(NEEDED) do
    local known, allowed = pcall(redis.acl_check_cmd, unpack(command))
    if not (known and allowed) then
      local name = command[1]
      if name == 'CLIENT' or name == 'SCRIPT' or name == 'XGROUP' or name == 'XINFO' then
        name = name .. ' ' .. command[2]
      end
      refused[#refused + 1] = name
    end
  end
end
return refused
