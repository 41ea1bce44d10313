-- Documents. A document is a hash: one field per field of the class, one per entry of a mapping. Values are opaque bytes.
-- Its header is in meta, in the field 'doc:<entry>':
-- "<offset> <epoch> <bytes> <deadline> <collected> <codec> <class version>". Offset and epoch are its version. `bytes` is
-- never too low: it grows by what is written, and is counted anew before it would refuse anything. The deadline is what
-- counts, 0 for none; `collected` is the key's own time-out, which is later and only collects the garbage, so it is rarely
-- renewed. 0: the key has none.

local MOST_BYTES = 262144
local LARGEST = 9007199254740991  -- integers are safe up to 2^53 in every language that will read them
local HEADER = '^(%d+ %x+) (%d+) (%d+) (%d+)'

-- Version, bytes and collection time of a document that is there at `now`; nil for none.
local function look(header, now)
  if not header then return nil end
  local version, bytes, deadline, collected = match(header, HEADER)
  if deadline ~= '0' and tonumber(deadline) <= now then return nil end
  return version, tonumber(bytes), tonumber(collected)
end

local function refused(document, header, version, reason)
  return {'conflict', version and header or '', version and redis_call('HGETALL', document) or {}, reason}
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

-- The bytes of a document once args[first ... last] (field, value ...) are set and args[drop ... dropped] are gone.
local function count_bytes(document, args, first, last, drop, dropped)
  local held, bytes = redis_call('HGETALL', document), 0
  local sizes = {}
  for i = 1, #held, 2 do sizes[held[i]] = #held[i] + #held[i + 1] end
  for i = first, last, 2 do sizes[args[i]] = #args[i] + #args[i + 1] end
  for i = drop, dropped do sizes[args[i]] = nil end
  for _, size in pairs(sizes) do bytes = bytes + size end
  return bytes
end

-- state_write: patch or replace a document
-- keys: the log's four, document
-- arguments: (open), entry, expected, turn token or '', 'patch' | 'replace', ttl in ms or 0, codec and class version,
--   event head, event tail, sets (count, field, value ...), drops (count, field ...), and maybe a step (field, amount,
--   event text before the sum)
-- reply: "<offset> <epoch>", with a second line for a step's sum | {"conflict", header, document, "version" | "turn"}
--   | {"done", ...} | {"large", bytes} | {"not_integer", field} | {"wait"}: it is another writer's turn
local function state_write(keys, args)
  local at = args[1] + 3
  local entry = args[at]
  local log, reply = open(keys, args, false, entry)
  if not log then return reply end
  local document, now, expected, token = keys[5], log.now, args[at + 1], args[at + 2]
  local replace, ttl = args[at + 3] == 'replace', tonumber(args[at + 4])
  local version, bytes, collected = look(log.header, now)
  if log.turn and others_turn(log, entry, token) then
    return expected == '*' and {'wait'} or refused(document, log.header, version, 'turn')
  end
  if not meets(version, expected) then
    if token ~= '' then redis_call('HSET', keys[1], 'turn', entry .. ' ' .. token .. ' ' .. text(now + TURN)) end
    return refused(document, log.header, version, 'version')
  end

  local first = at + 9
  local last = first + args[at + 8] - 1
  local drop = last + 2
  local dropped = drop + args[last + 1] - 1
  local field = args[dropped + 1]
  local begins = replace or not version
  if begins then bytes = 0 end
  for i = first, last do bytes = bytes + #args[i] end
  if field then bytes = bytes + #field + 17 end
  if bytes > MOST_BYTES then
    if not begins then bytes = count_bytes(document, args, first, last, drop, dropped) end
    if bytes > MOST_BYTES then return {'large', text(bytes)} end
  end

  if begins then redis_call('DEL', document) end
  local event, result = args[at + 6] .. args[at + 7], ''
  if field then
    local amount = args[dropped + 2]
    local sum = redis_pcall('HINCRBY', document, field, amount)
    if type(sum) ~= 'number' then return {'not_integer', field} end
    if sum > LARGEST or sum < -LARGEST then
      redis_call('HINCRBY', document, field, -amount)
      return {'not_integer', field}
    end
    local sum_text = text(sum)
    event, result = args[at + 6] .. args[dropped + 3] .. sum_text .. args[at + 7], '\n' .. sum_text
  end
  if last > first then redis_call('HSET', document, unpack(args, first, last)) end
  if dropped >= drop then redis_call('HDEL', document, unpack(args, drop, dropped)) end
  append(log, event)

  local deadline, outlive = 0, 0
  if ttl > 0 then
    deadline = now + ttl
    if begins or deadline > collected then
      collected = deadline + ttl / 16 + 1000
      -- A hash that has lost its last field has lost its time-out as well, so the next write gives it another.
      if redis_call('PEXPIREAT', document, text(collected)) == 0 then collected = 0 end
      outlive = deadline + ttl / 8
    elseif dropped >= drop and redis_call('EXISTS', document) == 0 then
      collected = 0
    end
  elseif begins or collected > 0 then
    if collected and collected > 0 then redis_call('PERSIST', document) end
    collected, outlive = 0, -1
  end
  if not version then redis_call('SADD', keys[4], entry) end
  if token ~= '' then redis_call('HDEL', keys[1], 'turn') end
  local header = format('%s %d %d %d %s', log.position, bytes, deadline, collected, args[at + 5])
  return commit(log, log.position .. result, outlive, entry, header)
end

-- state_delete: remove a document
-- keys: the log's four, document   arguments: (open), entry, expected, event
-- reply: "<offset> <epoch>" | {"absent"} | {"conflict", header, document, "version"} | {"done", ...}
local function state_delete(keys, args)
  local entry = args[args[1] + 3]
  local log, reply = open(keys, args, false, entry)
  if not log then return reply end
  local version = look(log.header, log.now)
  if not meets(version, args[log.at + 1]) then return refused(keys[5], log.header, version, 'version') end
  if not version then return {'absent'} end
  append(log, args[log.at + 2])
  redis_call('DEL', keys[5])
  redis_call('SREM', keys[4], entry)
  redis_call('HDEL', keys[1], entry)
  return commit(log, log.position, 0)
end

-- state_read: a document with the log's position of the same moment
-- keys: meta, document   arguments: entry   reply: {"ok", epoch, offset, header or '', document} | {"merged", customer}
local function state_read(keys, args)
  local epoch, offset, into, header = read_meta(keys[1], args[1])
  if into then return {'merged', into} end
  local version = look(header, milliseconds())
  return {'ok', epoch or '', offset, version and header or '', version and redis_call('HGETALL', keys[2]) or {}}
end

define('state_write', state_write)
define('state_delete', state_delete)
define('state_read', state_read, READS)
