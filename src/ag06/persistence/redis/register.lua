-- Make the steps of a workflow known. ARGV: workflow, steps as {group, type, start, done, from}; start is 'beginning',
-- 'end', 'at' (behind the id `from`, with `done` events of the type before it) or '' (by whether the workflow is known).
-- Returns the known group that listens to another type now, and that type; or nothing.
local workflow = ARGV[1]
local steps = cmsgpack.unpack(ARGV[2])
local known_workflow = false
for _, packed in ipairs(redis.call('HVALS', P .. 'groups')) do
  known_workflow = known_workflow or cmsgpack.unpack(packed)[2] == workflow
end
for _, step in ipairs(steps) do
  local packed = redis.call('HGET', P .. 'groups', step[1])
  if packed and cmsgpack.unpack(packed)[1] ~= step[2] then
    return { step[1], cmsgpack.unpack(packed)[1] }
  end
end

-- Returns whether the group was not there.
local function create(key, group, from)
  local made = redis.pcall('XGROUP', 'CREATE', key, group, from, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP') then
    error(made.err)
  end
  return not made.err
end

local function counts_of(event_type)
  redis.call('HSETNX', P .. 'added', event_type, '0')
  local held = 0
  for _, level in ipairs(LEVELS) do
    held = held + redis.call('XLEN', stream(event_type, level))
  end
  local total = tonumber(redis.call('HGET', P .. 'added', event_type))
  if total < held then -- the counter was lost with a part of the data
    total = held
    redis.call('HSET', P .. 'added', event_type, total)
  end
  return total, held
end

for _, step in ipairs(steps) do
  local group, event_type, start = step[1], step[2], step[3]
  local known = redis.call('HEXISTS', P .. 'groups', group) == 1
  local total, in_streams = counts_of(event_type)
  local from, done
  if start == 'at' then
    from, done = step[5], step[4]
  elseif start == 'beginning' or (start == '' and not known_workflow) then
    from, done = '0', total - in_streams
  else
    from, done = '$', total
  end
  local created = false
  for _, level in ipairs(LEVELS) do
    local place = from
    if known then
      -- Only if its place was lost with a part of the data: begin again where it is known to have been.
      place = redis.call('HGET', P .. 'floors', group .. ' ' .. level) or '0'
    end
    created = create(stream(event_type, level), group, place) or created
  end
  create(P .. 'x:' .. group, group, '0')
  create(P .. 'wake:' .. group, group, '$')
  if known and created then
    done = total - in_streams -- an upper bound of what it still has to do, exact again once it has read everything
  end
  if created or not known then
    redis.call('HSET', P .. 'done:' .. event_type, group, done)
  end
  if not known then -- last: a call that failed can be repeated
    redis.call('HDEL', P .. 'removed', group)
    redis.call('HSET', P .. 'groups', group, cmsgpack.pack({ event_type, workflow }))
  end
end
return false
