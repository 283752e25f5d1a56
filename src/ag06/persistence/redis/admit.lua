-- Append records of every kind, each checked and stored atomically. ARGV: receipt (3), records. Returns a digit for each.
local earlier = earlier_reply(1)
if earlier then
  return earlier
end
-- It changes nothing, but a server over its memory limit refuses it. Otherwise a record that is known already, whose
-- memory is only renewed, would let the others of its call through.
redis.call('SETRANGE', P .. 'clock', 0, '')
local outcomes, refused = {}, nil
for i, record in ipairs(cmsgpack.unpack(ARGV[4])) do
  local fine, outcome = pcall(admit, record)
  if not fine then
    refused = outcome
    break
  end
  outcomes[i] = outcome
end
keep_counts()
if refused then -- what comes before is stored, and known by its ids; the rest is sent again
  return type(refused) == 'table' and refused or redis.error_reply(refused)
end
local reply = table.concat(outcomes)
keep_receipt(1, reply)
return reply
