-- The clock of the log. Every position is a stream id `ms-n`, the same series over all streams, never decreasing even
-- when the server's clock is set back. KEYS[1] is the prefix of every key; all of them lie in one hash slot.
local P = KEYS[1]
local TIME = redis.call('TIME')
local now = TIME[1] * 1000 + math.floor(TIME[2] / 1000)
local LARGEST_N = 1048575

local clock_ms, clock_n
local clock_moved = false

local function split_id(id)
  local ms, n = string.match(id, '^(%d+)%-(%d+)')
  return tonumber(ms), tonumber(n)
end

local function read_clock()
  if not clock_ms then
    clock_ms, clock_n = split_id(redis.call('GET', P .. 'clock') or '0-0')
  end
end

local function next_id()
  read_clock()
  clock_moved = true
  if now > clock_ms then
    clock_ms, clock_n = now, 0
  elseif clock_n >= LARGEST_N then
    clock_ms, clock_n = clock_ms + 1, 0
  else
    clock_n = clock_n + 1
  end
  return clock_ms .. '-' .. clock_n
end

-- Let the positions show that the clock has been here, though nothing is appended.
local function note_time()
  read_clock()
  if now > clock_ms then
    clock_ms, clock_n, clock_moved = now, 0, true
  end
end

-- Whether the clock was set back: it shows less than the newest position.
local function is_behind()
  read_clock()
  return clock_ms > now
end

-- Let waits that began later than now begin now: the clock was ahead when they were noted. `waits` holds when each one
-- ends, `since` when it began.
local function begin_anew(waits, since)
  repeat
    local ahead = redis.call('ZRANGEBYSCORE', since, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 500)
    for i = 1, #ahead, 2 do
      local ends = redis.call('ZSCORE', waits, ahead[i])
      if ends then
        redis.call('ZADD', waits, now + ends - ahead[i + 1], ahead[i])
        redis.call('ZADD', since, now, ahead[i])
      else -- a worker of an older release ended it
        redis.call('ZREM', since, ahead[i])
      end
    end
  until #ahead < 1000 -- two for each wait
end

local function keep_clock()
  if clock_moved then
    redis.call('SET', P .. 'clock', clock_ms .. '-' .. clock_n)
  end
end
