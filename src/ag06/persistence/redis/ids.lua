-- Arithmetic on stream ids.
local function id_before(id)
  local ms, n = split_id(id)
  if n > 0 then
    return ms .. '-' .. (n - 1)
  end
  return (ms - 1) .. '-18446744073709551615'
end

local function id_after(id)
  local ms, n = split_id(id)
  if n >= LARGEST_N then
    return (ms + 1) .. '-0' -- the log gives no larger n, and Lua's numbers end before the server's
  end
  return ms .. '-' .. (n + 1)
end

local function is_before(a, b)
  local a_ms, a_n = split_id(a)
  local b_ms, b_n = split_id(b)
  return a_ms < b_ms or (a_ms == b_ms and a_n < b_n)
end
