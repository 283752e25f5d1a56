-- A client that lost the connection before the reply sends the same call again; the receipt of the first one makes the
-- second harmless. A receipt is overwritten by the next call under the same name. ARGV, from `at`: name, number, again.
local RECEIPT_MS = '604800000'

local function earlier_reply(at)
  if ARGV[at + 2] == '1' then
    local number, reply = string.match(redis.call('GET', P .. 'receipt:' .. ARGV[at]) or '', '^(%d+) (.*)$')
    return number == ARGV[at + 1] and reply
  end
end

local function keep_receipt(at, reply)
  redis.call('SET', P .. 'receipt:' .. ARGV[at], ARGV[at + 1] .. ' ' .. reply, 'PX', RECEIPT_MS)
end
