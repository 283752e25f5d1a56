-- What every script that appends counts and asks: streams, outcomes, how full a type is.
local STORED, DUPLICATE, REPEATED, CLASH, FULL = 0, 1, 2, 3, 4
local LEVELS = { '0', '1', '2', '3' }

local streams = {}
local added = {}
local duplicates = 0

local function stream(event_type, level)
  local name = event_type .. ':' .. level
  local key = streams[name]
  if not key then
    key = P .. 's:' .. name
    streams[name] = key
  end
  return key
end

local room = {}

-- The slowest group is asked once for a type; what is added meanwhile is counted here.
local function is_full(event_type, max_backlog)
  if not room[event_type] then
    local slowest = math.huge
    for _, done in ipairs(redis.call('HVALS', P .. 'done:' .. event_type)) do
      slowest = math.min(slowest, tonumber(done))
    end
    room[event_type] = tonumber(redis.call('HGET', P .. 'added', event_type) or '0') - slowest
  end
  return room[event_type] + (added[event_type] or 0) >= max_backlog
end

-- The outcome for an identity that is remembered already: under this id, or under another one.
local function remembered(identity_key, id)
  if redis.call('GET', identity_key) == id then
    return REPEATED
  end
  duplicates = duplicates + 1
  return DUPLICATE
end

local function keep_counts()
  for event_type, count in pairs(added) do
    redis.call('HINCRBY', P .. 'added', event_type, count)
  end
  if duplicates > 0 then
    redis.call('HINCRBY', P .. 'counters', 'duplicates', duplicates)
  end
  keep_clock()
end
