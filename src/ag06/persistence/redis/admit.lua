-- Append records of every kind, each checked and stored atomically. ARGV: receipt (3), records. Returns a digit for each.
local earlier = earlier_reply(1)
if earlier then
  return earlier
end
local outcomes = {}
for i, record in ipairs(cmsgpack.unpack(ARGV[4])) do
  outcomes[i] = admit(record)
end
keep_counts()
local reply = table.concat(outcomes)
keep_receipt(1, reply)
return reply
