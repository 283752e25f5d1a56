-- How the groups stand. ARGV: names of groups, packed; none: all. Returns {group, type, backlog, in flight, dead letters,
-- oldest ms or -1} of each.
local RETRIED = 100 -- dead letters tried again whose age is looked at
local wanted = cmsgpack.unpack(ARGV[1])
if #wanted == 0 then
  wanted = redis.call('HKEYS', P .. 'groups')
end

local function look(key, group)
  local pending = redis.call('XPENDING', key, group)
  local read
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local fields = {}
    for i = 1, #info, 2 do
      fields[info[i]] = info[i + 1]
    end
    if fields['name'] == group then
      read = fields['last-delivered-id']
    end
  end
  local unread = redis.call('XRANGE', key, '(' .. read, '+', 'COUNT', 1)[1]
  return pending[1], pending[2], unread and unread[1]
end

local function stand(group, event_type)
  local in_flight, oldest = 0, nil
  local function see(id)
    if id then
      local ms = split_id(id)
      if not oldest or ms < oldest then
        oldest = ms
      end
    end
  end
  for _, level in ipairs(LEVELS) do
    local ok, pending, first, unread = pcall(look, stream(event_type, level), group)
    if ok then
      in_flight = in_flight + pending
      see(first)
      see(unread)
    end
  end
  local retried = redis.pcall('XPENDING', P .. 'x:' .. group, group)
  if not retried.err then
    in_flight = in_flight + retried[1]
    for _, entry in ipairs(redis.call('XRANGE', P .. 'x:' .. group, '-', '+', 'COUNT', RETRIED)) do
      see(entry[2][8] .. '-0')
    end
  end
  local backlog = tonumber(redis.call('HGET', P .. 'added', event_type) or 0)
    - tonumber(redis.call('HGET', P .. 'done:' .. event_type, group) or 0)
  return { group, event_type, math.max(backlog, in_flight), in_flight, redis.call('HLEN', P .. 'dead:' .. group),
    oldest or -1 }
end

local census = {}
for _, group in ipairs(wanted) do
  local packed = redis.call('HGET', P .. 'groups', group)
  if packed then
    census[#census + 1] = stand(group, cmsgpack.unpack(packed)[1])
  end
end
return census
