-- Identities, and merging two customers. An identity lives in a slot of its own, so finding, linking and merging take
-- several calls; each is safe to repeat and to leave half done (see the flows).
--
-- An identity's record says whom it belongs to; nothing else decides it. Its fields:
-- - customer; tenure: names this period of belonging to them; proof: '1' when verified; linked, ends: times, '0' for never.
-- - confirmed: '0' the customer's list does not name it yet, '2' it does, but with less proof or an earlier end, '1' settled.
-- - left, left_tenure: whose list may still name it from before. Nothing moves on before that list has been put right.
-- The customer's list has for each digest: tenure, proof, linked, ends, gone (when the entry is removed), channel, JSON.
local identity = {}

function identity.facts(key)
  local found = redis_call('HMGET', key, 'customer', 'confirmed', 'tenure', 'proof', 'linked', 'ends', 'left', 'left_tenure')
  for i = 1, 8 do found[i] = found[i] or '' end
  return found
end

-- The record is there until then ('0': for ever).
function identity.expire(key, ends)
  if ends == '0' then redis_call('PERSIST', key) else redis_call('PEXPIREAT', key, ends) end
end

-- More proof, or a later end, of one who is known. An end is moved once half of the time has passed.
function identity.strengthen(key, record, proof, lifetime, now)
  local ends = record[6]
  if ends ~= '0' and lifetime == '0' then
    ends = '0'
  elseif ends ~= '0' and ends - now < lifetime / 2 then
    ends = text(now + lifetime)
  end
  proof = record[4] == '1' and '1' or proof
  if proof == record[4] and ends == record[6] then return record end
  local confirmed = record[2] == '1' and '2' or record[2]
  redis_call('HSET', key, 'proof', proof, 'ends', ends, 'confirmed', confirmed)
  identity.expire(key, ends)
  return identity.facts(key)
end

-- identity_claim: whom the identity belongs to; `candidate` when nobody
-- keys: identity   arguments: candidate, tenure, proof, lifetime (milliseconds or 0), who may strengthen it ('' for all),
-- when it was linked ('' now)
-- reply: facts, as of all that follow
function identity.claim(keys, args)
  local record, now = identity.facts(keys[1]), milliseconds()
  if record[1] ~= '' then
    if args[5] ~= '' and args[5] ~= record[1] then return record end
    return identity.strengthen(keys[1], record, args[3], args[4], now)
  end
  local ends = args[4] == '0' and '0' or text(now + args[4])
  redis_call('HSET', keys[1], 'customer', args[1], 'confirmed', '0', 'tenure', args[2], 'proof', args[3],
    'linked', args[6] == '' and text(now) or args[6], 'ends', ends)
  identity.expire(keys[1], ends)
  return identity.facts(keys[1])
end

-- identity_move: it belongs to somebody else, or to nobody. Nothing happens when `from` has changed, or is to be left
-- while something is unsettled; a repeated call finds its own tenure.
-- keys: identity   arguments: from, its tenure ('' for any), to ('' for nobody), tenure, proof ('' as it is), lifetime,
-- '1' when the list of `from` is to be put right, the proof that it must still have ('' for any)
function identity.move(keys, args)
  local key, record, now = keys[1], identity.facts(keys[1]), milliseconds()
  if record[1] ~= args[1] or args[2] ~= '' and args[2] ~= record[3] then return record end
  if record[7] ~= '' or args[7] == '1' and record[2] ~= '1' then return record end
  if args[8] ~= '' and args[8] ~= record[4] then return record end  -- surer than who judged knew
  if args[7] == '1' then redis_call('HSET', key, 'left', args[1], 'left_tenure', record[3]) end
  if args[3] == '' then
    redis_call('HDEL', key, 'customer', 'confirmed', 'tenure', 'proof', 'linked', 'ends')
    return identity.facts(key)
  end
  redis_call('HSET', key, 'customer', args[3], 'confirmed', '0', 'tenure', args[4])
  if args[5] ~= '' then
    local ends = args[6] == '0' and '0' or text(now + args[6])
    redis_call('HSET', key, 'proof', args[5], 'linked', text(now), 'ends', ends)
    identity.expire(key, ends)
  end
  return identity.facts(key)
