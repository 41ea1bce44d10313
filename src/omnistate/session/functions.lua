-- Sessions: one visit or login on one channel. A session is a hash; its idle deadline is in it and is its TTL.

-- session_start
-- keys: the log's five, session   arguments: (open), channel, idle in ms, event   reply: deadline | {"done", ...}
local function session_start(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local idle = tonumber(args[log.at + 1])
  local deadline = text(log.now + idle)
  append(log, args[log.at + 2])
  redis_call('HSET', keys[6], 'channel', args[log.at], 'idle', args[log.at + 1], 'deadline', deadline,
    'started', text(log.now))
  redis_call('PEXPIRE', keys[6], idle)
  return commit(log, deadline, log.now + idle)
end

-- session_touch: moves the idle deadline. Doing it twice is doing it once, so there is no operation id and no event.
-- keys: session   reply: {"ok", deadline, channel} | {"absent"}
local function session_touch(keys)
  local session = redis_call('HMGET', keys[1], 'idle', 'deadline', 'channel')
  local now = milliseconds()
  if not session[1] or tonumber(session[2]) <= now then return {'absent'} end
  local deadline = text(now + tonumber(session[1]))
  redis_call('HSET', keys[1], 'deadline', deadline)
  redis_call('PEXPIRE', keys[1], session[1])
  return {'ok', deadline, session[3]}
end

-- session_end
-- keys: the log's five, session   arguments: (open), event   reply: channel | {"absent"} | {"done", ...}
local function session_end(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local channel = redis_call('HGET', keys[6], 'channel')
  if not channel then return {'absent'} end
  append(log, args[log.at])
  redis_call('DEL', keys[6])
  return commit(log, channel, 0)
end

-- As parts of a call. keys: session   arguments: '', event of an end   refusal: {"session_absent"}

local function check_session(log, part)
  local deadline = redis_call('HGET', part.key, 'deadline')
  if not deadline or tonumber(deadline) <= log.now then return {'session_absent'} end
end

parts.session_expect = {check = check_session, apply = function() return '' end}
parts.session_touch = {check = check_session, apply = function(_, part) return session_touch(part.keys)[2] or '' end}
parts.session_end = {
  check = check_session,
  apply = function(log, part, args, at)
    append(log, args[at + 1])
    redis_call('DEL', part.key)
    return ''
  end,
}

define('session_start', session_start)
define('session_touch', session_touch)
define('session_end', session_end)
