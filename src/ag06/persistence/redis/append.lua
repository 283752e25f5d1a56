-- Append plain events: with an identity, without subject, chosen id or due time, as most are. Here the server spends
-- its time, so this does as little as can be; admit.lua takes every kind. ARGV: receipt (3), runs. A run is type, level,
-- window in ms, max_backlog, number of records, then body, id and identity of each. Returns a digit for each record.
local earlier = earlier_reply(1)
if earlier then
  return earlier
end
local outcomes, n = {}, 0
local at = 4
while at < #ARGV do
  local event_type, window, max_backlog = ARGV[at], ARGV[at + 2], tonumber(ARGV[at + 3])
  local key, last = stream(event_type, ARGV[at + 1]), at + 2 + 3 * ARGV[at + 4]
  local stored = 0
  for i = at + 5, last, 3 do
    local id, identity_key = ARGV[i + 1], P .. 'd:' .. ARGV[i + 2]
    n = n + 1
    if not redis.call('SET', identity_key, id, 'NX', 'PX', window) then
      outcomes[n] = remembered(identity_key, id)
    elseif max_backlog > 0 and is_full(event_type, max_backlog - stored) then
      redis.call('DEL', identity_key)
      outcomes[n] = FULL
    else
      redis.call('XADD', key, next_id(), 'b', ARGV[i])
      stored = stored + 1
      outcomes[n] = STORED
    end
  end
  added[event_type] = (added[event_type] or 0) + stored
  at = last + 3
end
keep_counts()
local reply = table.concat(outcomes)
keep_receipt(1, reply)
return reply