end

-- identity_settle: a list has been put right
-- keys: identity   arguments: tenure, proof and end that the list has now; tenure that it no longer has ('' for none)
function identity.settle(keys, args)
  local record = identity.facts(keys[1])
  if args[4] ~= '' and args[4] == record[8] then redis_call('HDEL', keys[1], 'left', 'left_tenure') end
  if args[1] ~= '' and args[1] == record[3] and args[2] == record[4] and args[3] == record[6] then
    redis_call('HSET', keys[1], 'confirmed', '1')
  end
  return identity.facts(keys[1])
end

-- identity_look   keys: identity
function identity.look(keys)
  return identity.facts(keys[1])
end

-- What is gone leaves the list, which goes when its last entry does. Returns the number of identities on `channel`, and of
-- all, but for `digest`; and when the customer's log may go (-1: never).
function identity.tidy(list, now, channel, digest)
  local items, on_channel, all, latest = redis_call('HGETALL', list), 0, 0, 0
  for i = 1, #items, 2 do
    local gone, where = match(items[i + 1], '^%S+ %S+ %S+ %S+ (%d+) (%S+) ')
    gone = tonumber(gone)
    if gone > 0 and gone <= now then
      redis_call('HDEL', list, items[i])
    else
      latest = (gone == 0 or latest < 0) and -1 or math_max(latest, gone)
      if items[i] ~= digest then
        all = all + 1
        if where == channel then on_channel = on_channel + 1 end
      end
    end
  end
  if latest < 0 then redis_call('PERSIST', list) elseif latest > 0 then redis_call('PEXPIREAT', list, text(latest)) end
  return on_channel, all, latest
end

-- An entry outlives the end of its identity by twice what is left: a renewal that is half done does not lose it.
function identity.put(list, digest, tenure, proof, linked, ends, now, rest)
  local gone = ends == '0' and '0' or text(ends + math_max(2 * (ends - now), 0))
  redis_call('HSET', list, digest, concat({tenure, proof, linked, ends, gone, rest}, ' '))
  local _, _, latest = identity.tidy(list, now)
  return latest
end

