-- Documents. A document is a hash: a header under '@', one field per field of the class, one per entry of a mapping.
-- Values are opaque bytes. The index is a set that names the documents of a log's owner, for merge, export and erasure; an
-- expired document may still be named there.
-- Header: "<offset> <epoch> <bytes> <deadline> <collected> <codec> <class version>". The deadline is what counts, 0 for
-- none; `collected` is the key's own time-out, which is later and only collects the garbage, so it is rarely renewed.

local MOST_BYTES = 262144
local HEADER = '^(%d+ %x+) (%d+) (%d+) (%d+)'

-- Version, bytes and collection time of a document that is there at `now`; nil for none. An expired one is removed.
local function look(document, header, now)
  if not header then return nil end
  local version, bytes, deadline, collected = match(header, HEADER)
  if deadline ~= '0' and tonumber(deadline) <= now then
    redis_call('DEL', document)
    return nil
  end
  return version, tonumber(bytes), tonumber(collected)
end

local function refused(document, reason)
  return {'conflict', redis_call('HGETALL', document), reason or 'version'}
end

-- expected: '*' any, '-' absent, or "<offset> <epoch>", the version that the document must have.
local function meets(version, expected)
  if expected == '*' then return true end
  if expected == '-' then return not version end
  return version == expected
end

-- Turns: a writer that has lost several races may keep others off the document for a moment, so that none starves. A turn
-- is no lock that correctness rests on: it ends by itself, and a clock that was set back makes it void.
local TURN = 50  -- milliseconds

local function others_turn(log, entry, token)
  local what, whose, ends = match(log.turn, '^(%S+) (%S+) (%d+)$')
  local left = tonumber(ends) - log.now
  return what == entry and whose ~= token and left > 0 and left <= TURN
end

-- Integers that are safe in every language that will read them: up to 2^53.
local function sum(value, amount)
  local number = 0
  if value then
    if not find(value, '^-?%d+$') then return nil end
    number = tonumber(value)
  end
  local total = number + tonumber(amount)
  if total > 9007199254740991 or total < -9007199254740991 then return nil end
  return text(total)
end

