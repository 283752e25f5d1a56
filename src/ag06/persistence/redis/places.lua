-- Where the groups of a type stand in its streams, and what may go for all of them.
local function fields_of(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

-- Of one stream, each group's number of pending entries and the first entry that it is not done with.
local function places(key)
  local found = {}
  local exists = redis.call('EXISTS', key) == 1
  for _, info in ipairs(exists and redis.call('XINFO', 'GROUPS', key) or {}) do
    info = fields_of(info)
    local place = { pending = info['pending'], read = info['last-delivered-id'] }
    place.floor = id_after(place.read)
    if place.pending > 0 then
      place.floor = redis.call('XPENDING', key, info['name'])[2]
    end
    found[info['name']] = place
  end
  return found, exists and fields_of(redis.call('XINFO', 'STREAM', key))['last-generated-id']
end

-- Trim what lies before an id, about `most` entries of it; returns how many went.
local function cut(key, below, most)
  local gone = redis.call('XTRIM', key, 'MINID', '~', below, 'LIMIT', most)
  if gone == 0 then
    gone = redis.call('XTRIM', key, 'MINID', '=', below) -- less than one node of the stream is left to cut
  end
  return gone
end

-- Up to where every group is done with a stream, but not beyond `bound`; nothing if a group's place is lost: it will begin
-- again, so all of it is needed.
local function done_below(found, groups, bound)
  local below = bound
  for _, group in ipairs(groups) do
    local place = found[group]
    if not place then
      return
    end
    if is_before(place.floor, below) then
      below = place.floor
    end
  end
  return below
end
