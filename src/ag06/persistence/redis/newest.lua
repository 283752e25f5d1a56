-- The ids of the newest entries of a stream, newest first. KEYS[1]: the prefix; ARGV: key, newest id, oldest id, how many.
local ids, from = {}, ARGV[2]
while #ids < tonumber(ARGV[4]) do
  local count = math.min(100, ARGV[4] - #ids)
  local page = redis.call('XREVRANGE', ARGV[1], from, ARGV[3], 'COUNT', count)
  for _, entry in ipairs(page) do
    ids[#ids + 1] = entry[1]
  end
  if #page < count then
    break
  end
  from = '(' .. ids[#ids]
end
return ids
