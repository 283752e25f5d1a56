-- Which of some deliveries a worker holds, and under which serials. Few: asked one by one; many: its whole pending list in one call.
local function held_by(worker, tokens, bound)
  local held, listed = {}, {}
  local by_one = #tokens * 4 < bound
  for _, token in ipairs(tokens) do
    local key, id, level = parse(token)
    if not by_one and not listed[key] then
      local entries = redis.call('XPENDING', key, group, '-', '+', bound, worker)
      listed[key] = #entries < bound and 1 or 2 -- 2: there may be more than were listed
      for _, entry in ipairs(entries) do
        held[level .. entry[1]] = entry[4]
      end
    end
    if (by_one or listed[key] == 2) and not held[level .. id] then
      local entry = redis.call('XPENDING', key, group, id, id, 1, worker)[1]
      held[level .. id] = entry and entry[4]
    end
  end
  return held
end

-- Whether a token names the lease that the worker has.
local function is_held(held, token)
  local level, id, rest = string.match(token, '^(.):(%d+%-%d+)(.*)')
  return held[level .. id] == (rest == '' and 1 or tonumber(string.match(rest, '#(%d+)$') or 1))
end

local function let_go(held, token)
  local level, id = string.match(token, '^(.):(%d+%-%d+)')
  held[level .. id] = nil
end
