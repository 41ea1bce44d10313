-- Collections: maps, lists, sets, sorted sets, counters, counters of the different, work queues. Each is Redis' own structure
-- in keys of its own, with a header in meta as a document has; in the place of its codec the header names its kind. A change
-- is a part of a call, 'collection', so it is versioned, logged and remembered as every other.
--
-- Keys of a collection: its own, and
-- - map: the deadlines of entries (sorted set); - queue: ready (sorted set by order), leased (sorted set by deadline);
-- - unique: a key that is there during a merge only.

-- kind -> operation -> {check, apply, frees}; see `check_collection`. frees: it makes nothing larger, so it is never refused
-- for the size of what is there, by which a full collection could not be emptied.
local collections = {}

-- Values that the caller gets back, as "<length>:<value>" one after the other.
local function packed(values)
  local said = {}
  for i, value in ipairs(values) do said[i] = format('%d:', #value) .. value end
  return concat(said)
end

-- Gives the answer `full` when a collection of `count` entries would grow by `more`. limit: '<entries>' or '<entries> <what>'.
local function too_many(part, count, more)
  local most = tonumber(match(part.limit, '^%d+'))
  if most > 0 and count + more > most then return {'full', 'entries', text(most)} end
end

local function sum_is_bad(held, amount)
  if held and not match(held, '^%-?%d+$') then return true end
  local sum = tonumber(held or '0') + tonumber(amount)
  return sum > LARGEST or sum < -LARGEST, sum
end

-- Lists. The oldest entries make room for new ones.

local function list_push(_, part, args, at, last)
  local left, grown, dropped = args[at] == 'left', 0, 0
  for i = at + 1, last do grown = grown + #args[i] end
  for i = at + 1, last, 1000 do
    redis_call(left and 'LPUSH' or 'RPUSH', part.key, unpack(args, i, math_min(i + 999, last)))
  end
  local length, most = redis_call('LLEN', part.key), tonumber(part.limit)
  if most > 0 and length > most then
    dropped = length - most
    for _, value in ipairs(redis_call(left and 'RPOP' or 'LPOP', part.key, dropped)) do grown = grown - #value end
    length = most
  end
  return text(length), dropped > 0 and ',"dropped":' .. text(dropped) or '', grown
end

local function list_pop(_, part, args, at)
  local values = redis_call(args[at] == 'left' and 'LPOP' or 'RPOP', part.key, args[at + 1])
  if not values or #values == 0 then return '' end
  local grown = 0
  for _, value in ipairs(values) do grown = grown - #value end
  part.shrinks = true
  return packed(values), ',"count":' .. text(#values), grown
end

local function list_set(_, part, args, at)
  local old = redis_call('LINDEX', part.key, args[at])
  redis_call('LSET', part.key, args[at], args[at + 1])
  local index = tonumber(args[at])
  if index < 0 then index = index + redis_call('LLEN', part.key) end
  return '', ',"index":' .. text(index), #args[at + 1] - #old
end

-- Older values that another list had: as many of the newest of them as there is room for.
local function list_prepend(_, part, args, at, last)
  local room, grown, values = tonumber(part.limit) - redis_call('LLEN', part.key), 0, {}
  for i = math_max(at, last - room + 1), last do values[#values + 1], grown = args[i], grown + #args[i] end
  if #values == 0 then return '' end
  local said = concat(values, ',')
  for i = #values, 1, -1 do redis_call('LPUSH', part.key, values[i]) end
  return '', ',"values":[' .. said .. ']', grown
end

collections.list = {
  prepend = {apply = list_prepend},
  push = {apply = list_push},
  pop = {frees = true, apply = list_pop},
  set = {
    check = function(_, part, args, at)
      if not part.version or not redis_call('LINDEX', part.key, args[at]) then return {'absent'} end
    end,
    apply = list_set,
  },
}

-- Maps. An entry may have a deadline of its own.

local function lives(log, part, key)
  if redis_call('HEXISTS', part.key, key) == 0 then return false end
  if part.more == '' then return true end
  local deadline = redis_call('ZSCORE', part.keys[2], key)
  return not deadline or tonumber(deadline) > log.now
end

-- How many entries live.
local function count_map(log, part)
  if not part.version then return 0 end
  local held = redis_call('HLEN', part.key)
  return part.more == '' and held or held - redis_call('ZCOUNT', part.keys[2], '-inf', text(log.now))
end

local function weigh_entries(map, names)
  local bytes = 0
  for _, name in ipairs(names) do
    local size = redis_call('HSTRLEN', map, name)
    if size > 0 then bytes = bytes + #name + size end
  end
  return bytes
end

-- Removes the entries whose deadlines have passed, with an event. Returns the next deadline, or nil, and their bytes.
local function purge_map(log, map, entry, header, deadlines)
  local gone, names = redis_call('ZRANGE', deadlines, '-inf', text(log.now), 'BYSCORE'), {}
  for i, key in ipairs(gone) do names[i] = quote(key) end
  local freed = weigh_entries(map, gone)
  if #gone > 0 then
    append(log, begin_event(entry, header, 'entries_expired') .. ',"fields":[' .. concat(names, ',') .. ']')
    for i = 1, #gone, 1000 do
      local to = math_min(i + 999, #gone)
      redis_call('HDEL', map, unpack(gone, i, to))
      redis_call('ZREM', deadlines, unpack(gone, i, to))
    end
  end
  local first = redis_call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]), freed
end

-- arguments: 'any' | 'absent', time to live in ms, or '' to leave it as it is, key, value ...
local function map_put_check(log, part, args, at, last)
  local new = 0
  for i = at + 2, last, 2 do
    if not (part.version and lives(log, part, args[i])) then
      new = new + 1
    elseif args[at] == 'absent' then
      return {'exists'}
    end
  end
  return new > 0 and too_many(part, count_map(log, part), new)
end

local function set_deadline(log, part, key, deadline)
  redis_call('ZADD', part.keys[2], text(deadline), key)
  if not part.nearest or deadline < part.nearest then part.nearest = deadline end
  falls_due(log, deadline)
end

local function map_put(log, part, args, at, last)
  local added, grown, ttl = 0, 0, args[at + 1]
  for i = at + 2, last, 2 do
    local key, value = args[i], args[i + 1]
    local old = redis_call('HSTRLEN', part.key, key)
    if redis_call('HSET', part.key, key, value) == 1 then
      added, grown = added + 1, grown + #key + #value
    else
      grown = grown + #value - old
    end
    if ttl ~= '' then set_deadline(log, part, key, log.now + ttl) end
  end
  return text(added), '', grown
end

local function map_remove(_, part, args, at, last)
  local removed, grown = 0, 0
  for i = at, last do
    local size = redis_call('HSTRLEN', part.key, args[i])
    if redis_call('HDEL', part.key, args[i]) == 1 then
      removed, grown = removed + 1, grown - #args[i] - size
      if part.more ~= '' then redis_call('ZREM', part.keys[2], args[i]) end
    end
  end
  part.shrinks = true
  return text(removed), removed > 0 and '', grown
end

local function map_take(_, part, args, at)
  local value = redis_call('HGET', part.key, args[at])
  if not value then return '' end
  redis_call('HDEL', part.key, args[at])
  if part.more ~= '' then redis_call('ZREM', part.keys[2], args[at]) end
  part.shrinks = true
  return packed({value}), '', -#args[at] - #value
end

-- The entries of another map, where this one has none of their key. arguments: key, value, deadline or '' ...
local function map_fill(log, part, args, at, last)
  local grown, said = 0, {}
  for i = at, last, 3 do
    local deadline = tonumber(args[i + 2])
    if not (deadline and deadline <= log.now or part.version and lives(log, part, args[i])) then
      redis_call('HSET', part.key, args[i], args[i + 1])
      said[#said + 1], grown = quote(args[i]) .. ':' .. args[i + 1], grown + #args[i] + #args[i + 1]
      if deadline then set_deadline(log, part, args[i], deadline) end
    end
  end
  return '', #said > 0 and ',"put":{' .. concat(said, ',') .. '}', grown
end

-- A deadline of its own for an entry that is there. arguments: key, time to live in ms, 0 for none
local function map_expire(log, part, args, at)
  if not (part.version and lives(log, part, args[at])) then return '0' end
  if args[at + 1] == '0' then
    redis_call('ZREM', part.keys[2], args[at])
  else
    set_deadline(log, part, args[at], log.now + args[at + 1])
  end
  return '1', '', 0
end

collections.map = {
  expire = {apply = map_expire},
  fill = {apply = map_fill},
  put = {check = map_put_check, apply = map_put},
  remove = {frees = true, apply = map_remove},
  take = {frees = true, apply = map_take},
  add = {  -- key, amount
    check = function(log, part, args, at)
      local alive = part.version and lives(log, part, args[at])
      if sum_is_bad(alive and redis_call('HGET', part.key, args[at]), args[at + 1]) then return {'not_integer', args[at]} end
      return not alive and too_many(part, count_map(log, part), 1)
    end,
    apply = function(_, part, args, at)
      local before = redis_call('HSTRLEN', part.key, args[at])
      local sum = text(redis_call('HINCRBY', part.key, args[at], args[at + 1]))
      return sum, sum .. '}', #sum - before + (before == 0 and #args[at] or 0)
    end,
  },
}
collection_kinds.map = purge_map

-- Sets.

collections.set = {
  add = {
    check = function(_, part, args, at, last)
      local new = 0
      for i = at, last do
        if not part.version or redis_call('SISMEMBER', part.key, args[i]) == 0 then new = new + 1 end
      end
      return new > 0 and too_many(part, part.version and redis_call('SCARD', part.key) or 0, new)
    end,
    apply = function(_, part, args, at, last)
      local added, grown = 0, 0
      for i = at, last do
        if redis_call('SADD', part.key, args[i]) == 1 then added, grown = added + 1, grown + #args[i] end
      end
      return text(added), added > 0 and '', grown
    end,
  },
  discard = {
    frees = true,
    apply = function(_, part, args, at, last)
      local removed, grown = 0, 0
      for i = at, last do
        if redis_call('SREM', part.key, args[i]) == 1 then removed, grown = removed + 1, grown - #args[i] end
      end
      part.shrinks = true
      return text(removed), removed > 0 and '', grown
    end,
  },
}

-- Sorted sets. limit: '<entries> <which are kept when there are more: highest, lowest, or none: then it is full>'.

local function trim_sorted(part)
  local most, which = match(part.limit, '^(%d+) ?(%a*)')
  local excess = which ~= '' and redis_call('ZCARD', part.key) - tonumber(most) or 0
  if most == '0' or excess <= 0 then return '', 0 end
  local gone = redis_call(which == 'highest' and 'ZPOPMIN' or 'ZPOPMAX', part.key, excess)
  local members, grown = {}, 0
  for i = 1, #gone, 2 do members[#members + 1], grown = gone[i], grown - #gone[i] - 8 end
  return ',"dropped":[' .. concat(members, ',') .. ']', grown
end

local function sorted_room(part, new)
  return new > 0 and match(part.limit, ' $') and too_many(part, part.version and redis_call('ZCARD', part.key) or 0, new)
end

local function better(how, held, score)
  if not held or how == 'any' then return true end
  if how == 'higher' then return tonumber(score) > tonumber(held) end
  return tonumber(score) < tonumber(held)
end

-- arguments: 'any' | 'higher' | 'lower', score, member ...
local function sorted_put_check(_, part, args, at, last)
  local new = 0
  for i = at + 1, last, 2 do
    if not (part.version and redis_call('ZSCORE', part.key, args[i + 1])) then new = new + 1 end
  end
  return sorted_room(part, new)
end

local function sorted_put(_, part, args, at, last)
  local added, grown, said = 0, 0, {}
  for i = at + 1, last, 2 do
    local score, member = args[i], args[i + 1]
    local held = redis_call('ZSCORE', part.key, member)
    if better(args[at], held, score) then
      redis_call('ZADD', part.key, score, member)
      if not held then added, grown = added + 1, grown + #member + 8 end
      said[#said + 1] = '[' .. member .. ',' .. score .. ']'
    end
  end
  if #said == 0 then return '0' end
  local dropped, lost = trim_sorted(part)
  return text(added), ',"scores":[' .. concat(said, ',') .. ']' .. dropped, grown + lost
end

local function sorted_increment(_, part, args, at)
  local is_new = not redis_call('ZSCORE', part.key, args[at + 1])
  local score = redis_call('ZINCRBY', part.key, args[at], args[at + 1])
  local dropped, lost = trim_sorted(part)
  return score, ',"score":' .. score .. dropped, (is_new and #args[at + 1] + 8 or 0) + lost
end

local function sorted_remove(_, part, args, at, last)
  local removed, grown = 0, 0
  for i = at, last do
    if redis_call('ZREM', part.key, args[i]) == 1 then removed, grown = removed + 1, grown - #args[i] - 8 end
  end
  part.shrinks = true
  return text(removed), removed > 0 and '', grown
end

local function sorted_pop(_, part, args, at)
  local gone = redis_call(args[at] == 'lowest' and 'ZPOPMIN' or 'ZPOPMAX', part.key, args[at + 1])
  if #gone == 0 then return '' end
  local members, grown = {}, 0
  for i = 1, #gone, 2 do members[#members + 1], grown = gone[i], grown - #gone[i] - 8 end
  part.shrinks = true
  return packed(gone), ',"dropped":[' .. concat(members, ',') .. ']', grown
end

collections.sorted = {
  put = {check = sorted_put_check, apply = sorted_put},
  increment = {
    check = function(_, part, args, at)
      local held = part.version and redis_call('ZSCORE', part.key, args[at + 1])
      local sum = tonumber(held or '0') + tonumber(args[at])
      if sum - sum ~= 0 then return {'infinite'} end  -- JSON, and so the log, has no such number
      return sorted_room(part, held and 0 or 1)
    end,
    apply = sorted_increment,
  },
  remove = {frees = true, apply = sorted_remove},
  pop = {frees = true, apply = sorted_pop},
}

-- Counters. arguments: 'add' amount, or 'set' value; then the least and the most that it may be, or ''.

local function counter_check(add)
  return function(_, part, args, at)
    local bad, sum = sum_is_bad(add and part.version and redis_call('GET', part.key), args[at])
    if bad then return {'not_integer', ''} end
    -- What is beyond a bound already, after a merge, may come back, but not go further.
    local least, most, amount = tonumber(args[at + 1]), tonumber(args[at + 2]), add and tonumber(args[at]) or 0
    if least and sum < least and amount <= 0 or most and sum > most and amount >= 0 then return {'bounds', text(sum)} end
    part.sum = text(sum)
  end
end

local function counter_apply(_, part)
  redis_call('SET', part.key, part.sum, 'KEEPTTL')
  return part.sum, ',"value":' .. part.sum, 0
end

collections.counter = {
  add = {check = counter_check(true), apply = counter_apply},
  set = {check = counter_check(false), apply = counter_apply},
}

-- Counters of the different (HyperLogLog).

collections.unique = {
  add = {
    apply = function(_, part, args, at, last)
      local changed = 0
      for i = at, last, 1000 do
        changed = changed + redis_call('PFADD', part.key, unpack(args, i, math_min(i + 999, last)))
      end
      local count = text(redis_call('PFCOUNT', part.key))
      return count, changed > 0 and ',"count":' .. count, part.version and 0 or 12304
    end,
  },
  absorb = {  -- another one, as Redis stores it
    check = function(_, part, args, at)
      redis_call('SET', part.keys[2], args[at])
      local read = redis_pcall('PFMERGE', part.keys[2], part.keys[2])
      redis_call('DEL', part.keys[2])
      if read.err then return {'damaged'} end
    end,
    apply = function(_, part, args, at)
      redis_call('SET', part.keys[2], args[at])
      redis_call('PFMERGE', part.key, part.keys[2])
      redis_call('UNLINK', part.keys[2])
      local count = text(redis_call('PFCOUNT', part.key))
      return count, ',"count":' .. count, part.version and 0 or 12304
    end,
  },
}

-- Work queues. An item waits in `ready` by its number, or in `leased` until a deadline; its value is "<attempts> <payload>".
-- Who settles an item names the attempt that he was given, so nobody settles an item that was given to somebody else.

-- arguments: delay in ms, payload ...
local function queue_put_items(log, part, args, at, last)
  local first, ids, grown = (log.offset + 1) * 1000, {}, 0
  for i = at + 1, last do
    local id = text(first + i - at - 1)
    redis_call('HSET', part.key, id, '0 ' .. args[i])
    if args[at] == '0' then
      redis_call('ZADD', part.keys[2], id, id)
    else
      redis_call('ZADD', part.keys[3], text(log.now + args[at]), id)
    end
    ids[#ids + 1], grown = id, grown + #id + #args[i] + 2
  end
  return concat(ids, ' '), ',"ids":[' .. concat(ids, ',') .. ']', grown
end

-- The items of another queue. arguments: "<attempts> <payload>", the deadline of a lease or delay or '' ...
local function queue_fill(log, part, args, at, last)
  local first, ids, grown = (log.offset + 1) * 1000, {}, 0
  for i = at, last, 2 do
    local id = text(first + (i - at) / 2)
    redis_call('HSET', part.key, id, args[i])
    redis_call('ZADD', part.keys[args[i + 1] == '' and 2 or 3], args[i + 1] == '' and id or args[i + 1], id)
    ids[#ids + 1], grown = id, grown + #id + #args[i]
  end
  return '', ',"ids":[' .. concat(ids, ',') .. ']', grown
end

-- arguments: most, lease in ms   result: id, attempt, payload of each, packed; or "wait <ms until a lease ends>"
local function queue_claim(log, part, args, at)
  local items, ready, leased = part.key, part.keys[2], part.keys[3]
  for _, id in ipairs(redis_call('ZRANGE', leased, '-inf', text(log.now), 'BYSCORE', 'LIMIT', 0, 1000)) do
    redis_call('ZREM', leased, id)
    redis_call('ZADD', ready, id, id)
  end
  local taken, found, said = redis_call('ZPOPMIN', ready, args[at]), {}, {}
  local grown = 0
  for i = 1, #taken, 2 do
    local id = taken[i]
    local held = redis_call('HGET', items, id) or ''
    local attempts, payload = match(held, '^(%d+) (.*)$')
    if not attempts then attempts, payload = '0', held end  -- damaged: its worker is told when it looks at the value
    local before = #attempts
    attempts = text(attempts + 1)
    grown = grown + #attempts - before
    redis_call('HSET', items, id, attempts .. ' ' .. payload)
    redis_call('ZADD', leased, text(log.now + args[at + 1]), id)
    found[#found + 1], found[#found + 2], found[#found + 3] = id, attempts, payload
    said[#said + 1] = '[' .. id .. ',' .. attempts .. ']'
  end
  if #found == 0 then
    local nearest = redis_call('ZRANGE', leased, 0, 0, 'WITHSCORES')
    return 'wait ' .. (nearest[2] and text(tonumber(nearest[2]) - log.now) or '')
  end
  return packed(found), ',"claims":[' .. concat(said, ',') .. ']', grown
end

-- arguments: 'done' | 'return' | 'extend', id, attempt, ms
local function queue_settle_check(_, part, args, at)
  local item = part.version and redis_call('HGET', part.key, args[at + 1])
  local attempt = item and match(item, '^(%d+) ')
  if attempt ~= args[at + 2] or not redis_call('ZSCORE', part.keys[3], args[at + 1]) then return {'lease_lost'} end
end

local function queue_settle_item(log, part, args, at)
  local how, id, grown = args[at], args[at + 1], 0
  if how == 'done' then
    grown = -redis_call('HSTRLEN', part.key, id) - #id
    redis_call('ZREM', part.keys[3], id)
    redis_call('HDEL', part.key, id)
    part.shrinks = true
  elseif how == 'return' and args[at + 3] == '0' then
    redis_call('ZREM', part.keys[3], id)
    redis_call('ZADD', part.keys[2], id, id)
  else
    redis_call('ZADD', part.keys[3], text(log.now + args[at + 3]), id)
  end
  return '', '', grown
end

collections.queue = {
  put = {
    check = function(_, part, _, at, last)
      return too_many(part, part.version and redis_call('HLEN', part.key) or 0, last - at)
    end,
    apply = queue_put_items,
  },
  fill = {apply = queue_fill},
  claim = {frees = true, apply = queue_claim},
  settle = {frees = true, check = queue_settle_check, apply = queue_settle_item},
}

-- The other kinds have no entries with deadlines of their own.
collection_kinds.list, collection_kinds.set, collection_kinds.sorted = purge, purge, purge
collection_kinds.counter, collection_kinds.unique, collection_kinds.queue = purge, purge, purge

local COLLECTION_BYTES = 16777216

-- A part of a call. arguments: entry, expected, ttl in ms or 0, lifetime in ms or 0, kind, limit, operation, event head, then
-- the operation's. refusals: {"conflict", ...} | {"kind", found} | {"full", what, limit} | {"large", bytes}
--   | {"not_integer", name} | {"infinite"} | {"exists"} | {"absent"} | {"bounds", sum} | {"lease_lost"} | {"damaged"}
local function check_collection(log, part, args, at, last)
  local version, bytes, collected, _, more = look(part.header, log.now)
  local found = version and match(part.header, '^%d+ %d+ %d+ %x+ %d+ (%S+)')
  if found and found ~= args[at + 4] then return {'kind', found} end
  if not meets(version, args[at + 1]) or version and ended_since(log, part, args[at], args[at + 1]) then
    return {'conflict', '', {}, 'version'}
  end
  part.version, part.bytes, part.collected = version, bytes or 0, collected or 0
  part.more, part.limit = more or '', args[at + 5]
  part.operation = collections[args[at + 4]][args[at + 6]]
  local grown = 0
  if not part.operation.frees then
    for i = at + 8, last do grown = grown + #args[i] end
  end
  if grown > 0 and part.bytes + grown > COLLECTION_BYTES then
    local gone = found == 'map' and redis_call('ZRANGE', part.keys[2], '-inf', text(log.now), 'BYSCORE') or {}
    local bytes = part.bytes + grown - weigh_entries(part.key, gone)
    if bytes > COLLECTION_BYTES then return {'large', text(bytes)} end
  end
  local reply = part.operation.check and part.operation.check(log, part, args, at + 8, last)
  if reply then return reply end
  if part.operation.frees then return nil end
  if not version or part.bytes + grown - (part.bytes + grown) % WEIGHED > part.bytes then
    return over_quota(log, args[at], part.bytes + grown, part.bytes, not version)
  end
end

local function apply_collection(log, part, args, at, last)
  local entry, ttl, lifetime, before = args[at], tonumber(args[at + 2]), tonumber(args[at + 3]), log.offset
  if not part.version then
    if part.header then append(log, begin_event(entry, part.header, 'expired')) end
    redis_call('UNLINK', unpack(part.keys))  -- what an expired one left
  end
  part.nearest = tonumber(match(part.more, ' next=(%d+)'))
  if part.nearest and part.nearest <= log.now then
    local freed
    part.nearest, freed = collection_kinds[args[at + 4]](log, part.key, entry, part.header, part.keys[2])
    part.bytes = part.bytes - (freed or 0)
    if redis_call('EXISTS', part.key) == 0 then part.collected = 0 end  -- its time-out went with the last entry
  end
  local result, tail, grown = part.operation.apply(log, part, args, at + 8, last)
  if not tail then
    if log.offset == before then return result end  -- nothing has changed
    if not part.version then  -- what has changed is that the old one is known to have expired
      redis_call('SREM', log.keys[4], entry)
      redis_call('HDEL', log.keys[1], entry)
      return result
    end
    grown = 0
  else
    append(log, args[at + 7] .. tail)
  end
  local deadline = ttl + lifetime > 0 and deadline_of(log, part, ttl, lifetime) or 0
  local extra = part.born and ' born=' .. text(part.born) or ''
  if part.nearest then extra = extra .. ' next=' .. text(part.nearest) end
  part.deadline, part.outlive = part.version and deadline_in(part.header) or 0, 0
  local collected = keep_until(log, part, deadline, ttl > 0 and ttl or lifetime, not part.version)
  for i = 2, #part.keys do
    if deadline > 0 then
      redis_call('PEXPIREAT', part.keys[i], text(deadline + deadline - log.now + GRACE + 1000))
    elseif part.collected > 0 then  -- it had a time to live, and has none any more
      redis_call('PERSIST', part.keys[i])
    end
  end
  if not part.version then redis_call('SADD', log.keys[4], entry) end
  local bytes = part.bytes + grown
  if bytes < 0 then bytes = 0 end
  return result, nil, spell_header(deadline, collected, log.position, bytes, args[at + 4] .. ' 0' .. extra)
end

parts.collection = {check = check_collection, apply = apply_collection}
parts.erase = {  -- the whole collection: entry, expected, event, kind
  check = function(log, part, args, at)
    part.version = look(part.header, log.now)
    local found = part.version and match(part.header, '^%d+ %d+ %d+ %x+ %d+ (%S+)')
    if found and found ~= args[at + 3] then return {'kind', found} end  -- it has other keys
    if not meets(part.version, args[at + 1]) or part.version and ended_since(log, part, args[at], args[at + 1]) then
      return {'conflict', '', {}, 'version'}
    end
  end,
  apply = function(log, part, args, at)
    if not part.version then return '' end
    append(log, args[at + 2])
    redis_call('UNLINK', unpack(part.keys))
    redis_call('SREM', log.keys[4], args[at])
    redis_call('HDEL', log.keys[1], args[at])
    return log.position
  end,
}

-- Values under another key of encryption: entry, expected, kind, event, then index, key or id, and value of each. They are
-- the same values, so no deadline moves.
local replace_value = {
  list = function(key, index, value)
    local before = redis_call('LINDEX', key, index)
    redis_call('LSET', key, index, value)
    return #value - #before
  end,
  map = function(key, name, value)
    local before = redis_call('HSTRLEN', key, name)
    redis_call('HSET', key, name, value)
    return #value - before
  end,
  queue = function(key, id, value)
    local attempts, before = match(redis_call('HGET', key, id), '^(%d+ )(.*)$')
    redis_call('HSET', key, id, attempts .. value)
    return #value - #before
  end,
}
parts.reseal = {
  check = function(log, part, args, at)
    local version, bytes = look(part.header, log.now)
    if not version or not meets(version, args[at + 1]) then return {'conflict', '', {}, 'version'} end
    part.bytes = bytes
  end,
  apply = function(log, part, args, at, last)
    local replace, grown = replace_value[args[at + 2]], 0
    append(log, args[at + 3])
    for i = at + 4, last, 2 do grown = grown + replace(part.key, args[i], args[i + 1]) end
    local times, rest = match(part.header, '^(%d+ %d+ )%d+ %x+ %d+ (.*)$')
    return '', nil, times .. log.position .. ' ' .. text(part.bytes + grown) .. ' ' .. rest
  end,
}

-- Reading. Each is given (keys, args, at, now); keys[2] is the collection. The reply is a list.

-- What a merge moves: field, value, deadline or '' of each.
local function with_deadlines(held, deadlines)
  local rest = {}
  for i = 1, #held, 2 do
    local deadline = redis_call('ZSCORE', deadlines, held[i])
    rest[#rest + 1], rest[#rest + 2], rest[#rest + 3] = held[i], held[i + 1], deadline and text(tonumber(deadline)) or ''
  end
  return rest
end

readers = {
  map = {
    get = function(keys, args, at)
      local values = redis_call('HMGET', keys[2], unpack(args, at))
      local deadlines = redis_call('ZMSCORE', keys[3], unpack(args, at))
      return values, deadlines
    end,
    len = function(keys, _, _, now)
      return {text(redis_call('HLEN', keys[2]) - redis_call('ZCOUNT', keys[3], '-inf', text(now)))}
    end,
    all = function(keys, _, _, now)
      local held, gone, rest = redis_call('HGETALL', keys[2]), {}, {}
      for _, key in ipairs(redis_call('ZRANGE', keys[3], '-inf', text(now), 'BYSCORE')) do gone[key] = true end
      for i = 1, #held, 2 do
        if not gone[held[i]] then rest[#rest + 1], rest[#rest + 2] = held[i], held[i + 1] end
      end
      return rest
    end,
    moving = function(keys, args, at, now) return with_deadlines(readers.map.all(keys, args, at, now), keys[3]) end,
    page = function(keys, args, at, now)
      local found, rest = redis_call('HSCAN', keys[2], args[at], 'COUNT', args[at + 1]), nil
      rest = {found[1]}
      for i = 1, #found[2], 2 do
        local deadline = redis_call('ZSCORE', keys[3], found[2][i])
        if not deadline or tonumber(deadline) > now then
          rest[#rest + 1], rest[#rest + 2] = found[2][i], found[2][i + 1]
        end
      end
      return rest
    end,
  },
  list = {
    range = function(keys, args, at) return redis_call('LRANGE', keys[2], args[at], args[at + 1]) end,
    len = function(keys) return {text(redis_call('LLEN', keys[2]))} end,
    all = function(keys) return redis_call('LRANGE', keys[2], 0, -1) end,
  },
  set = {
    has = function(keys, args, at) return redis_call('SMISMEMBER', keys[2], unpack(args, at)) end,
    len = function(keys) return {text(redis_call('SCARD', keys[2]))} end,
    all = function(keys) return redis_call('SMEMBERS', keys[2]) end,
    page = function(keys, args, at)
      local found = redis_call('SSCAN', keys[2], args[at], 'COUNT', args[at + 1])
      local rest = {found[1]}
      for i = 1, #found[2] do rest[i + 1] = found[2][i] end
      return rest
    end,
  },
  sorted = {
    rank = function(keys, args, at)
      return {redis_call(args[at] == 'highest' and 'ZREVRANK' or 'ZRANK', keys[2], args[at + 1])}
    end,
    scores = function(keys, args, at) return redis_call('ZMSCORE', keys[2], unpack(args, at)) end,
    range = function(keys, args, at)
      local command = args[at] == 'highest' and 'ZREVRANGE' or 'ZRANGE'
      return redis_call(command, keys[2], args[at + 1], args[at + 2], 'WITHSCORES')
    end,
    between = function(keys, args, at)  -- order, from, to, offset, limit
      local rest = {'LIMIT', args[at + 3], args[at + 4], 'WITHSCORES'}
      if args[at] == 'highest' then
        return redis_call('ZREVRANGEBYSCORE', keys[2], args[at + 2], args[at + 1], unpack(rest))
      end
      return redis_call('ZRANGEBYSCORE', keys[2], args[at + 1], args[at + 2], unpack(rest))
    end,
    count = function(keys, args, at) return {text(redis_call('ZCOUNT', keys[2], args[at], args[at + 1]))} end,
    len = function(keys) return {text(redis_call('ZCARD', keys[2]))} end,
    all = function(keys) return redis_call('ZRANGE', keys[2], 0, -1, 'WITHSCORES') end,
  },
  counter = {all = function(keys) return {redis_call('GET', keys[2]) or '0'} end},
  unique = {
    count = function(keys) return {text(redis_call('PFCOUNT', keys[2]))} end,
    all = function(keys) return {redis_call('GET', keys[2]) or ''} end,
  },
  queue = {
    len = function(keys) return {text(redis_call('ZCARD', keys[3])), text(redis_call('ZCARD', keys[4]))} end,
    moving = function(keys) return with_deadlines(redis_call('HGETALL', keys[2]), keys[4]) end,
  },
}

-- collection_read: a part of a collection, with its version and the log's position of the same moment
-- keys: meta, those of the collection   arguments: entry, kind, what, then the reader's
-- reply: {"ok", epoch, offset, header or '', list ...} | {"merged", customer} | {"kind", found}
local function collection_read(keys, args)
  local epoch, offset, into, header = read_meta(keys[1], args[1])
  if into then return {'merged', into} end
  local now = milliseconds()
  if not look(header, now) then return {'ok', epoch or '', offset, '', {}} end
  local found = match(header, '^%d+ %d+ %d+ %x+ %d+ (%S+)')
  if found ~= args[2] then return {'kind', found} end
  local values, deadlines = readers[args[2]][args[3]](keys, args, 4, now)
  for i = 1, deadlines and #deadlines or 0 do
    if deadlines[i] and tonumber(deadlines[i]) <= now then values[i] = false end
  end
  return {'ok', epoch, offset, header, values}
end

define('collection_read', collection_read, READS)
define('collection_count', collection_read)  -- PFCOUNT is refused to functions that only read: it keeps its result
