-- Begin the lease of some tokens anew, those that are still this worker's. ARGV: group, type, worker, bound, tokens
-- with serials.
local worker = ARGV[3]
local tokens = cmsgpack.unpack(ARGV[5])
local held = held_by(worker, tokens, tonumber(ARGV[4]))
local renewed = {}
for _, token in ipairs(tokens) do
  if is_held(held, token) then
    local key, id = parse(token)
    if not renewed[key] then
      renewed[key] = {}
    end
    table.insert(renewed[key], id)
  end
end
for key, ids in pairs(renewed) do
  local claim = { 'XCLAIM', key, group, worker, 0 }
  for _, id in ipairs(ids) do
    claim[#claim + 1] = id
  end
  claim[#claim + 1] = 'JUSTID'
  redis.call(unpack(claim))
end
local visibility = string.match(redis.call('HGET', LEASES, worker) or '', '^%d+')
if visibility then
  redis.call('HSET', LEASES, worker, string.format('%s %.0f', visibility, now))
end
return 1
