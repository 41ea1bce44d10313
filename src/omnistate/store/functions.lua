-- The log and what every write does. Concatenated with the other slices' functions.lua into one library.
--
-- Nothing here rolls back: a function checks everything first, then writes. `open` does the checks that are common to
-- all writes and returns the open log, or nil and the reply to give. `append` and `commit` write what is common.
--
-- Keys of a log: meta (hash), log (list), older (hash).
-- - log: offsets are dense, so the entry of offset o is found by counting from the end of a list.
-- - meta: 's' is "<epoch> <offset> <due> <keep> <generation> <older>"; 'into' when the customer was merged away; 'turn';
--   and one field for each operation id of this generation. They share a hash so that a write reads it once and
--   writes it once. `due`: when the time-outs below are looked at again. `keep`: when meta may expire, or -1.
-- - older: the last generation's operation ids; meta is renamed to it once a day.
-- A redis.call costs about 0.6 microseconds before it does anything, so their number is what a write costs.

local HOUR = 3600000
local DAY = 24 * HOUR
local META_LIFE = 30 * DAY      -- a log's epoch and offset outlive the last write by this
local LOG_LIFE = DAY            -- the log and the operation ids outlive the last write by this
local LONGEST_LOG = 1000        -- entries
local OPS_MANY = 100000         -- so many operation ids in a generation may shorten its life,
local OPS_LEAST = 120000        -- but never below this (milliseconds)

local function milliseconds()
  local time = redis_call('TIME')
  return time[1] * 1000 + (time[2] - time[2] % 1000) / 1000
end

local function text(number) return format('%.0f', number) end

-- A new epoch for a log that has none. TIME is in microseconds and this server runs one function at a time.
local function new_epoch()
  local time = redis_call('TIME')
  return format('%x', time[1] * 1000000 + time[2])
end

-- What is known of operation ids. `records` holds them from index `first` on. Returns a reply when any was applied.
local function repeated(ids, digest, records, first)
  local reply, found = {'done'}, false
  for i = 1, #ids do
    local record = records[first + i - 1]
    reply[i + 1] = ''
    if record then
      found = true
      local split = find(record, ':', 1, true)
      if sub(record, 1, split - 1) ~= digest then return {'reused', ids[i]} end
      reply[i + 1] = sub(record, split + 1)
    end
  end
  return found and reply
end

-- args: number of operation ids, the ids, digest of the arguments (or ''), then the function's own.
-- Returns the open log with `at`, the index of the function's first own argument; or nil and a reply.
-- `merged_too`: also for a customer that was merged away, whose conversations and sessions go on where they are.
local function open(keys, args, merged_too)
  local count, meta, ids = tonumber(args[1]), nil, nil
  local digest = args[count + 2]
  if count == 1 then
    meta = redis_call('HMGET', keys[1], 's', 'into', 'turn', args[2])
    if meta[4] then return nil, repeated({args[2]}, digest, meta, 4) end
  else
    ids = {}
    for i = 1, count do ids[i] = args[i + 1] end
    meta = redis_call('HMGET', keys[1], 's', 'into', 'turn', unpack(ids))
    local reply = repeated(ids, digest, meta, 4)
    if reply then return nil, reply end
  end
  local state = meta[1]
  if not state then
    if meta[2] and not merged_too then return nil, {'merged', meta[2]} end
    return {
      keys = keys, id = args[2], ids = ids, digest = digest, at = count + 3, now = milliseconds(), turn = false,
      fresh = true, epoch = new_epoch(), offset = 0, due = 0, keep = '0', rest = '0 0', older = false,
    }
  end
  local epoch, offset, due, keep, rest, older = match(state, '^(%x+) (%d+) (%d+) (%-?%d+) (%d+ (%d))$')
  if older == '1' then
    ids = ids or {args[2]}
    local reply = repeated(ids, digest, redis_call('HMGET', keys[3], unpack(ids)), 1)
    if reply then return nil, reply end
  end
  if meta[2] and not merged_too then return nil, {'merged', meta[2]} end
  return {
    keys = keys, id = args[2], ids = ids, digest = digest, at = count + 3, now = milliseconds(), turn = meta[3],
    fresh = false, epoch = epoch, offset = tonumber(offset), due = tonumber(due), keep = keep, rest = rest,
    older = older == '1',
  }
end

