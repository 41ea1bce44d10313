-- Conversations: messages in order, and exactly one owner at a time, whose epoch rises at each change.
-- A conversation is a hash and a list of its messages, in its customer's slot. A queue has a log of its own, in another
-- slot, so hand-off and claim take several calls; each is safe to repeat and to leave half done (see the flows).

local CONVERSATION_LIFE = 180 * DAY   -- since the last message or change of owner
local LEASE = 10000                   -- a claim that is not finished by then is given to the next agent (milliseconds)
local PENDING = 30000                 -- a hand-off that is not finished by then may be cancelled by a claim

local function keep_conversation(keys, first)
  for i = first, #keys do redis_call('PEXPIRE', keys[i], CONVERSATION_LIFE) end
end

local function own(log, conversation, kind, name, epoch)
  redis_call('HSET', conversation, 'kind', kind, 'owner', name, 'epoch', text(epoch))
end

-- conversation_start
-- keys: the log's five, conversation   arguments: (open), channel, owner, event
local function conversation_start(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  append(log, args[log.at + 2])
  redis_call('HSET', keys[6], 'channel', args[log.at], 'status', 'open', 'started', text(log.now))
  own(log, keys[6], 'helper', args[log.at + 1], 1)
  keep_conversation(keys, 6)
  return commit(log, log.position, log.now + CONVERSATION_LIFE)
end

-- conversation_say: a message of the customer, or of the helper who owns the conversation
-- keys: the log's five, conversation, messages
-- arguments: (open), helper or '' for the customer, event head, message members that follow the event's "type"
-- reply: "<index> <offset> <epoch>" | {"absent"} | {"not_owner", owner, epoch} | {"done", ...}
local function conversation_say(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local owner = redis_call('HMGET', keys[6], 'kind', 'owner', 'epoch')
  if not owner[1] then return {'absent'} end
  local helper = args[log.at]
  if helper ~= '' and not (owner[1] == 'helper' and owner[2] == helper) then
    return {'not_owner', owner[1] .. ' ' .. owner[2], owner[3]}
  end
  local index = redis_call('LLEN', keys[7])
  local event = append(log, args[log.at + 1] .. ',"index":' .. text(index))
  redis_call('RPUSH', keys[7], '{"offset":' .. text(log.offset) .. ',' .. sub(event, 2))
  keep_conversation(keys, 6)
  return commit(log, text(index) .. ' ' .. log.position, log.now + CONVERSATION_LIFE)
end

-- conversation_read: the conversation and a page of its messages
-- keys: conversation, messages   arguments: first index, last index
-- reply: {"ok", kind, owner, epoch, channel, number of messages, messages...} | {"absent"}
local function conversation_read(keys, args)
  local c = redis_call('HMGET', keys[1], 'kind', 'owner', 'epoch', 'channel')
  if not c[1] then return {'absent'} end
  local reply = {'ok', c[1], c[2], c[3], c[4], text(redis_call('LLEN', keys[2]))}
  if args[1] == '' then return reply end
  local messages = redis_call('LRANGE', keys[2], args[1], args[2])
  for i = 1, #messages do reply[i + 6] = messages[i] end
  return reply
end

-- conversation_hand_off: to a queue. `token` names this hand-off in the queue; a claim may have cancelled it.
-- keys: the log's five, conversation, messages
-- arguments: (open), the helper who must own it or '', queue, token, event
-- reply: epoch | {"absent"} | {"not_owner", owner, epoch} | {"cancelled"} | {"done", ...}
local function conversation_hand_off(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local at = log.at
  local owner = redis_call('HMGET', keys[6], 'kind', 'owner', 'epoch', 'cancelled')
  if not owner[1] then return {'absent'} end
  if args[at] ~= '' and not (owner[1] == 'helper' and owner[2] == args[at]) then
    return {'not_owner', owner[1] .. ' ' .. owner[2], owner[3]}
  end
  if owner[4] == args[at + 2] then return {'cancelled'} end
  local epoch = tonumber(owner[3]) + 1
  append(log, args[at + 3] .. ',"epoch":' .. text(epoch))
  own(log, keys[6], 'queue', args[at + 1], epoch)
  redis_call('HSET', keys[6], 'token', args[at + 2])
  keep_conversation(keys, 6)
  return commit(log, text(epoch), log.now + CONVERSATION_LIFE)
end

-- conversation_take: an agent takes what a queue leased to them
-- keys: the log's five, conversation, messages
-- arguments: (open), agent, queue, token, '1' when the hand-off is so old that it may be cancelled, event
-- reply: epoch | {"pending"} the hand-off is not finished yet | {"gone"} it is somebody else's | {"done", ...}
local function conversation_take(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local at = log.at
  local agent, queue, token = args[at], args[at + 1], args[at + 2]
  local owner = redis_call('HMGET', keys[6], 'kind', 'owner', 'epoch', 'token', 'taken')
  if not owner[1] then return {'gone'} end
  if owner[5] == token then
    -- A claim that died after this step: the same agent goes on, another one is too late.
    return owner[1] == 'helper' and owner[2] == agent and owner[3] or {'gone'}
  end
  if owner[4] ~= token then
    if args[at + 3] ~= '1' then return {'pending'} end
    redis_call('HSET', keys[6], 'cancelled', token)
    return {'gone'}
  end
  if owner[1] ~= 'queue' or owner[2] ~= queue then return {'gone'} end
  local epoch = tonumber(owner[3]) + 1
  append(log, args[at + 4] .. ',"epoch":' .. text(epoch))
  own(log, keys[6], 'helper', agent, epoch)
  redis_call('HSET', keys[6], 'taken', token)
  keep_conversation(keys, 6)
  return commit(log, text(epoch), log.now + CONVERSATION_LIFE)
end

-- Queues. keys of each: the log's five, waiting (sorted set by time), leased (sorted set by deadline), since (hash).
-- An entry is "<conversation> <token>".

-- queue_put   arguments: (open), entry, event   reply: "" | {"done", ...}
local function queue_put(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  append(log, args[log.at + 1])
  redis_call('ZADD', keys[6], text(log.now), args[log.at])
  redis_call('HSET', keys[8], args[log.at], text(log.now))
  return commit(log, '', -1)
end

-- queue_lease: the entry that has waited longest, for LEASE milliseconds
-- arguments: (open)   reply: "<'1' when older than PENDING> <entry>" | {"empty"} | {"done", ...}
local function queue_lease(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  for _, entry in ipairs(redis_call('ZRANGEBYSCORE', keys[7], 0, text(log.now), 'LIMIT', 0, 100)) do
    redis_call('ZREM', keys[7], entry)
    redis_call('ZADD', keys[6], redis_call('HGET', keys[8], entry) or text(log.now), entry)
  end
  local first = redis_call('ZRANGE', keys[6], 0, 0, 'WITHSCORES')
  if not first[1] then return {'empty'} end
  redis_call('ZREM', keys[6], first[1])
  redis_call('ZADD', keys[7], text(log.now + LEASE), first[1])
  return commit(log, (log.now - tonumber(first[2]) > PENDING and '1 ' or '0 ') .. first[1], -1)
end

-- queue_settle: ends a lease. Doing it twice is doing it once.
-- arguments: (open), entry, 'done' | 'release', event or ''   reply: "" | {"done", ...}
local function queue_settle(keys, args)
  local log, reply = open(keys, args)
  if not log then return reply end
  local entry = args[log.at]
  local since = redis_call('HGET', keys[8], entry)
  if args[log.at + 2] ~= '' and since then append(log, args[log.at + 2]) end
  redis_call('ZREM', keys[7], entry)
  redis_call('ZREM', keys[6], entry)
  if args[log.at + 1] == 'release' and since then
    redis_call('ZADD', keys[6], since, entry)
  else
    redis_call('HDEL', keys[8], entry)
  end
  return commit(log, '', -1)
end

-- queue_read: who waits, longest first   keys: waiting   arguments: most entries   reply: {number waiting, entry, time ...}
local function queue_read(keys, args)
  local entries = redis_call('ZRANGE', keys[1], 0, tonumber(args[1]) - 1, 'WITHSCORES')
  local reply = {text(redis_call('ZCARD', keys[1]))}
  for i = 1, #entries do reply[i + 1] = entries[i] end
  return reply
end

define('conversation_start', conversation_start)
define('conversation_say', conversation_say)
define('conversation_read', conversation_read, READS)
define('conversation_hand_off', conversation_hand_off)
define('conversation_take', conversation_take)
define('queue_put', queue_put)
define('queue_lease', queue_lease)
define('queue_settle', queue_settle)
define('queue_read', queue_read, READS)
