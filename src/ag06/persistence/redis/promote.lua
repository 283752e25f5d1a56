-- Append what is due. Returns how many events are due later.
promote(500)
keep_counts()
local count = redis.call('ZCARD', P .. 'scheduled')
if count == 0 then
  redis.call('DEL', P .. 'scheduled:since') -- what workers of an older release left there
end
return count
