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

-- Take an identity that another id has, if its window was begun by a clock that was ahead and would begin later than it
-- is long; a window that is not so far ahead begins now. Only while the clock is behind: else the other one's is longer.
local function reclaim(identity_key, id, window)
  if not is_behind() or redis.call('GET', identity_key) == id then
    return false
  end
  local left = redis.call('PTTL', identity_key)
  if left > 2 * window then
    redis.call('SET', identity_key, id, 'PX', window)
    return true
  elseif left > window then
    redis.call('PEXPIRE', identity_key, window)
  end
  return false
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
  keep_clock()
  for event_type, count in pairs(added) do
    redis.call('HINCRBY', P .. 'added', event_type, count)
  end
  added = {}
  if duplicates > 0 then
    redis.pcall('HINCRBY', P .. 'counters', 'duplicates', duplicates) -- a statistic must not undo what it counts
  end
end
