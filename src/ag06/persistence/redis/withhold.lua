-- Put aside for a while what a worker was handed and does not know of, as its reply cannot be sent.
-- ARGV: group, type, worker, tokens that it knows of, delay in ms. Returns {level, id, bytes} of each.
local kept, withheld = {}, {}
for _, token in ipairs(cmsgpack.unpack(ARGV[4])) do
  kept[token] = true
end
for _, level in ipairs(STREAMS) do
  for _, token in ipairs((tokens_of(ARGV[3], level, 200, 0, kept))) do
    local key, id = parse(token)
    local entry = redis.call('XRANGE', key, id, id)[1]
    redis.call('ZADD', LATER, now + ARGV[5], token)
    redis.call('ZADD', SINCE, now, token)
    take_from_all(token)
    withheld[#withheld + 1] = { level, id, entry and #entry[2][2] or 0 }
  end
end
return withheld