-- Time-outs are renewed hourly, not at each write. `outlive` is a time that the log's epoch must survive; -1: for ever.
local function look_after(log, outlive)
  local keys, now = log.keys, log.now
  local meta = keys[1]
  local generation = tonumber(match(log.rest, '^%d+'))
  local age = now - generation
  if age > DAY or age > OPS_LEAST and redis_call('HLEN', meta) > OPS_MANY then
    if not log.fresh and generation > 0 then
      local others = redis_call('HMGET', meta, 'into', 'turn')
      redis_call('RENAME', meta, keys[3])
      redis_call('HDEL', keys[3], 's', 'into', 'turn')
      if others[1] then redis_call('HSET', meta, 'into', others[1]) end
      log.older = redis_call('EXISTS', keys[3]) == 1
    end
    generation = now
  end
  log.rest = text(generation) .. (log.older and ' 1' or ' 0')
  log.due = now + HOUR
  redis_call('PEXPIREAT', keys[2], text(now + LOG_LIFE + HOUR))
  redis_call('PEXPIREAT', keys[3], text(now + LOG_LIFE + HOUR))
  local keep = tonumber(log.keep)
  if outlive < 0 or keep < 0 then
    keep = -1
  else
    local wanted = now + META_LIFE
    if outlive + DAY > wanted then wanted = outlive + DAY end
    if wanted > keep then keep = wanted + DAY end
  end
  log.keep, log.expire = text(keep), true
end

-- Appends `event` (a JSON object without its closing brace) and publishes it. Returns the whole event.
local function append(log, event)
  local list = log.keys[2]
  if log.fresh then redis_call('DEL', list, log.keys[3]) end  -- nothing of a lost epoch is continued
  local offset = log.offset + 1
  log.offset = offset
  event = event .. ',"time":' .. text(log.now) .. '}'
  redis_call('RPUSH', list, event)
  if offset > LONGEST_LOG and offset % 64 == 0 then redis_call('LTRIM', list, -LONGEST_LOG, -1) end
  redis_call('SPUBLISH', list, log.epoch .. ' ' .. text(offset) .. ' ' .. event)
  return event
end

-- Ends a write: its result is found again under its operation ids.
-- `outlive`: a time in milliseconds that the log's epoch must survive, 0 for none, -1 for ever.
local function commit(log, result, outlive)
  local offset, meta, keep = log.offset, log.keys[1], nil
  if log.now >= log.due or offset % 4096 == 0 then
    look_after(log, outlive)
  elseif outlive ~= 0 then
    keep = tonumber(log.keep)
    if keep >= 0 and (outlive < 0 or outlive + DAY > keep) then look_after(log, outlive) end
  end
  local state = log.epoch .. ' ' .. text(offset) .. ' ' .. text(log.due) .. ' ' .. log.keep .. ' ' .. log.rest
  local record = log.digest .. ':' .. result
  if log.ids then
    local pairs_ = {}
    for i = 1, #log.ids do pairs_[2 * i - 1], pairs_[2 * i] = log.ids[i], record end
    redis_call('HSET', meta, 's', state, unpack(pairs_))
  else
    redis_call('HSET', meta, 's', state, log.id, record)
  end
  if log.expire then
    if log.keep == '-1' then redis_call('PERSIST', meta) else redis_call('PEXPIREAT', meta, log.keep) end
  end
  return result
end

local function position(log) return text(log.offset) .. ' ' .. log.epoch end

local function read_meta(meta)
  local found = redis_call('HMGET', meta, 's', 'into')
  local epoch, offset
  if found[1] then epoch, offset = match(found[1], '^(%x+) (%d+)') end
  return epoch, offset or '0', found[2]
end

-- log_open: the position of a log, which exists afterwards
-- keys: the log's three   reply: {"ok", epoch, offset} | {"merged", customer}
local function log_open(keys)
  local epoch, offset, into = read_meta(keys[1])
  if into then return {'merged', into} end
  if epoch then return {'ok', epoch, offset} end
  epoch = new_epoch()
  local keep = text(milliseconds() + DAY)
  redis_call('DEL', keys[1], keys[2], keys[3])
  redis_call('HSET', keys[1], 's', epoch .. ' 0 0 ' .. keep .. ' 0 0')
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

define('log_open', log_open)
define('log_read', log_read, READS)
