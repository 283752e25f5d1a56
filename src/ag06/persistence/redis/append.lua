-- Append plain events: with an identity, without subject, chosen id or due time, as most are. Here the server spends
-- its time, so this does as little as can be; admit.lua takes every kind. ARGV: receipt (3), runs. A run is
-- {type, level, window in ms, max_backlog, {body, id, identity, body, ...}}. Returns a digit for each record.
local earlier = earlier_reply(1)
if earlier then
  return earlier
end
local outcomes, n = {}, 0
for _, run in ipairs(cmsgpack.unpack(ARGV[4])) do
  local event_type, max_backlog, parts = run[1], run[4], run[5]
  local key, window = stream(event_type, run[2]), tostring(run[3])
  for i = 1, #parts, 3 do
    local id, identity_key = parts[i + 1], P .. 'd:' .. parts[i + 2]
    local outcome = STORED
    if not redis.call('SET', identity_key, id, 'NX', 'PX', window) then
      outcome = remembered(identity_key, id)
    elseif max_backlog > 0 and is_full(event_type, max_backlog) then
      redis.call('DEL', identity_key)
      outcome = FULL
    else
      redis.call('XADD', key, next_id(), 'b', parts[i])
      added[event_type] = (added[event_type] or 0) + 1
    end
    n = n + 1
    outcomes[n] = outcome
  end
end
keep_counts()
local reply = table.concat(outcomes)
keep_receipt(1, reply)
return reply
