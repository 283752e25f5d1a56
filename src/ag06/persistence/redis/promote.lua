-- Append what is due. Returns how many events are due later.
promote(500)
keep_counts()
return redis.call('ZCARD', P .. 'scheduled')
