-- Append a bite of what is due. Returns ms until the next one is due, 0: there is more to append now, -1: nothing is left.
local wait = promote(500)
keep_counts()
if not wait then -- nothing is scheduled
  redis.call('DEL', P .. 'scheduled:since') -- what workers of an older release left there
end
return wait or -1
