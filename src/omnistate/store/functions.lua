-- The log and what every write does. Concatenated with the other slices' functions.lua into one library.
--
-- Nothing here rolls back: a function checks everything first, then writes. `open` does the checks that are common to
-- all writes and returns the open log, or nil and the reply to give. `commit` writes what is common to all writes.
--
-- Keys of a log: meta (hash), log (list), ops:0 and ops:1 (hashes).
-- The log is a list: offsets are dense, so the entry of offset o is found by counting from the end, and a list costs a
-- third of a stream's time and memory.

local DAY = 86400000
local META_LIFE = 30 * DAY      -- a customer's epoch and offset outlive the last write by this
local LOG_LIFE = DAY            -- the log and the operation ids outlive the last write by this
local OPS_MANY = 100000         -- so many operation ids in a generation may shorten its life,
local OPS_LEAST = 120000        -- but never below this (milliseconds)

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number) return string.format('%.0f', number) end

-- A new epoch for a log that has none. TIME is in microseconds and this server runs one function at a time.
local function new_epoch()
  local time = redis.call('TIME')
  return string.format('%x', time[1] * 1000000 + time[2])
end

local function find_operations(keys, ids, digest)
  local newer, older = redis.call('HMGET', keys[3], unpack(ids)), redis.call('HMGET', keys[4], unpack(ids))
  local reply, found = {'done'}, false
  for i = 1, #ids do
    local record = newer[i] or older[i]
    if record then
      found = true
      local split = string.find(record, ':', 1, true)
      if string.sub(record, 1, split - 1) ~= digest then return {'reused', ids[i]} end
      reply[i + 1] = string.sub(record, split + 1)
    else
      reply[i + 1] = ''
    end
  end
  return found and reply or nil
end

-- args: number of operation ids, the ids, digest of the arguments (or ''), longest log, then the function's own.
-- Returns the open log with `at`, the index of the function's first own argument; or nil and a reply.
-- `merged_too`: also for a customer that was merged away, whose conversations and sessions go on where they are.
local function open(keys, args, merged_too)
  local count = tonumber(args[1])
  local ids = {}
  for i = 1, count do ids[i] = args[i + 1] end
  local digest = args[count + 2]
  local repeated = find_operations(keys, ids, digest)
  if repeated then return nil, repeated end
  local meta = redis.call('HMGET', keys[1], 'epoch', 'offset', 'into', 'generation', 'keep', 'log_keep', 'turn')
  if meta[3] and not merged_too then return nil, {'merged', meta[3]} end
  return {
    keys = keys, ids = ids, digest = digest, longest = tonumber(args[count + 3]), at = count + 4,
    now = milliseconds(), fresh = not meta[1], epoch = meta[1] or new_epoch(), offset = tonumber(meta[2] or 0),
    generation = tonumber(meta[4] or 0), keep = tonumber(meta[5] or 0), log_keep = tonumber(meta[6] or 0),
    turn = meta[7],
  }
end

-- Operation ids live in two hashes that take turns, so a day's ids are forgotten in one command.
local function remember(log, result)
  local record, pairs_ = log.digest .. ':' .. result, {}
  for i = 1, #log.ids do
    pairs_[2 * i - 1], pairs_[2 * i] = log.ids[i], record
  end
  if log.now - log.generation > DAY
    or log.offset % 4096 == 0 and log.now - log.generation > OPS_LEAST and redis.call('HLEN', log.keys[3]) > OPS_MANY
  then
    if redis.call('EXISTS', log.keys[3]) == 1 then redis.call('RENAME', log.keys[3], log.keys[4]) end
    log.log_keep = 0
    redis.call('HSET', log.keys[1], 'generation', text(log.now))
  end
  redis.call('HSET', log.keys[3], unpack(pairs_))
end

-- Deadlines are renewed about hourly, not at each write. `outlive` is a time that the log's epoch must survive, or 0.
local function prolong(log, outlive)
  local meta, wanted = log.keys[1], log.now + META_LIFE
  if log.now + LOG_LIFE > log.log_keep then
    local deadline = text(log.now + LOG_LIFE + DAY / 24)
    redis.call('HSET', meta, 'log_keep', deadline)
    for i = 2, 4 do redis.call('PEXPIREAT', log.keys[i], deadline) end
  end
  if log.keep < 0 then return end
  if outlive < 0 then
    redis.call('HSET', meta, 'keep', '-1')
    redis.call('PERSIST', meta)
    return
  end
  if outlive + DAY > wanted then wanted = outlive + DAY end
  if wanted > log.keep then
    redis.call('HSET', meta, 'keep', text(wanted + DAY))
    redis.call('PEXPIREAT', meta, text(wanted + DAY))
  end
end

-- Appends `event` (a JSON object without its closing brace) and publishes it.
-- `outlive`: a time in milliseconds, 0 for none, -1 for ever. Returns the whole event.
local function append(log, event, outlive)
  local keys = log.keys
  if log.fresh then
    -- A lost meta key must not continue what an earlier epoch left.
    redis.call('DEL', keys[2], keys[3], keys[4])
    redis.call('HSET', keys[1], 'epoch', log.epoch)
    log.fresh = false
  end
  log.offset = log.offset + 1
  event = event .. ',"time":' .. text(log.now) .. '}'
  redis.call('HSET', keys[1], 'offset', text(log.offset))
  redis.call('RPUSH', keys[2], event)
  if log.offset > log.longest and log.offset % 64 == 0 then redis.call('LTRIM', keys[2], -log.longest, -1) end
  redis.call('SPUBLISH', keys[2], log.epoch .. ' ' .. text(log.offset) .. ' ' .. event)
  log.outlive = outlive
  return event
end

-- Ends a write: its result is found again under its operation ids.
local function commit(log, result)
  remember(log, result)
  prolong(log, log.outlive or 0)
  return {'ok', result}
end

local function position(log) return text(log.offset) .. ' ' .. log.epoch end

-- log_open: the position of a log, which exists afterwards
-- keys: the log's four   reply: {"ok", epoch, offset} | {"merged", customer}
local function log_open(keys)
  local meta = redis.call('HMGET', keys[1], 'epoch', 'offset', 'into')
  if meta[3] then return {'merged', meta[3]} end
  if meta[1] then return {'ok', meta[1], meta[2] or '0'} end
  local epoch = new_epoch()
  redis.call('DEL', keys[2], keys[3], keys[4])
  redis.call('HSET', keys[1], 'epoch', epoch, 'offset', '0', 'keep', text(milliseconds() + DAY))
  redis.call('PEXPIREAT', keys[1], text(milliseconds() + DAY))
  return {'ok', epoch, '0'}
end

-- log_read: everything after a position, or nothing
-- keys: meta, log   arguments: epoch, offset, limit
-- reply: {"ok", epoch, offset of the last entry, entries...} | {"lost", epoch, offset}
local function log_read(keys, args)
  local meta = redis.call('HMGET', keys[1], 'epoch', 'offset')
  local epoch, top, after = meta[1] or '', tonumber(meta[2] or 0), tonumber(args[2])
  local missing = top - after
  if epoch ~= args[1] or missing < 0 or missing > tonumber(args[3]) then return {'lost', epoch, text(top)} end
  local reply = {'ok', epoch, text(top)}
  if missing == 0 then return reply end
  local entries = redis.call('LRANGE', keys[2], -missing, -1)
  if #entries < missing then return {'lost', epoch, text(top)} end
  for i = 1, missing do reply[i + 3] = entries[i] end
  return reply
end

define('log_open', log_open)
define('log_read', log_read, READS)
