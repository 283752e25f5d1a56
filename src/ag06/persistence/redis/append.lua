-- Append a batch, each record checked and stored atomically. ARGV: receipt (3), runs. Returns a digit for each record.
-- A run is either {record} or {type, level, window in ms, max_backlog, {body, id, identity, body, ...}}: what most
-- events are, packed and looped over with as little as can be, for this is where the server spends its time.
local earlier = earlier_reply(1)
if earlier then
  return earlier
end
local outcomes, n = {}, 0

local function append_run(event_type, level, window, max_backlog, parts)
  local key = stream(event_type, level)
  window = tostring(window)
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

for _, run in ipairs(cmsgpack.unpack(ARGV[4])) do
  if #run == 1 then
    n = n + 1
    outcomes[n] = admit(run[1])
  else
    append_run(unpack(run))
  end
end
keep_counts()
local reply = table.concat(outcomes)
keep_receipt(1, reply)
return reply