-- customer_note: the customer's own list names the identity. Decided once for a tenure, also when it is full.
-- keys: the log's five, identities
-- arguments: (open), digest, tenure, proof, linked, ends, channel, most on it, most of all, identity as JSON, event
-- reply: "full" | what the list says: proof, ends
function identity.note(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local digest, tenure, proof, linked, ends, channel = unpack(args, log.at, log.at + 5)
  local held = redis_call('HGET', keys[6], digest)
  local its, said = match(held or '', '^(%S+) (%S+ %S+ %S+)')
  if its == tenure then return (gsub(said, ' %S+ ', ' ')) end
  local on_channel, all = identity.tidy(keys[6], log.now, channel, digest)
  if on_channel >= args[log.at + 6] + 0 or all >= args[log.at + 7] + 0 then return commit(log, 'full', 0) end
  append(log, args[log.at + 9])
  local rest = channel .. ' ' .. args[log.at + 8]
  local outlive = identity.put(keys[6], digest, tenure, proof, linked, ends, log.now, rest)
  return commit(log, proof .. ' ' .. ends, outlive)
end

-- customer_strengthen: the list has more proof or a later end of an identity that it names under this tenure
-- keys: the log's five, identities   arguments: (open), digest, tenure, proof, ends, event
function identity.strengthened(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local digest, tenure, proof, ends = unpack(args, log.at, log.at + 3)
  local held = redis_call('HGET', keys[6], digest)
  local its, had, linked, ended, rest = match(held or '', '^(%S+) (%S+) (%S+) (%S+) %S+ (.*)$')
  if its ~= tenure then return '' end
  if ended == '0' or ends ~= '0' and ended + 0 > ends + 0 then ends = ended end
  if had == '1' then proof = '1' end
  if proof ~= had then append(log, args[log.at + 4]) end
  local outlive = identity.put(keys[6], digest, tenure, proof, linked, ends, log.now, rest)
  return commit(log, '', outlive)
end

-- customer_drop: the list no longer names the identity, if it did under this tenure. Also of one who was merged away.
-- keys: the log's five, identities   arguments: (open), digest, tenure, the beginning of the event
function identity.drop(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local held = redis_call('HGET', keys[6], args[log.at])
  local its, proof = match(held or '', '^(%S+) (%S+)')
  if its ~= args[log.at + 1] then return '' end
  append(log, args[log.at + 2] .. (proof == '1' and '"verified"' or '"asserted"'))
  redis_call('HDEL', keys[6], args[log.at])
  identity.tidy(keys[6], log.now)
  return commit(log, '', 0)
end

-- customer_freeze: the beginning of a merge: from now on this customer's states are written nowhere but in `into`
-- keys: the log's five, identities   arguments: (open), into, event, names of documents that can move
-- reply: {"ok", "", number of documents, documents..., (digest, identity)...} | {"unknown", document} | {"merged", other}
local function customer_freeze(keys, args)
  local log, reply = open(keys, args, true)
  if not log and reply[1] ~= 'done' then return reply end
  local into = redis_call('HGET', keys[1], 'into')
  local documents, known = redis_call('SMEMBERS', keys[4]), {}
  if log then
    if into and into ~= args[log.at] then return {'merged', into} end
    for i = log.at + 2, #args do known[args[i]] = true end
    for _, document in ipairs(documents) do
      if not known[match(document, '^doc:([^:]+)')] then return {'unknown', document} end
    end
    if not into then
      append(log, args[log.at + 1])
      redis_call('HSET', keys[1], 'into', args[log.at])
      log.into = args[log.at]
    end
    commit(log, '', -1)
  end
  reply = {'ok', '', text(#documents)}
  for _, document in ipairs(documents) do reply[#reply + 1] = document end
  for _, item in ipairs(redis_call('HGETALL', keys[6])) do reply[#reply + 1] = item end
  return reply
end

-- customer_documents: documents and collections of a frozen customer
-- keys: meta, those of each   arguments: of each: entry, number of its keys
-- reply: {header, values} of each, empty where it has expired
local function customer_documents(keys, args)
  local reply, now, key = {}, milliseconds(), 2
  for at = 1, #args, 2 do
    local header, own = redis_call('HGET', keys[1], args[at]), {keys[1], unpack(keys, key, key + args[at + 1] - 1)}
    local version, _, _, _, more = look(header, now)
    local found = {}
    if version then
      local kind = match(header, '^%d+ %d+ %d+ %x+ %d+ (%S+)')
      if readers[kind] then
        found = {header, (readers[kind].moving or readers[kind].all)(own, nil, nil, now)}
      else
        found = redis_call('HGETALL', own[2])
        found = {header, more ~= '' and unexpired(found, now) or found}
      end
    end
    reply[#reply + 1], key = found, key + args[at + 1]
  end
  return reply
end

-- customer_empty: the end of a merge: what moved is removed. Doing it twice is doing it once.
-- keys: meta, docs, identities, number of keys to remove..., indexes...   arguments: number of keys to remove, entries
local function customer_empty(keys, args)
  if not redis_call('HGET', keys[1], 'into') then return {'ok'} end
  local member = match(keys[1], '}:(.+):meta$')
  redis_call('UNLINK', keys[3])
  for i = 4, 3 + args[1] do redis_call('UNLINK', keys[i]) end
  for i = 4 + args[1], #keys do redis_call('ZREM', keys[i], member) end
  for i = 2, #args do
    redis_call('HDEL', keys[1], args[i])
    redis_call('SREM', keys[2], args[i])
  end
  return {'ok'}
end

-- customer_read   keys: meta, identities, maybe agenda: then an erased customer is refused
-- reply: {into or '', (digest, identity)...}
local function customer_read(keys)
  local refusal = keys[3] and redis_call('EXISTS', keys[1]) == 0 and refuse_erased(keys[3], keys[1])
  if refusal then return refusal end
  local reply, items, now = {redis_call('HGET', keys[1], 'into') or ''}, redis_call('HGETALL', keys[2]), milliseconds()
  for i = 1, #items, 2 do
    local ends = match(items[i + 1], '^%S+ %S+ %S+ (%d+)') + 0
    if ends == 0 or ends > now then reply[#reply + 1], reply[#reply + 2] = items[i], items[i + 1] end
  end
  return reply
end

define('identity_claim', identity.claim)
define('identity_move', identity.move)
define('identity_settle', identity.settle)
define('identity_look', identity.look, READS)
define('customer_note', identity.note)
define('customer_strengthen', identity.strengthened)
define('customer_drop', identity.drop)
define('customer_freeze', customer_freeze)
define('customer_documents', customer_documents, READS)
define('customer_empty', customer_empty)
define('customer_read', customer_read, READS)

-- Erasure: what the flow in _erase.py says, step by step. Its journal is a hash in the customer's slot, which is there as long
-- as an erasure is not finished; 'n:<kind>' in it counts what was removed, in the call that removes it.

local FINISH = 60000  -- a sweeper goes on with an erasure that is not finished by then (milliseconds)

-- erase_begin: the tombstone, the journal and the event; from now on nothing is stored and nothing is found
-- keys: the log's five, journal, sessions, endings   arguments: key of the hash, customer it must have been merged into or '', who, why, event
-- reply: {"ok" | "again" | "erased", time, hash, journal ...} | {"merged", customer or ''}   Doing it twice is doing it once.
local function erase_begin(keys, args)
  local agenda, name = keys[5], match(keys[1], '}:(.+):meta$')
  if not tombstone_of(agenda, name) then redis_call('ZADD', agenda, text(KEY), args[1]) end
  local tombstone = tombstone_of(agenda, name)
  local time = redis_call('ZSCORE', agenda, tombstone)
  if time then
    local journal = redis_call('HGETALL', keys[6])
    return {journal[1] and 'again' or 'erased', text(time - ERASED), sub(tombstone, 3), unpack(journal)}
  end
  local into = redis_call('HGET', keys[1], 'into') or ''
  if into ~= args[2] then return {'merged', into} end
  local log, events = open(keys, {'0', ''}, true), text(redis_call('LLEN', keys[2]))
  if not log.fresh then append(log, args[5]) end
  redis_call('ZADD', agenda, text(ERASED + log.now), tombstone)
  redis_call('ZADD', agenda, text(log.now + FINISH), 'e.' .. sub(name, 3))
  redis_call('ZREM', agenda, name)
  local ended = text(sessions.forget(keys[7], keys[8], name))
  redis_call('HSET', keys[6], 'who', args[3], 'why', args[4], 'into', args[2], 'n:events', events, 'n:sessions', ended)
  redis_call('UNLINK', keys[1], keys[2], keys[3], keys[4])
  return {'ok', text(log.now), sub(tombstone, 3), unpack(redis_call('HGETALL', keys[6]))}
end

-- erase_read: who was merged into the customer, and their identities   keys: merged, identities   reply: {{id ...}, {digest, identity ...}}
local function erase_read(keys) return {redis_call('SMEMBERS', keys[1]), redis_call('HGETALL', keys[2])} end

-- customer_keys: the names of all keys of a customer, and of the indexes of the partition. The one thing here that looks for
-- names of keys: so none can be forgotten, whoever has written it.
-- keys: one of the slot   arguments: cursor, what keys of the partition, the customer and the indexes begin with
-- reply: {next cursor, which server has answered, key ...}: a walk that several servers have answered has seen nothing
local function customer_keys(keys, args)
  local page = redis_call('SCAN', args[1], 'MATCH', args[2] .. '*', 'COUNT', '1000')
  local said = redis_pcall('INFO', 'replication')
  local reply = {page[1], type(said) == 'string' and match(said, 'master_replid:(%x+)') or ''}
  for _, key in ipairs(page[2]) do
    if sub(key, 1, #args[3]) == args[3] or sub(key, 1, #args[4]) == args[4] then reply[#reply + 1] = key end
  end
  return reply
end

-- customer_log: the position of a log and all that it still has   keys: meta, log   reply: {epoch or '', offset, event ...}
local function customer_log(keys)
  local epoch, offset = read_meta(keys[1])
  return {epoch or '', offset, unpack(redis_call('LRANGE', keys[2], 0, -1))}
end

-- customer_value: what a key holds   keys: key   arguments: first, last (of a list)   reply: {type, value ...}
local function customer_value(keys, args)
  local kind, held = redis_call('TYPE', keys[1]).ok, {}
  if kind == 'hash' then
    held = redis_call('HGETALL', keys[1])
  elseif kind == 'list' then
    held = redis_call('LRANGE', keys[1], args[1], args[2])
  elseif kind == 'set' then
    held = redis_call('SMEMBERS', keys[1])
  elseif kind == 'zset' then
    held = redis_call('ZRANGE', keys[1], 0, -1, 'WITHSCORES')
  elseif kind == 'string' then
    held = {redis_call('GET', keys[1])}
  end
  table.insert(held, 1, kind)
  return held
end

-- How many of its kind a key holds.
local function weigh(key, kind)
  if kind == 'events' or kind == 'messages' or kind == 'changes' then return redis_call('LLEN', key) end
  if kind == 'identities' then return redis_call('HLEN', key) end
  if kind == 'sessions' then return sessions.count(key) end
  return redis_call('EXISTS', key)
end

-- erase_keys: removes keys and counts what was in them
-- keys: journal, keys to remove...   arguments: '1' to count only, kind of each or ''   reply: {kind, number ...} | {"over"}
local function erase_keys(keys, args)
  local only_count, counts, reply = args[1] == '1', {}, {}
  if not only_count and redis_call('EXISTS', keys[1]) == 0 then return {'over'} end
  for i = 2, #keys do
    local key, kind = keys[i], args[i]
    if kind ~= '' then counts[kind] = (counts[kind] or 0) + weigh(key, kind) end
    if kind == 'conversations' and redis_call('HGET', key, 'kind') == 'queue' then counts.waiting = (counts.waiting or 0) + 1 end
    if not only_count then redis_call('UNLINK', key) end
  end
  for kind, number in pairs(counts) do
    if not only_count then redis_call('HINCRBY', keys[1], 'n:' .. kind, text(number)) end
    reply[#reply + 1], reply[#reply + 2] = kind, text(number)
  end
  return reply
end

-- erase_index: takes a customer out of an index, some of its entries at a time
-- keys: journal, index   arguments: '1' to count only, member, cursor   reply: {next cursor, number}
local function erase_index(keys, args)
  local member, count, page = args[2], 0, redis_call('ZSCAN', keys[2], args[3], 'MATCH', args[2] .. '*', 'COUNT', '1000')
  for i = 1, #page[2], 2 do
    local found = page[2][i]
    if found == member or sub(found, 1, #member + 1) == member .. ':' then
      count = count + 1
      if args[1] ~= '1' then redis_call('ZREM', keys[2], found) end
    end
  end
  if args[1] ~= '1' and count > 0 and redis_call('EXISTS', keys[1]) == 1 then
    redis_call('HINCRBY', keys[1], 'n:index_entries', text(count))
  end
  return {page[1], text(count)}
end

-- erase_end: the last step   keys: agenda, journal   arguments: name of the log   Doing it twice is doing it once.
local function erase_end(keys, args)
  redis_call('UNLINK', keys[2])
  redis_call('ZREM', keys[1], 'e.' .. sub(args[1], 3), args[1])
  return 'ok'
end

-- erase_record: the entry of the tenant's list of erasures; the first one stays
-- keys: entries   arguments: hash, entry
local function erase_record(keys, args)
  if redis_call('HEXISTS', keys[1], args[1]) == 0 then redis_call('HSET', keys[1], args[1], args[2]) end
  return redis_call('HGET', keys[1], args[1])
end

-- erase_list: the tenant's list of erasures   keys: entries   arguments: cursor   reply: {next cursor, hash, entry ...}
local function erase_list(keys, args)
  local page = redis_call('HSCAN', keys[1], args[1], 'COUNT', '1000')
  return {page[1], unpack(page[2])}
end

-- erase_refuse: a tombstone that another store had   keys: agenda   arguments: key of the hash, hash, time
-- Doing it twice is doing it once. Who is still there with this hash is refused only once their log has gone: see the job.
local function erase_refuse(keys, args)
  if not tombstone_of(keys[1], '') then redis_call('ZADD', keys[1], text(KEY), args[1]) end
  redis_call('ZADD', keys[1], 'NX', text(ERASED + args[3]), 'x.' .. args[2])
  return 'ok'
end

-- erase_check: whether a customer was erased   keys: meta, agenda   reply: "1" | "0"
local function erase_check(keys) return refuse_erased(keys[2], keys[1]) and '1' or '0' end

-- identity_forget: nothing in the identity's record names this customer any more: neither whose it is, nor whose list may still
-- name it. Doing it twice is doing it once.
-- keys: identity   arguments: customer   reply: facts
local function identity_forget(keys, args)
  local record = identity.facts(keys[1])
  if record[1] == args[1] then
    redis_call('HDEL', keys[1], 'customer', 'confirmed', 'tenure', 'proof', 'linked', 'ends')
  end
  if record[7] == args[1] then redis_call('HDEL', keys[1], 'left', 'left_tenure') end
  return identity.facts(keys[1])
end

-- customer_absorb: notes that another customer is going to be merged into this one. Doing it twice is doing it once.
-- keys: the log's five, merged   arguments: other   reply: as log_open
local function customer_absorb(keys, args)
  local reply = log_open(keys)
  if reply[1] == 'ok' then redis_call('SADD', keys[6], args[1]) end
  return reply
end

-- agenda_queues: the queues of a partition   keys: agenda   reply: {name ...}
local function agenda_queues(keys) return redis_call('ZRANGEBYSCORE', keys[1], text(QUEUES), text(QUEUES)) end

-- queue_forget: takes a customer's conversations out of a queue, and out of what its log remembers
-- keys: the log's five, waiting, leased, since   arguments: what their ids begin with   Doing it twice is doing it once.
local function queue_forget(keys, args)
  local whose = args[1]
  for i = 6, 8 do
    local held, step = i == 8 and redis_call('HGETALL', keys[i]) or redis_call('ZRANGE', keys[i], 0, -1), i == 8 and 2 or 1
    for n = 1, #held, step do
      if sub(held[n], 1, #whose) == whose then redis_call(i == 8 and 'HDEL' or 'ZREM', keys[i], held[n]) end
    end
  end
  for i, event in ipairs(redis_call('LRANGE', keys[2], 0, -1)) do
    if find(event, '"conversation":"' .. whose, 1, true) then
      redis_call('LSET', keys[2], i - 1, '{"type":"queue.erased"' .. (match(event, ',"time":%d+}$') or '}'))
    end
  end
  return 'ok'
end

-- queue_forget_operations: takes a customer's conversations out of the results that a queue remembers. A call that is repeated
-- just then leases another entry as well, whose lease ends by itself.
-- keys: meta or older   arguments: what their ids begin with, cursor   reply: next cursor
local function queue_forget_operations(keys, args)
  local page = redis_call('HSCAN', keys[1], args[2], 'COUNT', '1000')
  for i = 1, #page[2], 2 do
    if find(page[2][i + 1], ' ' .. args[1], 1, true) then redis_call('HDEL', keys[1], page[2][i]) end
  end
  return page[1]
end

define('erase_begin', erase_begin)
define('erase_read', erase_read, READS)
define('erase_keys', erase_keys)
define('erase_index', erase_index)
define('erase_end', erase_end)
define('erase_record', erase_record)
define('erase_list', erase_list, READS)
define('erase_refuse', erase_refuse)
define('erase_check', erase_check, READS)
define('customer_keys', customer_keys, READS)
define('customer_log', customer_log, READS)
define('customer_value', customer_value, READS)
define('identity_forget', identity_forget)
define('customer_absorb', customer_absorb)
define('agenda_queues', agenda_queues, READS)
define('queue_forget', queue_forget)
define('queue_forget_operations', queue_forget_operations)
