-- Documents. A document is a hash: a header under '@', one field per field of the class, one per entry of a mapping.
-- Values are opaque bytes. The index is a set that names the documents of a log's owner, for merge, export and erasure; an
-- expired document may still be named there. Header: "<offset> <epoch> <bytes> <codec> <class version>".

local function refused(document, reason)
  return {'conflict', redis.call('HGETALL', document), reason or 'version'}
end

-- expected: '*' any, '-' absent, or "<offset> <epoch>", the version that the document must have.
local function meets(header, expected)
  if expected == '*' then return true end
  if expected == '-' then return not header end
  return header and string.sub(header, 1, #expected + 1) == expected .. ' '
end

-- Turns: a writer that has lost several races may keep others off the document for a moment, so that none starves. A turn
-- is no lock that correctness rests on: it ends by itself, and a clock that was set back makes it void.
local TURN = 50  -- milliseconds

local function others_turn(log, entry, token)
  if not log.turn then return false end
  local what, whose, ends = string.match(log.turn, '^(%S+) (%S+) (%d+)$')
  local left = tonumber(ends) - log.now
  return what == entry and whose ~= token and left > 0 and left <= TURN
end

local function give_turn(log, entry, token)
  if token ~= '' then redis.call('HSET', log.keys[1], 'turn', entry .. ' ' .. token .. ' ' .. text(log.now + TURN)) end
end

-- Reads `count` arguments from `at`; returns them and the index after them.
local function take(args, at)
  local count, list = tonumber(args[at]), {}
  for i = 1, count do list[i] = args[at + i] end
  return list, at + count + 1
end

-- What a patch would touch, as it is now: header first, then the value of each touched field.
local function before(document, sets, drops, steps)
  local names = {'@'}
  for i = 1, #sets, 2 do names[#names + 1] = sets[i] end
  for i = 1, #drops do names[#names + 1] = drops[i] end
  for i = 1, #steps, 3 do names[#names + 1] = steps[i] end
  return names, redis.call('HMGET', document, unpack(names))
end

-- Integers that are safe in every language that will read them: up to 2^53.
local function sum(value, amount)
  local number = value and tonumber(value) or 0
  if value and not string.find(value, '^-?%d+$') then return nil end
  local total = number + tonumber(amount)
  if total > 9007199254740991 or total < -9007199254740991 then return nil end
  return text(total)
end

-- Fills in the sums: steps are {field, amount, text of the event before the sum}. Returns the index of a bad step.
local function add_up(names, old, sets, drops, steps, event)
  local first = 1 + #sets / 2 + #drops
  for i = 1, #steps, 3 do
    local at = first + (i + 2) / 3
    local total = sum(old[at], steps[i + 1])
    if not total then return nil, steps[i] end
    sets[#sets + 1], sets[#sets + 2] = steps[i], total
    event[#event + 1], event[#event + 2] = steps[i + 2], total
  end
  return true
end

-- Bytes of a document after a patch. `old` holds sets, drops and steps in the order of `before`.
local function size_after(bytes, count, old, sets, drops)
  local steps_at = 1 + count / 2
  for i = 1, #sets, 2 do
    local at = 1 + (i + 1) / 2
    if i > count then at = at + #drops end
    bytes = bytes + #sets[i + 1] - (old[at] and #old[at] or -#sets[i])
  end
  for i = 1, #drops do
    local value = old[steps_at + i]
    if value then bytes = bytes - #value - #drops[i] end
  end
  return bytes
end

-- state_write: patch or replace a document
-- keys: the log's four, document, index of documents
-- arguments: (open), index entry, expected, turn token or '', 'patch' | 'replace', ttl in ms or 0, most bytes,
--   codec and class version, event head, event tail, sets (field, value ...), drops (field ...),
--   steps (field, amount, event text ...)
-- reply: {"ok", header and, with steps, a line for each sum} | {"conflict", document, "version" | "turn"} | {"done", header...} | {"large", bytes} | {"not_integer", field}
--   {"wait"}: it is another writer's turn
local function state_write(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local document, entry, at = keys[5], args[log.at], log.at + 1
  local expected, token, replace = args[at], args[at + 1], args[at + 2] == 'replace'
  local ttl, most = tonumber(args[at + 3]), tonumber(args[at + 4])
  local kind, event, tail = args[at + 5], {args[at + 6]}, args[at + 7]
  if others_turn(log, entry, token) then return expected == '*' and {'wait'} or refused(document, 'turn') end
  local sets, drops, steps
  sets, at = take(args, at + 8)
  drops, at = take(args, at)
  steps = take(args, at)

  local count = #sets
  local names, old
  if replace then old = {redis.call('HGET', document, '@')} else names, old = before(document, sets, drops, steps) end
  local header = old[1]
  if not meets(header, expected) then
    give_turn(log, entry, token)
    return refused(document)
  end
  if #steps > 0 then
    local fine, bad = add_up(names, old, sets, drops, steps, event)
    if not fine then return {'not_integer', bad} end
  end
  local bytes = 0
  if header and not replace then bytes = tonumber(string.match(header, '^%d+ %x+ (%d+)')) end
  bytes = size_after(bytes, count, replace and {} or old, sets, drops)
  if bytes > most then return {'large', text(bytes)} end

  event[#event + 1] = tail
  append(log, table.concat(event), ttl > 0 and log.now + ttl or -1)
  header = position(log) .. ' ' .. text(bytes) .. ' ' .. kind
  if replace then redis.call('DEL', document) end
  redis.call('HSET', document, '@', header, unpack(sets))
  if #drops > 0 then redis.call('HDEL', document, unpack(drops)) end
  if ttl > 0 then redis.call('PEXPIRE', document, ttl) end
  if not old[1] then redis.call('SADD', keys[6], entry) end
  if token ~= '' then redis.call('HDEL', keys[1], 'turn') end
  for i = count + 2, #sets, 2 do header = header .. '\n' .. sets[i] end
  return commit(log, header)
end

-- state_delete: remove a document
-- keys: the log's four, document, index of documents   arguments: (open), index entry, expected, event
-- reply: {"ok", "<offset> <epoch>"} | {"absent"} | {"conflict", document} | {"done", ...}
local function state_delete(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local expected, header = args[log.at + 1], redis.call('HGET', keys[5], '@')
  if not meets(header, expected) then return refused(keys[5]) end
  if not header then return {'absent'} end
  append(log, args[log.at + 2], 0)
  redis.call('DEL', keys[5])
  redis.call('SREM', keys[6], args[log.at])
  return commit(log, position(log))
end

-- state_read: a document with the log's position of the same moment
-- keys: meta, document   reply: {"ok", epoch, offset, document} | {"merged", customer}
local function state_read(keys)
  local meta = redis.call('HMGET', keys[1], 'epoch', 'offset', 'into')
  if meta[3] then return {'merged', meta[3]} end
  return {'ok', meta[1] or '', meta[2] or '0', redis.call('HGETALL', keys[2])}
end

define('state_write', state_write)
define('state_delete', state_delete)
define('state_read', state_read, READS)
