-- How an event enters the log. A record is an array:
-- type, level, subject, body, id, identity, window in ms, content, due in ms, max_backlog, where the time is in body, when a
-- journal took it in ms (0: none did), the receipt of an earlier try whose fate is unknown: its name, number, place in it,
-- and how long before its due time that was asked for in ms (0: a time was given).
local CHOSEN_ID_MS = '604800000' -- how long an id that its publisher chose is remembered
local MADE_BEFORE_MS, MADE_WITHIN_MS = 5, 200 -- how far the clock of a publisher may be off, how long its call may take
local MADE_MOST = 200 -- events of one level looked at: this must not hold the server up
local JOURNALLED_MS = 3600000 -- how long it is remembered when a journal took what has an identity
local LATE_MS = 10000 -- a frozen server may still find the first try of something in its sockets, once it goes on
local OUTPUT_ID_MS = '3600000' -- a step's output is stored with its acknowledgement, so a short memory is enough

local function set_tail(event_type, subject, token)
  if token == '' then
    redis.call('HDEL', P .. 'tails:' .. event_type, subject)
  else
    redis.call('HSET', P .. 'tails:' .. event_type, subject, token)
  end
end

-- Append an event; return its id in the stream. Where that raises, nothing was done.
local function add(event_type, level, subject, body)
  local id = next_id()
  local key = stream(event_type, level)
  local reply
  if subject then
    -- `p` names the event before this one of the same subject, so that a step can keep their order.
    local previous = redis.call('HGET', P .. 'tails:' .. event_type, subject) or ''
    set_tail(event_type, subject, level .. ':' .. id)
    reply = redis.pcall('XADD', key, id, 'b', body, 'p', previous)
    if reply.err then
      set_tail(event_type, subject, previous)
    end
  else
    reply = redis.pcall('XADD', key, id, 'b', body)
  end
  if reply.err then
    error(reply.err, 0)
  end
  added[event_type] = (added[event_type] or 0) + 1
  return id
end

-- Any group may append what is due; one that does not run cannot.
local function wake_all(event_type)
  for _, group in ipairs(redis.call('HKEYS', P .. 'done:' .. event_type)) do
    redis.pcall('XADD', P .. 'wake:' .. group, 'MAXLEN', '8', '*', 'w', '1')
  end
end

local function schedule(id, event_type, level, subject, body, due, is_delay)
  local member = string.format('%016.0f', redis.call('INCR', P .. 'scheduled:n'))
  redis.call('ZADD', P .. 'scheduled', due, member)
  if is_delay then
    redis.call('ZADD', P .. 'scheduled:since', now, member)
  end
  note_time()
  redis.call('HSET', P .. 'scheduled:events', member, cmsgpack.pack({ event_type, level, subject or false, body, id }))
  redis.call('HSET', P .. 'scheduled:ids', id, member)
  redis.call('HSETNX', P .. 'added', event_type, '0')
  if due - now < 1500 then
    wake_all(event_type) -- whoever waits there waits for less long now
  end
end

local made = {}

-- The events by id that were appended about when something was made; looked at once for many records of one call.
local function made_at(event_type, made_ms)
  local place = event_type .. ':' .. made_ms
  if not made[place] then
    made[place] = {}
    local from, to = made_ms - MADE_BEFORE_MS .. '-0', made_ms + MADE_WITHIN_MS .. '-0'
    for _, level in ipairs(LEVELS) do
      for _, entry in ipairs(redis.call('XRANGE', stream(event_type, level), from, to, 'COUNT', MADE_MOST)) do
        made[place][string.match(entry[2][2], '^{"id":"([^"]*)"') or ''] = entry[2][2]
      end
    end
  end
  return made[place]
end

-- An id that the log made itself is in no index, but it tells when it was made: there the event lies, if it is here and
-- did not wait for its time.
local function made_here(event_type, id)
  local member = redis.call('HGET', P .. 'scheduled:ids', id)
  if member then
    return cmsgpack.unpack(redis.call('HGET', P .. 'scheduled:events', member))[4]
  end
  local high, low = string.match(id, '^(%x%x%x%x%x%x%x%x)%-(%x%x%x%x)%-7')
  if high then
    return made_at(event_type, tonumber(high .. low, 16))[id]
  end
end

-- What an event says: without its time, which its publisher need not have given, its priority and its context.
local function said(body, time_at)
  local rest = string.gsub(string.sub(body, time_at + 1), '^,"time":"[^"]*"', '')
  rest = string.gsub(rest, '^,"priority":%d', '')
  return string.sub(body, 1, time_at), string.match(rest, '^(.-),"correlation_id":')
end

local function says_the_same(body, record)
  local before, subject = said(body, record[11])
  local own_before, own_subject = said(record[4], record[11])
  return before == own_before and subject == own_subject
end

-- What became of an earlier try of a record, as its receipt tells.
local function earlier_try(record)
  local key = P .. 'receipt:' .. record[13]
  local number, reply = string.match(redis.call('GET', key) or '', '^(%d+) (.*)$')
  local outcome = number == record[14] and tonumber(string.sub(reply, record[15], record[15]))
  if outcome == STORED or outcome == REPEATED then
    redis.call('PEXPIRE', key, CHOSEN_ID_MS) -- a write, so that a WAITAOF or WAIT behind it waits for what came before
    return REPEATED
  end
  if outcome == DUPLICATE then
    duplicates = duplicates + 1
  end
  return outcome ~= FULL and outcome or nil
