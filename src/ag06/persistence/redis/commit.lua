-- Settle deliveries of one worker, named by tokens with serials. ARGV: group, type, receipt (3), worker, most it may hold,
-- lone tokens, settlements, pieces of settlements: what may be large, as the server limits the size of one argument.
-- A lone token is an acknowledgement without outputs, subject or note. A settlement is {kind, tokens, flags, ...}: kind
-- 0 acknowledges (how many pieces its outputs have), 1 postpones (delay in ms, attempts, first failure in ms), 2 buries
-- (event id; the dead letter is a piece);
-- flags has a digit for each token: 1 it has a subject, 2 it has a note, 3 both. A settlement whose tokens are not all
-- held by this worker is left out. Returns the lone tokens that were refused and a digit for each settlement.
-- All that it accepts is done, or nothing: where a part fails, it returns that error, UNFIT for an output or a dead letter
-- whose key holds something else.
local earlier = earlier_reply(3)
if earlier then
  return cmsgpack.unpack(earlier)
end
local worker, bound = ARGV[6], tonumber(ARGV[7])
local lone, settlements = cmsgpack.unpack(ARGV[8]), cmsgpack.unpack(ARGV[9])
local tokens = {}
for i, token in ipairs(lone) do
  tokens[i] = token
end
local piece = 10
for _, settlement in ipairs(settlements) do
  settlement.piece = piece
  piece = piece + (settlement[1] == 0 and settlement[4] or settlement[1] == 2 and 1 or 0)
  for _, token in ipairs(settlement[2]) do
    tokens[#tokens + 1] = token
  end
end
local held = held_by(worker, tokens, bound)
local finished, done, tries = {}, 0, {}

-- Settled tokens gather here: one XACK a stream is far cheaper than one a token.
local function finish(token)
  local key, id, level = parse(token)
  if not finished[key] then
    finished[key] = {}
  end
  table.insert(finished[key], id)
  done = done + 1
  let_go(held, token)
  if level == 'x' then
    tries[#tries + 1] = bare(token)
  end
end

local function postpone(held_token, delay, attempts, first_ms)
  local token = bare(held_token)
  local note = read_note(token)
  -- What was not even tried stays suspect.
  write_note(token, { attempts, first_ms, note[3], attempts > note[1] and 0 or math.min(note[4], DIED), 0 })
  if delay <= 0 then
    make_ready(token)
  else
    redis.call('ZADD', LATER, now + delay, token)
    redis.call('ZADD', SINCE, now, token)
    if delay < 1500 then
      woken = woken + 1 -- who waits for news must wait for less long now
    end
  end
  take_from_all(token) -- last: what nobody holds must wait somewhere
end

local function all_held(settlement)
  for _, token in ipairs(settlement[2]) do
    if not is_held(held, token) then
      return false
    end
  end
  return true
end

local refused, outcomes, settled, postponed = {}, {}, {}, {}
for _, token in ipairs(lone) do
  if is_held(held, token) then
    finish(token)
  else
    refused[#refused + 1] = token
  end
end
for i, settlement in ipairs(settlements) do
  local accepted = all_held(settlement)
  outcomes[i] = accepted and '1' or '0'
  if accepted and settlement[1] == 1 then
    postponed[#postponed + 1] = settlement
    let_go(held, settlement[2][1])
  elseif accepted then
    settled[#settled + 1] = settlement
    for _, token in ipairs(settlement[2]) do
      finish(token)
    end
  end
end

local function count(settled_deliveries)
  if settled_deliveries ~= 0 then
    redis.call('HINCRBY', P .. 'done:' .. event_type, group, settled_deliveries)
  end
end

local function acknowledge()
  for key, ids in pairs(finished) do
    for i = 1, #ids, MOST_ARGUMENTS do
      redis.call('XACK', key, group, unpack(ids, i, math.min(i + MOST_ARGUMENTS - 1, #ids)))
    end
  end
end

-- Do what comes with acknowledgements, and these; return the error of what failed, and then nothing is done.
local function settle_all()
  -- Undo that a record was stored, under this id in its stream or, without one, as scheduled.
  local function take_back(record, placed)
    local event_type, subject, id = record[1], record[3], record[5]
    if placed then
      local key = stream(event_type, record[2])
      local entry = redis.call('XRANGE', key, placed, placed)[1]
      redis.call('XDEL', key, placed)
      added[event_type] = (added[event_type] or 0) - 1
      if subject then
        set_tail(event_type, subject, entry[2][4])
      end
    else
      local member = redis.call('HGET', P .. 'scheduled:ids', id)
      redis.call('ZREM', P .. 'scheduled', member)
      redis.call('ZREM', P .. 'scheduled:since', member)
      redis.call('HDEL', P .. 'scheduled:events', member)
      redis.call('HDEL', P .. 'scheduled:ids', id)
    end
    forget(record, P .. 'i:' .. id)
  end

  -- Raise where a key of the group that is written below holds something else. Each command costs the server as much as a
  -- tenth of a settlement, so only what is written is looked at.
  local function check_group()
    local are_noted, are_ordered = #postponed > 0, #postponed > 0
    for _, settlement in ipairs(settled) do
      are_noted = are_noted or string.find(settlement[3], '[23]') ~= nil
      are_ordered = are_ordered or string.find(settlement[3], '[13]') ~= nil
    end
    if are_noted then
      redis.call('HLEN', NOTES)
    end
    if are_ordered then
      redis.call('HLEN', BLOCKED)
      redis.call('ZCARD', READY)
      redis.call('XLEN', WAKE)
    end
    if #postponed > 0 then
      redis.call('ZCARD', LATER)
      redis.call('ZCARD', SINCE)
    end
    if #tries > 0 then
      redis.call('HLEN', AGAIN)
    end
  end

  local function check_targets()
    for _, settlement in ipairs(settled) do
      if settlement[1] == 2 then
        check('HLEN', P .. 'dead:' .. group)
        check('ZCARD', P .. 'dead')
      else
        settlement.records = {}
        for i = settlement.piece, settlement.piece + settlement[4] - 1 do
          for _, record in ipairs(cmsgpack.unpack(ARGV[i])) do
            check_keys(record[1], record[2], record[3], record[9] > now)
            table.insert(settlement.records, record)
          end
        end
      end
    end
  end

  local counted, stored, buried = false, {}, {}

  local function bury(event_id, letter)
    if redis.call('HSET', P .. 'dead:' .. group, event_id, letter) == 1 then
      buried[#buried + 1] = event_id
    end
    redis.call('ZADD', P .. 'dead', now, group .. '\31' .. event_id)
  end

  -- The acknowledgements come last, behind all that belongs to them. A subject that is free too early is harmless, as
  -- `take` looks again.
  local function write()
    count(done)
    counted = true
    for _, settlement in ipairs(settled) do
      if settlement[1] == 2 then
        bury(settlement[4], ARGV[settlement.piece])
      end
      for _, record in ipairs(settlement.records or {}) do
        local outcome, placed = admit(record)
        if outcome == STORED then
          stored[#stored + 1] = { record, placed }
        end
      end
      for j, held_token in ipairs(settlement[2]) do
        if tonumber(string.sub(settlement[3], j, j)) % 2 == 1 then
          unblock(bare(held_token))
        end
      end
    end
    keep_counts()
    acknowledge()
  end

  local function undo()
    for i = #stored, 1, -1 do
      take_back(stored[i][1], stored[i][2])
    end
    for _, event_id in ipairs(buried) do
      redis.call('HDEL', P .. 'dead:' .. group, event_id)
      redis.call('ZREM', P .. 'dead', group .. '\31' .. event_id)
    end
    if counted then
      count(-done)
    end
  end

  local function settle()
    check_group()
    check_targets()
    write()
  end

  local fine, refusal = pcall(settle)
  if not fine then
    -- What cannot be undone either stays, under ids that make it the same when it is done again.
    pcall(undo)
    keep_clock()
    pcall(keep_counts)
    return type(refusal) == 'table' and refusal or redis.error_reply(refusal)
  end
end

if #settlements == 0 then
  count(done)
  acknowledge()
else
  local refusal = settle_all()
  if refusal then
    return refusal
  end
end
for _, settlement in ipairs(settled) do
  for j, held_token in ipairs(settlement[2]) do
    if tonumber(string.sub(settlement[3], j, j)) >= 2 then
      redis.call('HDEL', NOTES, bare(held_token))
    end
  end
end
for _, token in ipairs(tries) do
  forget_try(token)
end
for _, settlement in ipairs(postponed) do
  postpone(settlement[2][1], settlement[4], settlement[5], settlement[6])
end
wake()
local reply = { refused, table.concat(outcomes) }
keep_receipt(3, cmsgpack.pack(reply))
return reply
