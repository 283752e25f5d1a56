-- Take the turn to trim, if nobody has had one for a while. ARGV: how long the turn lasts, in ms. Returns 1 if it was free.
return redis.call('SET', P .. 'trimming', '1', 'NX', 'PX', ARGV[1]) and 1 or 0
