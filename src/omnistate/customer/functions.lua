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
-- keys: identity   arguments: from, to   reply: {"ok"} | {"moved", customer}
local function identity_point(keys, args)
  local customer = redis_call('HGET', keys[1], 'customer')
  if customer and customer ~= args[1] and customer ~= args[2] then return {'moved', customer} end
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
