-- Of events with a subject that a blocking read brought, park those that may not run yet; return their tokens.
-- ARGV: group, type, worker, then token and previous token of each.
local parked = {}
for i = 4, #ARGV, 2 do
  local behind = blocker(ARGV[i], ARGV[i + 1])
  if behind then
    block(ARGV[i], behind)
    parked[#parked + 1] = ARGV[i]
  end
end
return parked
