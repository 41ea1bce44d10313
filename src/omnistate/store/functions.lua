-- The log and what every write does. Concatenated with the other slices' functions.lua into one library.
--
-- Nothing here rolls back: a function checks everything first, then writes. `open` does the checks that are common to
-- all writes and returns the open log, or nil and the reply to give. `append` and `commit` write what is common.
--
-- Keys of a log: meta (hash), log (list), older (hash), docs (set), agenda (sorted set, shared by its partition).
-- - log: offsets are dense, so the entry of offset o is found by counting from the end of a list.
-- - meta: 's' is "<plain><due> <offset> <epoch>": when (13 digits) the time-outs below are looked at again, and the position.
--   plain: '1' when there is nothing else to look at before a write, no 'into', no turn that counts, no operations in
--   `older`; else '0'. One comparison with '1' and the time says both.
--   'life' is "<older> <keep> <generation>": 1 when the last generation's operations may count; when meta may expire, or -1.
--   'into' when the customer was merged away; 'turn'; 'large': the bytes of this generation's large results;
--   'doc:<entry>' with the header of each document; 'op:<id>' with the result of each operation of this generation. They
--   share a hash so that a write reads it once and writes it once.
-- - older: the last generation's operations; meta is renamed to it once a day.
-- - docs: names the documents, by the fields of their headers.
-- - agenda: every customer of the partition, by the time at which the sweeper is to look at them, or earlier than that.
--   Beyond all times: queues at QUEUES; who was erased, as 'x.<hash>' at ERASED + the time; the hash's key at KEY.
-- What a write costs, in instructions of the server: 5,000 to 10,000 for each redis.call, 4,000 to 6,000 for a pattern,
-- 1,500 for a number as text, 1,200 for each key and argument, 700 for a new string, 150 to compare two. So times have 13
-- digits wherever they are stored, and are compared as they are.

local HOUR = 3600000
local DAY = 24 * HOUR
local META_LIFE = 30 * DAY      -- a log's epoch and offset outlive the last write by this
local LOG_LIFE = DAY            -- the log and the operation ids outlive the last write by this
local LONGEST_LOG = 1000        -- entries
local OPS_MANY = 100000         -- so many operation ids in a generation may shorten its life,
local OPS_LEAST = 120000        -- but never below this (milliseconds)
local RESULTS_MOST = 4194304    -- bytes of large results in a generation that may shorten it in the same way
local RESULT_LARGE = 1024       -- bytes of a result from which on they are counted
local EPOCH_TIME = 13           -- hexadecimal digits of an epoch's time in microseconds, until 2112
local COMPACT = 128             -- entries of a log up to which its meta may be stored compactly

local function text(number) return format('%d', number) end

local NEVER, NONE = '9999999999999', '0000000000000'  -- in the place of a time that there is not
local LATEST = 9999999999998

-- A time as text that is in order: 13 digits.
local function stamp(time) return format('%013d', time < LATEST and time or LATEST) end

-- The present millisecond, which many calls of a busy server share: as text, with the '1' of a plain state before it, and as
-- an event ends.
local second, second_begins, moment, moment_text, plain_moment, moment_end = '', 0, -1, '', '', ''

local function milliseconds()
  local time = redis_call('TIME')
  if time[1] ~= second then second, second_begins = time[1], time[1] * 1000 end
  local microseconds = time[2] + 0
  local now = second_begins + (microseconds - microseconds % 1000) / 1000
  if now ~= moment then
    moment, moment_text = now, stamp(now)
    plain_moment, moment_end = '1' .. moment_text, ',"time":' .. text(now) .. '}'
  end
  return now
end

-- Which primary this is: '' for one that never was a replica, else 8 hexadecimal digits of its own.
local primary = ''

-- A new epoch for a log. TIME is in microseconds and this server runs one function at a time. A replica that has become
-- the primary may lack what the one before it had answered: so it numbers on in an epoch of its own, whose end names it.
local function new_epoch()
  local time = redis_call('TIME')
  return format('%x', time[1] * 1000000 + time[2]) .. primary
end

