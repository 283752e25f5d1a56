-- Hand out deliveries by rank: what is ready again, and what is new in the four streams of the type.
-- ARGV: group, type, worker, limit, visibility in ms, sweep interval in ms, bytes of events after which the reply ends,
-- wake-up entries to forget...
-- Returns: ms until something is due (-1: nothing is), whether to ask again at once (1) or soon (2) or to wait for news
-- (0), new entries by level, ready ones.
local worker, limit, visibility = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local SWEPT = 100 -- expired leases looked at for each worker and stream in one sweep
local FROM_ITSELF = 2 -- in place of the fifth part of a note: the worker's own lease ended, and it may run it still
local MOST_BLOCKED = 100000 -- beyond this, what is new waits in the streams: a busy subject must not fill the memory

if redis.call('HEXISTS', P .. 'groups', group) == 0 then
  return redis.error_reply('NOGROUP the log does not know ' .. group)
end
if #ARGV > 7 then
  redis.call('XACK', WAKE, group, unpack(ARGV, 8))
end
local most_bytes, bytes = tonumber(ARGV[7]), 0
local FIRST_READ, MOST_READ = 4, 256 -- entries of each stream: their sizes are known only once they were read

-- Whether a worker was here later than now: the clock was set back since.
local function is_ahead(owner)
  local seen = tonumber(string.match(redis.call('HGET', LEASES, owner) or '', ' (%d+)$'))
  return seen and seen > now
end

-- Let the leases that a worker took later than now begin now, or they would last until the clock comes there again.
local function begin_leases_anew(owner, key)
  local from = '-'
  repeat
    local page = redis.call('XPENDING', key, group, from, '+', SWEPT, owner)
    for _, entry in ipairs(page) do
      if entry[3] == 0 then
        redis.call('XCLAIM', key, group, owner, 0, entry[1], 'TIME', now, 'JUSTID')
      end
    end
    from = #page > 0 and '(' .. page[#page][1]
  until #page < SWEPT
end

-- Note a worker's visibility, and when it was here: for forget.lua, and for a clock that is set back.
local function note_presence(owner, its_visibility)
  redis.call('HSET', LEASES, owner, string.format('%s %.0f', its_visibility, now))
end

local function earlier(a, b)
  if a and b then
    return math.min(a, b)
  end
  return a or b
end

local function end_waits()
  begin_anew(LATER, SINCE)
  local due = redis.call('ZRANGE', LATER, 0, limit, 'WITHSCORES')
  for i = 1, #due, 2 do
    local wait = tonumber(due[i + 1]) - now
    if wait > 0 then
      return wait
    end
    redis.call('ZADD', READY, rank(due[i]), due[i])
    redis.call('ZREM', LATER, due[i])
    redis.call('ZREM', SINCE, due[i])
  end
end

-- How long a worker may hold what it does not renew, in ms.
local function lease_of(owner)
  return tonumber(string.match(redis.call('HGET', LEASES, owner) or visibility, '^%d+'))
end

-- Offer what a worker holds for longer than its lease; it stays its own until somebody takes it.
local function sweep()
  local key = P .. 'swept:' .. group
  local last = tonumber(redis.call('GET', key) or '0')
  if last <= now and now - last < tonumber(ARGV[6]) then
    return
  end
  redis.call('SET', key, now)
  local ahead = {}
  for _, level in ipairs(STREAMS) do
    for _, holding in ipairs(redis.call('XPENDING', stream_of(level), group)[4] or {}) do
      local owner = holding[1]
      if owner ~= NOBODY then
        if is_ahead(owner) then
          begin_leases_anew(owner, stream_of(level))
          ahead[owner] = lease_of(owner)
        end
        for _, token in ipairs(tokens_of(owner, level, SWEPT, lease_of(owner))) do
          redis.call('ZADD', READY, rank(token), token)
        end
      end
    end
  end
  for owner, its_visibility in pairs(ahead) do
    note_presence(owner, its_visibility)
  end
end

-- Make a ready delivery the worker's own; nothing if it was settled, renewed or must wait for its subject. What is its own
-- already, after a pause past its lease, stays so under the same serial.
local function claim(token)
  local owner, idle, serial = holder(token)
  if not owner then
    return
  end
  local is_own, taken_over = owner == worker, owner ~= NOBODY
  if taken_over and idle < lease_of(owner) then
    return
  end
  local key, id, level = parse(token)
  serial = is_own and serial or serial + 1
  local entry = redis.call('XCLAIM', key, group, worker, 0, id, 'RETRYCOUNT', serial)[1]
  if not entry then
    return
  end
  local fields = entry[2]
  local note = taken_over and not is_own and blame_worker(token, LAPSED) or read_note(token)
  if is_own then
    note[5] = FROM_ITSELF
  end
  if fields[4] and fields[4] ~= '-' then
    local behind = blocker(token, fields[4])
    if behind then
      block(token, behind)
      return
    end
  end
  if level == 'x' then
    return { with_serial(token, serial), fields[2], fields[4] ~= '-' and 1 or 0, note, fields[8], fields[10] }
  end
  return { with_serial(token, serial), fields[2], fields[4] and 1 or 0, note }
end

