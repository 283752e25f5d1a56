-- Of events with a subject that a blocking read brought, park those that may not run yet, and leave out those that were
-- taken over before their worker came to ask; return the tokens of both. ARGV: group, type, worker, then token and
-- previous token of each.
local parked = {}
for i = 4, #ARGV, 2 do
  local token = ARGV[i]
  local behind = blocker(token, ARGV[i + 1])
  local owner, _, serial = holder(token)
  if owner ~= ARGV[3] or serial ~= 1 then
    parked[#parked + 1] = token
  elseif behind then
    block(token, behind)
    parked[#parked + 1] = token
  end
end
return parked
