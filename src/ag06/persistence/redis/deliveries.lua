-- What a group knows about its deliveries. A delivery is named by a token, `level:id` of its entry, or `x:id:rank` for
-- a dead letter that is tried again, whose entry lies in a stream of the group's own. ARGV: group, type, ...
--
-- The copy of a token that a worker has ends in `#` and the serial of its lease: how often the delivery was handed out, which
-- the server counts in the pending list. It is left out where it is 1. A serial is never given out again for a delivery,
-- so that a worker cannot settle what it lost, even if it has got it back since.
--
-- Every delivery that was read and not settled is in the pending list of its stream: under its worker, or under NOBODY
-- while it waits. What waits is in exactly one of: `ready` (by rank), `later` (by due time), `blocked` (behind a token).
-- It is put there before it becomes NOBODY's: if a command fails in between, its worker still has it.
local group, event_type = ARGV[1], ARGV[2]
local NOBODY = '~'
local AGEING_MS = 10000
local MOST_ARGUMENTS = 1000 -- of one command: Lua's stack bounds what `unpack` may return
local READY, LATER, BLOCKED = P .. 'ready:' .. group, P .. 'later:' .. group, P .. 'blocked:' .. group
local NOTES, AGAIN, LEASES = P .. 'notes:' .. group, P .. 'again:' .. group, P .. 'leases:' .. group
local WAKE = P .. 'wake:' .. group
local SINCE = P .. 'since:' .. group -- when what waits in `later` began to wait
local STREAMS = { '0', '1', '2', '3', 'x' }

local woken = 0
local again_count

local function parse(token)
  local level, id = string.match(token, '^(.):(%d+%-%d+)')
  if level == 'x' then
    return P .. 'x:' .. group, id, level
  end
  return stream(event_type, level), id, level
end

local function bare(token)
  return string.match(token, '^[^#]*')
end

local function with_serial(token, serial)
  return serial == 1 and token or token .. '#' .. serial
end

-- The dispatch key of the port, lowest first.
local function rank(token)
  local own = string.match(token, '^x:[^:]+:(%-?%d+)$')
  if own then
    return tonumber(own)
  end
  local level, ms = string.match(token, '^(%d):(%d+)')
  return ms - level * AGEING_MS
end

-- Whose it is, for how many ms nobody has asked for it, and its serial; nothing if it is not pending.
local function holder(token)
  local key, id = parse(token)
  local entry = redis.call('XPENDING', key, group, id, id, 1)[1]
  if entry then
    return entry[2], entry[3], entry[4]
  end
end

-- A note is kept only for what is out of the ordinary: attempts, first failure in ms, deaths, suspect, started. Suspect is
-- DIED if the last worker is known to be dead, LAPSED if its lease lapsed.
local DIED, LAPSED = 1, 2

local function read_note(token)
  local text = redis.call('HGET', NOTES, token)
  local note = { 0, 0, 0, 0, 0 }
  if text then
    local i = 0
    for number in string.gmatch(text, '%-?%d+') do
      i = i + 1
      note[i] = tonumber(number)
    end
  end
  return note
end

local function write_note(token, note)
  redis.call('HSET', NOTES, token, string.format('%.0f %.0f %.0f %.0f %.0f', unpack(note)))
end

local function blame_worker(token, suspect)
  local note = read_note(token)
  if note[5] == 1 then
    note[3] = note[3] + 1
  end
  note[4], note[5] = suspect, 0
  write_note(token, note)
  return note
end

local function take_from_all(token)
  local key, id = parse(token)
  redis.call('XCLAIM', key, group, NOBODY, 0, id, 'JUSTID')
end

local function make_ready(token)
  redis.call('ZADD', READY, rank(token), token)
  woken = woken + 1
end

local function wake()
  for _ = 1, math.min(woken, 8) do
    redis.call('XADD', WAKE, 'MAXLEN', '8', '*', 'w', '1')
  end
end

local function unblock(token)
  local followers = redis.call('HGET', BLOCKED, token)
  if followers then
    for follower in string.gmatch(followers, '%S+') do
      make_ready(follower)
    end
    redis.call('HDEL', BLOCKED, token)
  end
end

