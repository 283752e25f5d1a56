-- Settle deliveries of one worker, named by tokens with serials. ARGV: group, type, receipt (3), worker, most it may hold,
-- lone tokens, settlements, pieces of settlements: what may be large, as the server limits the size of one argument.
-- A lone token is an acknowledgement without outputs, subject or note. A settlement is {kind, tokens, flags, ...}: kind
-- 0 acknowledges (how many pieces its outputs have), 1 postpones (delay in ms, attempts, first failure in ms), 2 buries
-- (event id; the dead letter is a piece);
-- flags has a digit for each token: 1 it has a subject, 2 it has a note, 3 both. A settlement whose tokens are not all
-- held by this worker is left out. Returns the lone tokens that were refused and a digit for each settlement.
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
local finished, done = {}, 0

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
    forget_try(bare(token))
  end
end

local function postpone(held_token, delay, attempts, first_ms)
  local token = bare(held_token)
  local note = read_note(token)
  -- What was not even tried stays suspect.
  write_note(token, { attempts, first_ms, note[3], attempts > note[1] and 0 or math.min(note[4], DIED), 0 })
  take_from_all(token)
  let_go(held, held_token)
  if delay <= 0 then
    make_ready(token)
  else
    redis.call('ZADD', LATER, now + delay, token)
    redis.call('ZADD', SINCE, now, token)
    if delay < 1500 then
      woken = woken + 1 -- who waits for news must wait for less long now
    end
  end
end

local function all_held(settlement)
  for _, token in ipairs(settlement[2]) do
    if not is_held(held, token) then
      return false
    end
  end
  return true
end

local refused, outcomes, settled = {}, {}, {}
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
    postpone(settlement[2][1], settlement[4], settlement[5], settlement[6])
  elseif accepted then
    settled[#settled + 1] = settlement
    for _, token in ipairs(settlement[2]) do
      finish(token)
    end
  end
end
for key, ids in pairs(finished) do
  for i = 1, #ids, MOST_ARGUMENTS do
    redis.call('XACK', key, group, unpack(ids, i, math.min(i + MOST_ARGUMENTS - 1, #ids)))
  end
end
for _, settlement in ipairs(settled) do
  if settlement[1] == 2 then
    redis.call('HSET', P .. 'dead:' .. group, settlement[4], ARGV[settlement.piece])
    redis.call('ZADD', P .. 'dead', now, group .. '\31' .. settlement[4])
  else
    for i = settlement.piece, settlement.piece + settlement[4] - 1 do
      for _, record in ipairs(cmsgpack.unpack(ARGV[i])) do
        admit(record)
      end
    end
  end
  for j, held_token in ipairs(settlement[2]) do
    local token = bare(held_token)
    local flag = tonumber(string.sub(settlement[3], j, j))
    if flag >= 2 then
      redis.call('HDEL', NOTES, token)
    end
    if flag % 2 == 1 then
      unblock(token)
    end
  end
end
if done > 0 then
  redis.call('HINCRBY', P .. 'done:' .. event_type, group, done)
end
keep_counts()
wake()
local reply = { refused, table.concat(outcomes) }
keep_receipt(3, cmsgpack.pack(reply))
return reply