-- Only then it is ready no more: if a command fails in between, somebody else finds it.
local function take(token)
  local taken = claim(token)
  redis.call('ZREM', READY, token)
  return taken
end

-- Undo the reading of what ranks too low to be handed out now: nobody else can have seen it.
local function unread(key, entries, from)
  local ids = {}
  for i = from, #entries do
    ids[#ids + 1] = entries[i][1]
  end
  redis.call('XACK', key, group, unpack(ids))
  redis.call('XGROUP', 'SETID', key, group, id_before(ids[1]))
  cursors[key] = nil
  for i = #entries, from, -1 do
    entries[i] = nil
  end
end

-- Read what is new in the streams, a little at a time, until there are `limit` events of one stream or bytes enough.
local function read_news(keys)
  local lists, by_key = {}, {}
  local wanted, events, count = limit, 0, math.min(limit, FIRST_READ)
  while count > 0 do
    local found = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', count, 'STREAMS', keys[1], keys[2], keys[3],
      keys[4], '>', '>', '>', '>')
    local full = false
    for _, list in ipairs(lists) do
      list.cut = false
    end
    for _, pair in ipairs(found or {}) do
      local list = by_key[pair[1]]
      if not list then
        list = { key = pair[1], level = string.sub(pair[1], -1), entries = {} }
        by_key[pair[1]] = list
        lists[#lists + 1] = list
      end
      list.cut = #pair[2] == count -- there may be more of a lower rank than what other streams have
      full = full or list.cut
      events = events + #pair[2]
      for _, entry in ipairs(pair[2]) do
        bytes = bytes + #entry[2][2]
        list.entries[#list.entries + 1] = entry
      end
    end
    wanted = wanted - count
    if not full or bytes >= most_bytes then
      break
    end
    count = math.min(wanted, MOST_READ, math.max(1, math.floor((most_bytes - bytes) * events / bytes / #lists)))
  end
  table.sort(lists, function(a, b)
    return a.level < b.level
  end)
  return lists
end

-- Choose the `limit` lowest ranks of all lists and of the ready ones, until there are bytes enough; take the ready ones.
-- Return how many of each list, and whether some were ready.
local function choose(lists, ready, olds)
  local heads, taken = {}, {}
  local function head(i)
    local entry = lists[i].entries[taken[i] + 1]
    heads[i] = entry and rank(lists[i].level .. ':' .. entry[1]) or math.huge
  end
  for i = 1, #lists do
    taken[i] = 0
    head(i)
  end
  local from_ready = 0
  local ready_head = tonumber(ready[2]) or math.huge
  bytes = 0
  for _ = 1, limit do
    local best, lowest = 0, ready_head
    for i = 1, #lists do
      if heads[i] < lowest then
        best, lowest = i, heads[i]
      end
    end
    if lowest == math.huge or bytes >= most_bytes then
      break
    elseif best == 0 then
      local old = take(ready[2 * from_ready + 1])
      if old then
        olds[#olds + 1] = old
        bytes = bytes + #old[2]
      end
      from_ready = from_ready + 1
      ready_head = tonumber(ready[2 * from_ready + 2]) or math.huge
    else
      taken[best] = taken[best] + 1
      bytes = bytes + #lists[best].entries[taken[best]][2][2]
      head(best)
      if lists[best].cut and not lists[best].entries[taken[best] + 1] then
        break
      end
    end
  end
  return taken, from_ready > 0
end

if is_ahead(worker) then
  for _, level in ipairs(STREAMS) do
    begin_leases_anew(worker, stream_of(level))
  end
end
note_presence(worker, visibility)
local due = earlier(promote(limit), end_waits())
keep_counts()
sweep()
local ready = redis.call('ZRANGE', READY, 0, limit - 1, 'WITHSCORES')
local keys = {}
for i, level in ipairs(LEVELS) do
  keys[i] = stream(event_type, level)
end
local lists, more = {}, 0
if redis.call('HLEN', BLOCKED) > MOST_BLOCKED then
  more = 2
else
  lists = read_news(keys)
end
local news, olds = {}, {}
local were_ready = false
if #lists > 1 or #ready > 0 or bytes >= most_bytes then
  local taken
  taken, were_ready = choose(lists, ready, olds)
  for i, list in ipairs(lists) do
    if taken[i] < #list.entries then
      more = 1
      unread(list.key, list.entries, taken[i] + 1)
    end
  end
end

for i, list in ipairs(lists) do
  local allowed = list.entries
  for _, entry in ipairs(list.entries) do
    if entry[2][4] then
      allowed = nil
      break
    end
  end
  if not allowed then
    allowed = {}
    for _, entry in ipairs(list.entries) do
      local behind
      local token = list.level .. ':' .. entry[1]
      if entry[2][4] then
        behind = blocker(token, entry[2][4])
      end
      if behind then
        more = 1
        block(token, behind)
      else
        allowed[#allowed + 1] = entry
      end
    end
  end
  news[i] = { list.level, allowed }
end
if were_ready then
  more = 1
  if redis.call('ZCARD', READY) > 0 then
    woken = math.max(woken, 1) -- somebody else may have room for the rest
  end
end
wake()
return { due or -1, more, news, olds }