-- What is known of the operation ids args[2 ...]. `records` holds them from index `first` on. Returns a reply when any was
-- applied. An empty digest fits every other: an id that was made for a caller comes back as the caller's own when its
-- outcome was unknown.
local function repeated(args, count, records, first)
  local reply, found, digest = {'done'}, false, args[count + 2]
  for i = 1, count do
    local record = records[first + i - 1]
    reply[i + 1] = ''
    if record then
      found = true
      local split = find(record, ':', 1, true)
      local said = sub(record, 1, split - 1)
      if said ~= digest and said ~= '' and digest ~= '' then return {'reused', args[i + 1]} end
      reply[i + 1] = sub(record, split + 1)
    end
  end
  return found and reply
end

local QUEUES, ERASED, KEY = 2251799813685248, 4503599627370496, 9007199254740992  -- 2^51, 2^52, 2^53: a score holds them

-- What a tombstone is called: no id, only a hash of it under a key of the tenant, which is in the agenda too. nil: there is none.
local function tombstone_of(agenda, name)
  local key = redis_call('ZRANGEBYSCORE', agenda, text(KEY), text(KEY))[1]
  return key and 'x.' .. redis.sha1hex(key .. ':' .. name)
end

-- A refusal when the customer was erased, else nil. Only who has no log is asked: an erased customer gets none.
local function refuse_erased(agenda, meta)
  local name = match(meta, '}:(.+):meta$')
  local tombstone = tombstone_of(agenda, name)
  return tombstone and redis_call('ZSCORE', agenda, tombstone) and {err = 'ERASED ' .. name}
end

local the_log = {}  -- the open log: one function runs at a time, so one table serves them all

-- args: number of operation ids, the ids, digest of the arguments (or ''), then the function's own.
-- Returns the open log with `at`, the index of the function's first own argument; or nil and a reply.
-- `merged_too`: also for a customer that was merged away, whose conversations and sessions go on where they are.
-- `field`: a further field of meta that is wanted, as `header`.
local function open(keys, args, merged_too, field)
  local log, count, meta, known = the_log, tonumber(args[1]), nil, nil
  if count == 1 then
    meta = redis_call('HMGET', keys[1], 's', 'into', 'turn', 'life', field or 's', args[2])
    known = meta[6]
  else
    meta = redis_call('HMGET', keys[1], 's', 'into', 'turn', 'life', field or 's', unpack(args, 2, count + 1))
    known = true
  end
  local reply = known and repeated(args, count, meta, 6)
  if reply then return nil, reply end
  local state = meta[1]
  log.keys, log.args, log.count, log.at, log.now = keys, args, count, count + 3, milliseconds()
  log.added, log.grown = 0, 0
  log.into, log.turn, log.life, log.header = meta[2], meta[3], meta[4] or '0 0 0', meta[5]
  log.expire, log.falls_due, log.fields, log.outlive = false, false, false, 0
  if state then
    local due, offset, epoch = match(state, '^%d(%d+) (%d+) (%x+)$')
    if sub(epoch, EPOCH_TIME + 1) ~= primary then epoch = new_epoch() end
    log.fresh, log.epoch, log.offset, log.due = offset == '0', epoch, offset + 0, due
    if count > 0 and byte(log.life) == 49 then
      reply = repeated(args, count, redis_call('HMGET', keys[3], unpack(args, 2, count + 1)), 1)
      if reply then return nil, reply end
    end
  else
    reply = refuse_erased(keys[5], keys[1])
    if reply then return nil, reply end
    log.fresh, log.epoch, log.offset, log.due = true, new_epoch(), 0, NONE
  end
  if meta[2] and not merged_too then return nil, {'merged', meta[2]} end
  return log
end

local expire_document  -- of the state slice

local function is_written(log, entry, written)
  if entry == written then return true end
  for i = 1, log.fields and #log.fields or 0, 2 do
    if log.fields[i] == entry then return true end
  end
  return false
end

-- A new generation of operation ids. What else is in meta comes along; documents that have expired end here, but for those
-- with keys that only the sweeper names. `written`: a header that this write is going to set.
local function rotate(log, written)
  local meta, older, docs = log.keys[1], log.keys[3], log.keys[4]
  redis_call('RENAME', meta, older)
  local others = redis_call('HMGET', older, 'into', 'turn')
  if others[1] then redis_call('HSET', meta, 'into', others[1]) end
  if others[2] then redis_call('HSET', meta, 'turn', others[2]) end
  redis_call('HDEL', older, 's', 'life', 'into', 'turn', 'large')
  for _, entry in ipairs(redis_call('SMEMBERS', docs)) do
    local header = redis_call('HGET', older, entry)
    if is_written(log, entry, written) then
      header = false
    elseif not header then
      redis_call('SREM', docs, entry)
    elseif not expire_document(log, entry, header) then
      redis_call('HSET', meta, entry, header)
    end
    redis_call('HDEL', older, entry)
  end
  return text(redis_call('EXISTS', older))