local function block(token, behind)
  local others = redis.call('HGET', BLOCKED, behind)
  redis.call('HSET', BLOCKED, behind, others and (others .. ' ' .. token) or token)
  take_from_all(token)
end

local cursors = {}

-- Up to where the group has read a stream.
local function cursor(key)
  if not cursors[key] then
    cursors[key] = '0-0'
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      local fields = {}
      for i = 1, #info, 2 do
        fields[info[i]] = info[i + 1]
      end
      if fields['name'] == group then
        cursors[key] = fields['last-delivered-id']
      end
    end
  end
  return cursors[key]
end

-- Whether the group is done with an earlier event. `level`: where the one behind it was read.
local function is_settled(token, level)
  if holder(token) then
    return false
  end
  local key, id, own = parse(token)
  if own == level or own == 'x' or not is_before(cursor(key), id) then
    return true
  end
  -- Not read yet, unless it was trimmed: then it never will be.
  return #redis.call('XRANGE', key, id, id) == 0
end

-- The token that a delivery with a subject must wait for, if any.
local function blocker(token, previous)
  local key, id, level = parse(token)
  if previous ~= '' and not is_settled(previous, level) then
    return previous
  end
  again_count = again_count or redis.call('HLEN', AGAIN)
  if again_count > 0 and level ~= 'x' then
    local entry = redis.call('XRANGE', key, id, id)[1]
    local tries = entry and redis.call('HGET', AGAIN, cjson.decode(entry[2][2]).subject) or ''
    local nearest -- the last one that was tried again before this event came
    for tried in string.gmatch(tries, '%S+') do
      if is_before(string.match(tried, '^x:([^:]+)'), id) and holder(tried) then
        nearest = tried
      end
    end
    return nearest
  end
end

-- A dead letter that was tried again is settled: later events of its subject need not wait for it any more.
local function forget_try(token)
  local key, id = parse(token)
  local entry = redis.call('XRANGE', key, id, id)[1]
  if entry then
    local subject = entry[2][12]
    local left = {}
    for tried in string.gmatch(redis.call('HGET', AGAIN, subject) or '', '%S+') do
      if tried ~= token then
        left[#left + 1] = tried
      end
    end
    if #left > 0 then
      redis.call('HSET', AGAIN, subject, table.concat(left, ' '))
    else
      redis.call('HDEL', AGAIN, subject)
    end
    redis.call('XDEL', key, id)
  end
end

-- Hand back what a worker holds: gently, or, if the worker is dead, with suspicion.
local function hand_back(token, dead)
  if dead then
    blame_worker(token, DIED)
  else
    local note = read_note(token)
    if note[5] == 1 then
      note[5] = 0
      write_note(token, note)
    end
  end
  make_ready(token)
  take_from_all(token)
end

local function stream_of(level)
  return level == 'x' and P .. 'x:' .. group or stream(event_type, level)
end

local function token_of(level, id)
  local token = level .. ':' .. id
  if level == 'x' then
    return token .. ':' .. redis.call('XRANGE', stream_of(level), id, id)[1][2][6]
  end
  return token
end

-- The tokens that a worker holds in a stream and that are not to be kept, about `limit` of them; and whether it holds some
-- to be kept. Those to be kept are named with their serials.
local function tokens_of(worker, level, limit, min_idle, kept)
  local tokens, spared, from = {}, false, '-'
  repeat
    local page = redis.call('XPENDING', stream_of(level), group, 'IDLE', min_idle, from, '+', limit, worker)
    for _, entry in ipairs(page) do
      local token = token_of(level, entry[1])
      if kept and kept[with_serial(token, entry[4])] then
        spared = true
      else
        tokens[#tokens + 1] = token
      end
    end
    from = #page > 0 and '(' .. page[#page][1]
  until #page < limit or #tokens > 0
  return tokens, spared
end

-- Let a worker go that holds nothing: pending entries would be lost with their consumer.
local function forget_worker(worker)
  for _, level in ipairs(STREAMS) do
    redis.call('XGROUP', 'DELCONSUMER', stream_of(level), group, worker)
  end
  redis.call('XGROUP', 'DELCONSUMER', WAKE, group, worker)
  redis.call('HDEL', LEASES, worker)
end
