-- Put aside for a while what a worker was handed and does not know of, as its reply cannot be sent.
-- ARGV: group, type, worker, tokens that it knows of, delay in ms, least bytes. Returns {level, id, bytes} of each. Smaller
-- events are handed out again at once: connections that broke for another reason are no fault of theirs.
local kept, withheld = {}, {}
for _, token in ipairs(cmsgpack.unpack(ARGV[4])) do
  kept[token] = true
end
for _, level in ipairs(STREAMS) do
  for _, token in ipairs((tokens_of(ARGV[3], level, 200, 0, kept))) do
    local key, id = parse(token)
    local entry = redis.call('XRANGE', key, id, id)[1]
    local size = entry and #entry[2][2] or 0
    if size < tonumber(ARGV[6]) then
      hand_back(token, false)
    else
      redis.call('ZADD', LATER, now + ARGV[5], token)
      redis.call('ZADD', SINCE, now, token)
      take_from_all(token)
      withheld[#withheld + 1] = { level, id, size }
    end
  end
end
return withheld
