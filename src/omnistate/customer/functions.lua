-- Identities, and merging two customers. An identity lives in a slot of its own, so finding, linking and merging take
-- several calls; each is safe to repeat and to leave half done (see the flows).

-- identity_claim: whom the identity points to; `candidate` when it is new
-- keys: identity   arguments: candidate   reply: {customer, '1' when the customer's own list is known to name it}
local function identity_claim(keys, args)
  local identity = redis_call('HMGET', keys[1], 'customer', 'confirmed')
  if identity[1] then return {identity[1], identity[2] or '0'} end
  redis_call('HSET', keys[1], 'customer', args[1])
  return {args[1], '0'}
end

-- identity_point: moves the identity, or confirms that the customer's list names it
-- keys: identity   arguments: from, to   reply: {"ok"} | {"moved", customer, or '' when it names nobody: who it named was erased}
local function identity_point(keys, args)
  local customer = redis_call('HGET', keys[1], 'customer')
  if customer ~= args[1] and customer ~= args[2] then return {'moved', customer or ''} end
  redis_call('HSET', keys[1], 'customer', args[2], 'confirmed', '1')
  return {'ok'}
end

-- customer_note: the customer's own list of identities
-- keys: the log's five, identities   arguments: (open), digest, identity as JSON, event
local function customer_note(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  if redis_call('HEXISTS', keys[6], args[log.at]) == 1 then return '' end
  append(log, args[log.at + 2])
  redis_call('HSET', keys[6], args[log.at], args[log.at + 1])
  return commit(log, log.position, -1)
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

-- customer_read   keys: meta, identities   reply: {into or '', (digest, identity)...}
local function customer_read(keys)
  local reply = {redis_call('HGET', keys[1], 'into') or ''}
  for _, item in ipairs(redis_call('HGETALL', keys[2])) do reply[#reply + 1] = item end
  return reply
end

define('identity_claim', identity_claim)
define('identity_point', identity_point)
define('customer_note', customer_note)
define('customer_freeze', customer_freeze)
define('customer_documents', customer_documents, READS)
define('customer_empty', customer_empty)
define('customer_read', customer_read, READS)

do  -- a block of its own, so that the others have room for their names (see store/_library.py)

-- Erasure: what the flow in _erase.py says, step by step. Its journal is a hash in the customer's slot, which is there as long
-- as an erasure is not finished; 'n:<kind>' in it counts what was removed, in the call that removes it.

local FINISH = 60000  -- a sweeper goes on with an erasure that is not finished by then (milliseconds)

-- erase_begin: the tombstone, the journal and the event; from now on nothing is stored and nothing is found
-- keys: the log's five, journal   arguments: key of the hash, customer it must have been merged into or '', who, why, event
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
  redis_call('HSET', keys[6], 'who', args[3], 'why', args[4], 'into', args[2], 'n:events', events)
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

-- identity_forget: the identity names nobody any more, if it named this customer. Doing it twice is doing it once.
-- keys: identity   arguments: customer
local function identity_forget(keys, args)
  if redis_call('HGET', keys[1], 'customer') == args[1] then redis_call('UNLINK', keys[1]) end
  return 'ok'
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

end
