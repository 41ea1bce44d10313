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

-- customer_read   keys: meta, identities   reply: {into or '', (digest, identity)...}
local function customer_read(keys)
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
