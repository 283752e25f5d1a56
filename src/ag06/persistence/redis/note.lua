-- Write a note, or remove it. ARGV: name, writer, number, '1' or '0', body. A writer numbers its writes: a copy of a call
-- that was on its way for longer than its repetition must not bring back what was replaced since.
local WRITER_MS = '3600000' -- no connection holds a request back for so long

local key = P .. 'writer:' .. ARGV[2] .. ':' .. ARGV[1]
local latest = tonumber(redis.call('GET', key) or '0')
if tonumber(ARGV[3]) > latest then
  latest = tonumber(ARGV[3])
  if ARGV[4] == '1' then
    redis.call('SET', P .. 'note:' .. ARGV[1], ARGV[5])
  else
    redis.call('DEL', P .. 'note:' .. ARGV[1])
  end
end
redis.call('SET', key, latest, 'PX', WRITER_MS) -- a write in any case, so that a WAITAOF or WAIT behind it waits for what came before
return 1
