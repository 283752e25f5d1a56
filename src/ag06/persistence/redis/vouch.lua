-- Begin the leases of a worker anew that is known to live: of all that it holds, or of some tokens; the rest is given back.
-- ARGV: group, type, worker, '1' for all, tokens. Returns how many were given back.
local PAGE = 500
local worker, all = ARGV[3], ARGV[4] == '1'
if redis.call('HEXISTS', P .. 'groups', group) == 0 then
  return 0
end
local kept = {}
for _, token in ipairs(cmsgpack.unpack(ARGV[5])) do
  kept[token] = true
end
local count = 0
for _, level in ipairs(STREAMS) do
  local key, from = stream_of(level), '-'
  repeat
    local page = redis.call('XPENDING', key, group, from, '+', PAGE, worker)
    local claim = { 'XCLAIM', key, group, worker, 0 }
    for _, entry in ipairs(page) do
      local token = token_of(level, entry[1])
      if all or kept[token] then
        claim[#claim + 1] = entry[1]
      else
        hand_back(token, false)
        count = count + 1
      end
    end
    if #claim > 5 then
      claim[#claim + 1] = 'JUSTID'
      redis.call(unpack(claim))
    end
    from = #page > 0 and '(' .. page[#page][1]
  until #page < PAGE
end
wake()
return count
