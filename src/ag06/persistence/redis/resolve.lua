-- A call whose reply never came and that is not sent again: if it was done, remember the ids that it stored, so that a
-- publisher or a journal can repeat them by id however late. ARGV: receipt (name, number, '1'), ids.
local reply = earlier_reply(1)
if not reply then
  return 0
end
local stored = 0
for i, id in ipairs(cmsgpack.unpack(ARGV[4])) do
  if string.sub(reply, i, i) == '0' then
    redis.call('SET', P .. 'i:' .. id, '', 'NX', 'PX', CHOSEN_ID_MS)
    stored = stored + 1
  end
end
return stored
