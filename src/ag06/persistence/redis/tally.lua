-- How many entries a stream has between two ids, of about the first thousand, and the last one counted.
-- KEYS[1]: the prefix; ARGV: key, first id, last id.
local count, last, from = 0, '', ARGV[2]
for _ = 1, 10 do
  local page = redis.call('XRANGE', ARGV[1], from, ARGV[3], 'COUNT', 100)
  if #page == 0 then
    break
  end
  count = count + #page
  last = page[#page][1]
  from = '(' .. last
end
return { count, last }