end

-- A compact hash is searched from end to end. A value of over 64 bytes makes it a table, whatever the server's settings.
local function set_life(log)
  if log.offset >= COMPACT then log.life = format('%-65s', log.life) end
  redis_call('HSET', log.keys[1], 'life', log.life)
end

-- Time-outs are renewed hourly, not at each write. `outlive` is a time that the log's epoch must survive; -1: for ever.
local function look_after(log, outlive, written, heavy)
  local keys, now = log.keys, log.now
  local older, keep, generation = match(log.life, '^(%d) (%-?%d+) (%d+)')
  keep, generation = tonumber(keep), tonumber(generation)
  local age = now - generation
  if age > DAY or age > OPS_LEAST and (heavy or redis_call('HLEN', keys[1]) > OPS_MANY) then
    if not log.fresh and generation > 0 then older = rotate(log, written) end
    generation = now
  end
  log.due = stamp(now + HOUR)
  redis_call('PEXPIREAT', keys[2], text(now + LOG_LIFE + HOUR))
  redis_call('PEXPIREAT', keys[3], text(now + LOG_LIFE + HOUR))
  if outlive < 0 or keep < 0 then
    keep = -1
  else
    local wanted = now + META_LIFE
    if outlive + DAY > wanted then wanted = outlive + DAY end
    if wanted > keep then keep = wanted + DAY end
  end
  log.expire, log.life = text(keep), older .. ' ' .. text(keep) .. ' ' .. text(generation)
  set_life(log)
end

-- Whose turn it is at a document, and which: a turn that is over, or was set by a clock that has gone back, does not count.
local TURN = 50  -- milliseconds

local function turn_counts(log)
  local what, whose, ends = match(log.turn, '^(%S+) (%S+) (%d+)$')
  local left = tonumber(ends) - log.now
  return left > 0 and left <= TURN, what, whose
end

-- The sweeper is to look at this customer at `time` (milliseconds).
local function falls_due(log, time)
  if not log.falls_due or time < log.falls_due then log.falls_due = time end
end

-- The log's epoch must survive `time` (milliseconds; 0: nothing asked, -1: for ever).
local function outlives(log, time)
  if time < 0 or log.outlive >= 0 and time > log.outlive then log.outlive = time end
end

-- An entry of the log, which its subscribers get with its position.
local function publish(list, position, event)
  redis_call('RPUSH', list, event)
  redis_call('SPUBLISH', list, position .. ' ' .. event)
end

-- Appends `event` (a JSON object without its closing brace) and publishes it. Returns the whole event.
local function append(log, event)
  local list = log.keys[2]
  local offset = log.offset + 1
  if offset == 1 then redis_call('DEL', list, log.keys[3], log.keys[4]) end  -- nothing of a lost epoch is continued
  log.offset, log.position = offset, text(offset) .. ' ' .. log.epoch
  event = event .. moment_end
  publish(list, log.position, event)
  if offset % 64 == 0 then
    if offset > LONGEST_LOG then redis_call('LTRIM', list, -LONGEST_LOG, -1) end
    if offset >= COMPACT and #log.life < 65 then set_life(log) end
  end
  return event
end