-- What a patch would write: HSET's arguments after the header's place, the bytes afterwards, the event.
-- names: fields as they come in the patch; old: their present values, from index 2 on. Returns nil and a bad field.
local function plan(args, at, old, bytes, event)
  local write, seen = {false, '@', false}, 1
  local count = tonumber(args[at])
  for i = at + 1, at + count, 2 do
    local name, value = args[i], args[i + 1]
    seen = seen + 1
    local before = old[seen]
    bytes = bytes + #value + (before and -#before or #name)
    write[#write + 1], write[#write + 2] = name, value
  end
  at = at + count + 1
  local drops, dropped = tonumber(args[at]), nil
  if drops > 0 then
    dropped = {}
    for i = 1, drops do
      seen = seen + 1
      dropped[i] = args[at + i]
      if old[seen] then bytes = bytes - #old[seen] - #dropped[i] end
    end
  end
  at = at + drops + 1
  local sums = ''
  for i = at + 1, at + tonumber(args[at]), 3 do
    local name = args[i]
    seen = seen + 1
    local before = old[seen]
    local total = sum(before, args[i + 1])
    if not total then return nil, name end
    bytes = bytes + #total + (before and -#before or #name)
    write[#write + 1], write[#write + 2] = name, total
    event, sums = event .. args[i + 2] .. total, sums .. '\n' .. total
  end
  return write, dropped, bytes, event, sums
end

-- The present values of the fields that a patch touches, behind the header.
local function touched(document, args, at)
  local names = {'@'}
  local count = tonumber(args[at])
  for i = at + 1, at + count, 2 do names[#names + 1] = args[i] end
  at = at + count + 1
  count = tonumber(args[at])
  for i = at + 1, at + count do names[#names + 1] = args[i] end
  at = at + count + 1
  for i = at + 1, at + tonumber(args[at]), 3 do names[#names + 1] = args[i] end
  return redis_call('HMGET', document, unpack(names))
end

-- state_write: patch or replace a document
-- keys: the log's three, document, index of documents
-- arguments: (open), index entry, expected, turn token or '', 'patch' | 'replace', ttl in ms or 0, codec and class
--   version, event head, event tail, sets (count, field, value ...), drops (count, field ...),
--   steps (count, field, amount, event text ...)
-- reply: "header", with a line for each sum | {"conflict", document, "version" | "turn"} | {"done", header...}
--   | {"large", bytes} | {"not_integer", field} | {"wait"}: it is another writer's turn
local function state_write(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local document, at, now = keys[4], log.at, log.now
  local expected, token, replace, ttl = args[at + 1], args[at + 2], args[at + 3] == 'replace', tonumber(args[at + 4])
  if log.turn and others_turn(log, args[at], token) then
    return expected == '*' and {'wait'} or refused(document, 'turn')
  end
  local old = replace and {redis_call('HGET', document, '@')} or touched(document, args, at + 8)
  local version, bytes, collected = look(document, old[1], now)
  if not meets(version, expected) then
    if token ~= '' then redis_call('HSET', keys[1], 'turn', args[at] .. ' ' .. token .. ' ' .. text(now + TURN)) end
    return refused(document)
  end
  if not version or replace then old, bytes = {}, 0 end
  local write, dropped, event, sums
  write, dropped, bytes, event, sums = plan(args, at + 8, old, bytes, args[at + 6])
  if not write then return {'not_integer', dropped} end
  if bytes > MOST_BYTES then return {'large', text(bytes)} end

  append(log, event .. args[at + 7])
  local deadline = ttl > 0 and now + ttl or 0
  local renew = ttl > 0 and (replace or not collected or deadline > collected)
  if renew then collected = deadline + ttl / 16 + 1000 end
  local header = position(log) .. ' ' .. text(bytes) .. ' ' .. text(deadline) .. ' ' .. text(collected or 0) .. ' '
  if replace and version then redis_call('DEL', document) end
  write[1], write[3] = document, header .. args[at + 5]
  redis_call('HSET', unpack(write))
  if dropped then redis_call('HDEL', document, unpack(dropped)) end
  if renew then redis_call('PEXPIREAT', document, text(collected)) end
  if not version then redis_call('SADD', keys[5], args[at]) end
  if token ~= '' then redis_call('HDEL', keys[1], 'turn') end
  return commit(log, position(log) .. sums, ttl > 0 and collected or -1)
end

-- state_delete: remove a document
-- keys: the log's three, document, index of documents   arguments: (open), index entry, expected, event
-- reply: "<offset> <epoch>" | {"absent"} | {"conflict", document, "version"} | {"done", ...}
local function state_delete(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local document, at = keys[4], log.at
  local version = look(document, redis_call('HGET', document, '@'), log.now)
  if not meets(version, args[at + 1]) then return refused(document) end
  if not version then return {'absent'} end
  append(log, args[at + 2])
  redis_call('DEL', document)
  redis_call('SREM', keys[5], args[at])
  return commit(log, position(log), 0)
end

-- The fields of a document, none when its deadline has passed.
local function fields_of(document)
  local fields = redis_call('HGETALL', document)
  for i = 1, #fields, 2 do
    if fields[i] == '@' then
      local _, _, deadline = match(fields[i + 1], HEADER)
      if deadline ~= '0' and tonumber(deadline) <= milliseconds() then return {} end
    end
  end
  return fields
end

-- state_read: a document with the log's position of the same moment
-- keys: meta, document   reply: {"ok", epoch, offset, document} | {"merged", customer}
local function state_read(keys)
  local epoch, offset, into = read_meta(keys[1])
  if into then return {'merged', into} end
  return {'ok', epoch or '', offset, fields_of(keys[2])}
end

define('state_write', state_write)
define('state_delete', state_delete)
define('state_read', state_read, READS)