end

local function is_within(window, one, other)
  return math.abs(one - other) < window
end

-- The outcome for what a journal took, judged by when it did so: whoever has its identity may have come later.
local function judge_journalled(record)
  local identity_key, window, persisted = P .. 'd:' .. record[6], record[7], record[12]
  local holder = redis.call('GET', identity_key)
  if holder == record[5] then
    redis.call('SET', P .. 'i:' .. holder, record[8] or '', 'PX', CHOSEN_ID_MS) -- also a write for a WAITAOF behind it
    return REPEATED
  end
  local held = holder and now - window + redis.call('PTTL', identity_key)
  local other = redis.call('GET', P .. 'j:' .. record[6])
  if (held and is_within(window, held, persisted)) or (other and is_within(window, tonumber(other), persisted)) then
    duplicates = duplicates + 1
    return DUPLICATE
  end
  if not other or tonumber(other) < persisted then
    redis.call('SET', P .. 'j:' .. record[6], string.format('%.0f', persisted), 'PX', JOURNALLED_MS)
  end
  local left = math.min(persisted, now) + window - now
  if record[13] then
    left = math.max(left, LATE_MS)
  end
  if left > 0 and not (held and held > persisted) then
    redis.call('SET', identity_key, record[5], 'PX', string.format('%.0f', left))
  end
end

local function take_identity(record)
  if record[12] > 0 then
    return judge_journalled(record)
  end
  local identity_key = P .. 'd:' .. record[6]
  local is_free = redis.call('SET', identity_key, record[5], 'NX', 'PX', record[7])
  if not is_free and not reclaim(identity_key, record[5], record[7]) then
    return remembered(identity_key, record[5])
  end
end

local checked = {}

-- Raise where a key cannot be read by a command for the type of value that the log keeps there. UNFIT: something else holds
-- a value there.
local function check(command, key)
  if checked[key] then
    return
  end
  local reply = redis.pcall(command, key)
  if type(reply) == 'table' then
    local is_foreign = string.match(reply.err, '^%-?WRONGTYPE ')
    error(is_foreign and 'UNFIT the key ' .. key .. ' holds a value that is not of the log' or reply.err, 0)
  end
  checked[key] = true
end

-- Raise where a record cannot be stored. After its first write an error would leave its id behind, and the event would
-- pass for stored when it is sent again.
local function check_keys(event_type, level, subject, due)
  local key = stream(event_type, level)
  if not checked[key] then
    check('XLEN', key)
  end
  if subject and not checked[event_type] then
    check('HLEN', P .. 'tails:' .. event_type)
    checked[event_type] = true
  end
  if due and not checked[''] then
    check('ZCARD', P .. 'scheduled')
    check('ZCARD', P .. 'scheduled:since')
    check('HLEN', P .. 'scheduled:events')
    check('HLEN', P .. 'scheduled:ids')
    checked[''] = true
  end
end

-- What was noted of a record that could not be stored: with it, the record would pass for stored when it is sent again.
local function forget(record, id_key)
  if id_key then
    redis.call('DEL', id_key)
  end
  if record[6] and redis.call('GET', P .. 'd:' .. record[6]) == record[5] then
    redis.call('DEL', P .. 'd:' .. record[6])
  end
  if record[6] and record[12] > 0 then
    redis.call('DEL', P .. 'j:' .. record[6])
  end
end

local function put(record)
  if record[9] > now then
    local is_delay = record[16] > 0
    local due = is_delay and math.min(record[9], now + record[16]) or record[9]
    schedule(record[5], record[1], record[2], record[3], record[4], due, is_delay)
  else
    return add(record[1], record[2], record[3], record[4])
  end
end

-- Return the outcome and, for a record that was appended, its id in the stream.
local function admit(record)
  local id, identity, content, journalled = record[5], record[6], record[8], record[12] > 0
  local fate = record[13] and earlier_try(record)
  if fate then
    return fate
  end
  local id_key
  if content or journalled or not identity then
    id_key = P .. 'i:' .. id
    local known = redis.call('GET', id_key)
    if known then
      if content and known ~= '' and known ~= content then
        return CLASH
      end
      if content or journalled then
        redis.call('PEXPIRE', id_key, CHOSEN_ID_MS) -- a write, for a WAITAOF or WAIT behind it
      end
      return REPEATED
    end
    local earlier = content and made_here(record[1], id)
    if earlier then
      return says_the_same(earlier, record) and REPEATED or CLASH
    end
  end
  check_keys(record[1], record[2], record[3], record[9] > now)
  if identity and record[7] > 0 then
    local taken = take_identity(record)
    if taken then
      return taken
    end
  end
  if record[10] > 0 and is_full(record[1], record[10]) then
    if identity then
      redis.call('DEL', P .. 'd:' .. identity)
    end
    return FULL
  end
  if id_key then
    redis.call('SET', id_key, content or '', 'PX', (content or journalled) and CHOSEN_ID_MS or OUTPUT_ID_MS)
  end
  local fine, placed = pcall(put, record)
  if not fine then
    forget(record, id_key)
    error(placed, 0)
  end
  return STORED, placed
end
