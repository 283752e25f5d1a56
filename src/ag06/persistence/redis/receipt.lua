-- A client that lost the connection before the reply sends the same call again; the receipt of the first one makes the
-- second harmless. A receipt is overwritten by the next call under the same name. ARGV, from `at`: name, number, again.
local RECEIPT_MS = '604800000'

local function earlier_reply(at)
  if ARGV[at + 2] == '1' then
    local key = P .. 'receipt:' .. ARGV[at]
    local number, reply = string.match(redis.call('GET', key) or '', '^(%d+) (.*)$')
    if number == ARGV[at + 1] then
      redis.call('PEXPIRE', key, RECEIPT_MS) -- a write, so that a WAITAOF or WAIT behind it waits for what came before
      return reply
    end
  end
end

local function keep_receipt(at, reply)
  redis.call('SET', P .. 'receipt:' .. ARGV[at], ARGV[at + 1] .. ' ' .. reply, 'PX', RECEIPT_MS)
end