-- Ends a write: its result is found again under its operation ids, and `field` of meta, if given, has this value.
-- `log.fields` may hold more of them, as name, value, name, value. `outlive`: as for `outlives`.
local function commit(log, result, outlive, field, value)
  local meta, args, count, fields = log.keys[1], log.args, log.count, log.fields
  if moment_text >= log.due or log.offset % 4096 == 0 then
    look_after(log, outlive, field)
  elseif outlive ~= 0 then
    local keep = match(log.life, '^%d (%-?%d+)') + 0
    if keep >= 0 and (outlive < 0 or outlive + DAY > keep) then look_after(log, outlive, field) end
  end
  if #result > RESULT_LARGE and redis_call('HINCRBY', meta, 'large', #result) > RESULTS_MOST then
    look_after(log, outlive, field, true)
  end
  if log.falls_due or log.fresh then
    local time, name = log.falls_due and text(log.falls_due) or log.expire, match(log.keys[1], '}:(.+):meta$')
    if time == '-1' then time = byte(name) == 113 and text(QUEUES) or '+inf' end  -- 'q'
    redis_call('ZADD', log.keys[5], 'LT', time, name)
  end
  local plain = not log.into and not (log.turn and turn_counts(log)) and byte(log.life) == 48
  local state = (plain and '1' or '0') .. log.due .. ' ' .. text(log.offset) .. ' ' .. log.epoch
  local record = args[count + 2] .. ':' .. result
  if count == 1 and not fields then
    if field then
      redis_call('HSET', meta, 's', state, args[2], record, field, value)
    else
      redis_call('HSET', meta, 's', state, args[2], record)
    end
  else
    local pairs_ = {'s', state}
    for i = 1, count do pairs_[2 * i + 1], pairs_[2 * i + 2] = args[i + 1], record end
    if field then pairs_[2 * count + 3], pairs_[2 * count + 4] = field, value end
    for i = 1, fields and #fields or 0 do pairs_[#pairs_ + 1] = fields[i] end
    redis_call('HSET', meta, unpack(pairs_))
  end
  local expire = log.expire
  if expire then
    for _, key in ipairs({meta, log.keys[4]}) do
      if expire == '-1' then redis_call('PERSIST', key) else redis_call('PEXPIREAT', key, expire) end
    end
  end
  return result
end

-- Epoch, offset, the customer it was merged into, and a further field.
local function read_meta(meta, field)
  local found = redis_call('HMGET', meta, 's', 'into', field or 's')
  local epoch, offset
  if found[1] then offset, epoch = match(found[1], '^%d+ (%d+) (%x+)$') end
  return epoch, offset or '0', found[2], found[3]
end

-- log_open: the position of a log, which exists afterwards
-- keys: the log's five   reply: {"ok", epoch, offset} | {"merged", customer}
local function log_open(keys)
  local epoch, offset, into = read_meta(keys[1])
  if into then return {'merged', into} end
  if epoch then return {'ok', epoch, offset} end
  local refusal = refuse_erased(keys[5], keys[1])
  if refusal then return refusal end
  epoch = new_epoch()
  local keep = text(milliseconds() + DAY)
  redis_call('DEL', keys[1], keys[2], keys[3], keys[4])
  redis_call('HSET', keys[1], 's', '1' .. NONE .. ' 0 ' .. epoch, 'life', '0 ' .. keep .. ' 0')
  redis_call('PEXPIREAT', keys[1], keep)
  return {'ok', epoch, '0'}
end

-- log_read: everything after a position, or nothing
-- keys: meta, log   arguments: epoch, offset, limit
-- reply: {"ok", epoch, offset of the last entry, entries...} | {"lost", epoch, offset}
local function log_read(keys, args)
  local epoch, top = read_meta(keys[1])
  local missing = tonumber(top) - tonumber(args[2])
  if epoch ~= args[1] or missing < 0 or missing > tonumber(args[3]) then return {'lost', epoch or '', top} end
  local reply = {'ok', epoch, top}
  if missing == 0 then return reply end
  local entries = redis_call('LRANGE', keys[2], -missing, -1)
  if #entries < missing then return {'lost', epoch, top} end
  for i = 1, missing do reply[i + 3] = entries[i] end
  return reply
end

-- arrive: what every client says when it connects, so that a server knows when it has become the primary
-- reply: {role, which primary this is}
local function arrive()
  local said = redis_pcall('INFO', 'replication')
  if type(said) ~= 'string' then return {'', ''} end
  local id, before = match(said, 'master_replid:(%x+)'), match(said, 'master_replid2:(%x+)')
  primary = before and find(before, '[^0]') and sub(id, 1, 8) or ''
  return {match(said, 'role:(%a+)'), primary}
end

-- barrier: a write that a wait for replicas can count on, whatever was written before it
-- keys: one of this server's
local function barrier(keys)
  redis_call('SET', keys[1], '', 'PX', '1000')
  return 'ok'
end

define('arrive', arrive, READS)
define('barrier', barrier)
define('log_open', log_open)
define('log_read', log_read, READS)
