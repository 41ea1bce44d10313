-- Sessions: one visit or login on one channel. All of a customer's sessions are in one hash, a record each, so there is no
-- index that could leak. What is over is refused at each reading by the server's time and the generation; the sweeper, or the
-- next start, makes the event and removes the record. The key's time-out is later than every deadline and only frees memory.
--
-- Fields of the hash: the name of each session with its record; 'g': the generation, which a revocation of all raises, so that
-- every record of a former one is over; 'c': the time-out of the key.
-- A record, with 13 digits for each time; tokens are here as keyed hashes, and Lua's strings are compared by their
-- addresses, in the same time for all:
-- "<ends> <seen> <absolute> <token> <generation> <idle> <started> <place> <due> <every> <number> <last token> <rotated>
--   <grace> <said> <channel> <device> <agent>"
-- - ends: the earlier of the idle and the absolute deadline. place: of its start in the log, for those of one millisecond.
-- - due, every: the next authentication, and its interval or 0.
-- - number: of the token; a session's id is "<name>.<number>". The last token answers for `grace` ms since `rotated`.
-- - said: '1' when the event of its end was made, and only the last token's grace is left of it; else '0'.
-- - channel, device, agent are JSON without spaces; device and agent may be null.
--
-- Customers' keys are followed by those of their sessions (hash) and of the partition's endings (list).
do
  local MOST_SESSIONS = 200     -- of a customer: then the oldest ends
  local MOST_ENDINGS = 4000     -- of a partition
  local ENDINGS_LIFE = 30 * DAY
  local NO_TOKEN = '--------------------------------'
  local RECORD = '^(%d+) (%d+) (%d+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%d+) (%d+) (%d) (%S+) (%S+) (%S+)$'

  -- Nil for a record that is damaged: it opens nothing, and is left for whoever looks into it.
  local function parse(name, record)
    local s = {name = name}
    s.ends, s.seen, s.absolute, s.token, s.generation, s.idle, s.started, s.place, s.due, s.every, s.number, s.last, s.rotated,
      s.grace, s.said, s.channel, s.device, s.agent = match(record, RECORD)
    return s.ends and s
  end

  local function spell(s)
    return concat({s.ends, s.seen, s.absolute, s.token, s.generation, s.idle, s.started, s.place, s.due, s.every, s.number,
      s.last, s.rotated, s.grace, s.said, s.channel, s.device, s.agent}, ' ')
  end

  -- Whose turn a token is: 'now', 'before' for the last one in its grace, or nil. A clock that went back ends the grace.
  local function token_of(s, token, generation, now)
    if s.ends + 0 <= now or s.generation ~= generation then return nil end
    if s.token == token then return 'now' end
    local since = now - s.rotated
    if s.last == token and since >= 0 and since < s.grace + 0 then return 'before' end
  end

  -- A session that lives, and what its token is of it; nil for none. And when the key is collected.
  local function find_session(key, name, token, now)
    local held = redis_call('HMGET', key, name, 'g', 'c')
    local s = held[1] and parse(name, held[1])
    local which = s and token_of(s, token, held[2] or '0', now)
    if which then return s, which, held[3] end
  end

  -- Writes a record. The key's time-out is renewed once an hour at most.
  local function store(key, s, collected)
    local wanted = s.ends + GRACE
    if collected and wanted <= collected + 0 then return redis_call('HSET', key, s.name, spell(s)) end
    wanted = text(wanted + HOUR)
    redis_call('HSET', key, s.name, spell(s), 'c', wanted)
    redis_call('PEXPIREAT', key, wanted)
  end

  local function see(s, now)
    s.seen = stamp(now)
    s.ends = stamp(math_min(now + s.idle, s.absolute + 0))
  end

  -- All of a customer's sessions, those that began first in front, and the generation.
  local function read_all(key)
    local held, all, generation, collected = redis_call('HGETALL', key), {}, '0', nil
    for i = 1, #held, 2 do
      if held[i] == 'g' then
        generation = held[i + 1]
      elseif held[i] == 'c' then
        collected = held[i + 1]
      else
        all[#all + 1] = parse(held[i], held[i + 1])
      end
    end
    table.sort(all, function(one, other)
      if one.started ~= other.started then return one.started < other.started end
      return one.place + 0 < other.place + 0
    end)
    return all, generation, collected
  end

  -- Why a session is over, or nil.
  local function cause(s, generation, now)
    if s.generation ~= generation then return '"revoked"' end
    if s.ends + 0 > now then return nil end
    return s.ends == s.absolute and '"absolute"' or '"idle"'
  end

  local function describe(s, verb)
    local event = '{"type":"session.' .. verb .. '","session":"' .. s.name .. '.' .. s.number .. '","channel":' .. s.channel
    return s.device == 'null' and event or event .. ',"device":' .. s.device
  end

  -- Adds an event to those of the partition, which are numbered without a gap: "<number> <epoch> <whose> <event>".
  local function note_ending(log, endings, event)
    local last, number, epoch = redis_call('LINDEX', endings, -1), 0, nil
    if last then number, epoch = match(last, '^(%d+) (%x+) ') end
    if not epoch or sub(epoch, EPOCH_TIME + 1) ~= primary then epoch = new_epoch() end
    number = number + 1
    local whose = match(log.keys[1], '}:(.+):meta$')
    redis_call('RPUSH', endings, text(number) .. ' ' .. epoch .. ' ' .. whose .. ' ' .. event)
    if number % 64 == 0 then redis_call('LTRIM', endings, -MOST_ENDINGS, -1) end
    redis_call('PEXPIRE', endings, ENDINGS_LIFE)
  end

  -- The event of an end, in the log and among the partition's endings. `reason` is JSON, `more` members of the event.
  local function tell_end(log, endings, s, reason, more)
    if s.said == '1' then return end
    note_ending(log, endings, append(log, describe(s, 'ended') .. ',"reason":' .. reason .. (more or '')))
  end

  -- Ends a session: there is no record any more, so it can neither end twice nor come back. The sweeper comes for what
  -- belongs to it.
  local function finish(log, key, endings, s, reason)
    tell_end(log, endings, s, reason)
    redis_call('HDEL', key, s.name)
    falls_due(log, log.now)
  end

  -- Ends what is over; returns those that live, a list without those whose end was told.
  local function sort_out(log, key, endings, all, generation)
    local living = {}
    for _, s in ipairs(all) do
      local reason = cause(s, generation, log.now)
      if reason then
        finish(log, key, endings, s, reason)
      elseif s.said == '0' then
        living[#living + 1] = s
      end
    end
    return living
  end

  -- Those of a channel that live.
  local function on_channel(all, channel, generation, now)
    local found = {}
    for _, s in ipairs(all) do
      if s.channel == channel and s.said == '0' and not cause(s, generation, now) then found[#found + 1] = s end
    end
    return found
  end

  -- Ends the oldest, so that one more of the channel may begin.
  local function make_room(log, key, endings, living, same, most)
    for i = 1, most > 0 and #same - most + 1 or 0 do
      finish(log, key, endings, same[i], '"evicted"')
      same[i].gone = true
    end
    local left = {}
    for _, s in ipairs(living) do
      if not s.gone then left[#left + 1] = s end
    end
    for i = 1, #left - MOST_SESSIONS + 1 do finish(log, key, endings, left[i], '"evicted"') end
  end

  -- session_start
  -- keys: the log's five, sessions, endings
  -- arguments: (open), name, token, idle in ms, absolute in ms, interval of authentication in ms or 0, channel, device, agent,
  --   most of the channel or 0, '1': refuse rather than end the oldest
  -- reply: '' | {"full"} | {"merged", customer} | {"done", ...}
  local function session_start(keys, args)
    local log, reply = open(keys, args)
    if not log then return reply end
    local at, now, key = log.at, log.now, keys[6]
    local all, generation, collected = read_all(key)
    local same, most = on_channel(all, args[at + 5], generation, now), tonumber(args[at + 8])
    if args[at + 9] == '1' and #same >= most then return {'full'} end
    local living = sort_out(log, key, keys[7], all, generation)
    make_room(log, key, keys[7], living, same, most)
    local every = args[at + 4]
    local s = {
      name = args[at], seen = NONE, absolute = stamp(now + args[at + 3]), token = args[at + 1], generation = generation,
      idle = args[at + 2], started = stamp(now), place = text(log.offset + 1), every = every,
      due = every == '0' and NEVER or stamp(now + every), number = '1', last = NO_TOKEN, rotated = NONE, grace = '0',
      said = '0', channel = args[at + 5], device = args[at + 6], agent = args[at + 7],
    }
    see(s, now)
    append(log, describe(s, 'started'))
    store(key, s, collected)
    falls_due(log, s.ends + 0)
    return commit(log, '', s.absolute + 0)
  end

  -- session_touch: moves the idle deadline. Doing it twice is doing it once, so there is no operation id and no event, and
  -- where there is no record nothing is written. The agenda may name an earlier time than the new deadline: the sweeper sees.
  -- keys: sessions   arguments: name, token, maybe another idle time in ms   reply: {"ok", deadline} | {"absent"}
  local function session_touch(keys, args)
    local held, now = redis_call('HMGET', keys[1], args[1], 'g', 'c'), milliseconds()
    local record = held[1]
    if not record then return {'absent'} end
    local ends, generation, idle = sub(record, 1, 13), match(record, '^(%d+) (%d+)', 76)
    if not args[3] and ends > moment_text and generation == (held[2] or '0') and sub(record, 43, 74) == args[2] then
      ends = stamp(math_min(now + idle, sub(record, 29, 41) + 0))
      if held[3] and ends + GRACE <= held[3] + 0 then
        redis_call('HSET', keys[1], args[1], ends .. ' ' .. moment_text .. sub(record, 28))
        return {'ok', ends}
      end
    end
    local s, _, collected = find_session(keys[1], args[1], args[2], now)
    if not s then return {'absent'} end
    if s.said == '0' then
      s.idle = args[3] or s.idle
      see(s, now)
      store(keys[1], s, collected)
    end
    return {'ok', s.ends}
  end

  -- session_load   keys: sessions, meta   arguments: name, token
  -- reply: {"ok", record, now, customer it was merged into or ''} | {"absent"}
  local function session_load(keys, args)
    local now = milliseconds()
    local s = find_session(keys[1], args[1], args[2], now)
    if not s then return {'absent'} end
    return {'ok', spell(s), text(now), redis_call('HGET', keys[2], 'into') or ''}
  end

  -- session_end: `grace` in ms, 0 for none: so long its token answers still.
  -- keys: as session_start   arguments: (open), name, token, reason as JSON, grace
  -- reply: '' | {"absent"} | {"rotated"}: another call was first | {"done", ...}
  local function session_end(keys, args)
    local log, reply = open(keys, args, true)
    if not log then return reply end
    local at, key = log.at, keys[6]
    local s, which, collected = find_session(key, args[at], args[at + 1], log.now)
    if not s then return {'absent'} end
    local grace = tonumber(args[at + 3])
    if grace > 0 then
      if which == 'before' then return {'rotated'} end
      tell_end(log, keys[7], s, args[at + 2])
      s.last, s.token, s.rotated, s.grace, s.said = s.token, NO_TOKEN, stamp(log.now), args[at + 3], '1'
      s.ends = stamp(math_min(s.ends + 0, log.now + grace))
      store(key, s, collected)
      falls_due(log, s.ends + 0)
    else
      finish(log, key, keys[7], s, args[at + 2])
    end
    return commit(log, '', 0)
  end

  -- session_rotate: another token for the session, which gets another id
  -- keys: as session_start   arguments: (open), name, token, new token, grace in ms
  -- reply: '' | {"absent"} | {"rotated"}: another call was first | {"done", ...}
  local function session_rotate(keys, args)
    local log, reply = open(keys, args, true)
    if not log then return reply end
    local at, key = log.at, keys[6]
    local s, which, collected = find_session(key, args[at], args[at + 1], log.now)
    if not s then return {'absent'} end
    if which == 'before' then return {'rotated'} end
    local before, number = s.name .. '.' .. s.number, text(s.number + 1)
    tell_end(log, keys[7], s, '"rotated"', ',"next":"' .. s.name .. '.' .. number .. '"')
    s.last, s.token, s.rotated, s.grace, s.number = s.token, args[at + 2], stamp(log.now), args[at + 3], number
    see(s, log.now)
    append(log, describe(s, 'started') .. ',"from":"' .. before .. '"')
    store(key, s, collected)
    return commit(log, '', 0)
  end

  -- session_reauthenticated: the customer has just proved again who they are
  -- keys: as session_start   arguments: (open), name, token
  -- reply: the next time, or '' for never | {"absent"} | {"rotated"} | {"done", ...}
  local function session_reauthenticated(keys, args)
    local log, reply = open(keys, args, true)
    if not log then return reply end
    local s, which, collected = find_session(keys[6], args[log.at], args[log.at + 1], log.now)
    if not s then return {'absent'} end
    if which == 'before' then return {'rotated'} end
    append(log, describe(s, 'reauthenticated'))
    if s.every ~= '0' then s.due = stamp(log.now + s.every) end
    store(keys[6], s, collected)
    return commit(log, s.every == '0' and '' or s.due, 0)
  end

  -- session_list: those that live   keys: sessions   reply: {now, name, record ...}
  local function session_list(keys)
    local all, generation = read_all(keys[1])
    local now = milliseconds()
    local reply = {text(now)}
    for _, s in ipairs(all) do
      if s.said == '0' and not cause(s, generation, now) then reply[#reply + 1], reply[#reply + 2] = s.name, spell(s) end
    end
    return reply
  end

  -- All of a customer's sessions are over from now on, in one step for any number of them; the sweeper makes the events.
  local function revoke_all(log, key, kept, collected, generation)
    local next_ = text(generation + 1)
    append(log, '{"type":"session.all_revoked"' .. (kept and ',"kept":"' .. kept.name .. '.' .. kept.number .. '"' or ''))
    redis_call('HSET', key, 'g', next_)
    if kept then
      kept.generation = next_
      store(key, kept, collected)
    end
    falls_due(log, log.now)
  end

  -- session_revoke: all sessions, or those of a name, a channel and a device; '' stands for any
  -- keys: as session_start   arguments: (open), name, channel, device, name and token of the one that is kept
  -- reply: number of those that were ended here | {"done", ...}
  local function session_revoke(keys, args)
    local log, reply = open(keys, args, true)
    if not log then return reply end
    local at, key, count = log.at, keys[6], 0
    local name, channel, device = args[at], args[at + 1], args[at + 2]
    local kept, _, collected = find_session(key, args[at + 3], args[at + 4], log.now)
    if name .. channel .. device == '' then
      if redis_call('EXISTS', key) == 0 then return '0' end
      revoke_all(log, key, kept, collected, redis_call('HGET', key, 'g') or '0')
      return commit(log, '0', 0)
    end
    local all, generation = read_all(key)
    for _, s in ipairs(all) do
      local fits = (name == '' or s.name == name) and (channel == '' or s.channel == channel)
        and (device == '' or s.device == device)
      if fits and not (kept and s.name == kept.name) and not cause(s, generation, log.now) then
        finish(log, key, keys[7], s, '"revoked"')
        count = count + 1
      end
    end
    if count == 0 then return '0' end
    return commit(log, text(count), 0)
  end

  -- Whether one of them names a customer who was not erased.
  local function has_told(entries)
    for _, entry in ipairs(entries) do
      if not match(entry, '^%d+ %x+ %- ') then return true end
    end
    return false
  end

  -- session_endings: ends of sessions of a partition's customers
  -- keys: endings   arguments: number and epoch of the last that is known or '', most
  -- reply: {"ok", entry ...} | {"lost", number, epoch}   Of an erased customer's only number and epoch are left, then " - ".
  local function session_endings(keys, args)
    local from, first, reply = 0, redis_call('LINDEX', keys[1], 0), {'ok'}
    if args[2] ~= '' then
      from = first and args[1] - match(first, '^%d+') + 1 or 0
      local known = from > 0 and redis_call('LINDEX', keys[1], from - 1)
      if not known or find(known, args[1] .. ' ' .. args[2] .. ' ', 1, true) ~= 1 then
        local last = redis_call('LINDEX', keys[1], -1)
        return {'lost', match(last or '0 0 ', '^(%d+) (%x+) ')}
      end
    end
    local entries
    repeat  -- a page of nothing but what was erased would look like the last one
      entries = redis_call('LRANGE', keys[1], from, from + args[3] - 1)
      from = from + args[3]
    until #entries < args[3] + 0 or has_told(entries)
    for i = 1, #entries do reply[i + 1] = entries[i] end
    return reply
  end

  -- session_read, session_write: another function of ours, for a session that lives: what belongs to a session is not read
  -- and not written through one that has ended, by the same call.
  -- keys: those of the function, sessions   arguments: those of the function, its name, name and token of the session
  -- reply: its reply | {"session_absent"}
  local function session_do(keys, args)
    local key, count = keys[#keys], #args
    if not find_session(key, args[count - 1], args[count], milliseconds()) then return {'session_absent'} end
    local callback = callbacks[args[count - 2]]
    keys[#keys], args[count], args[count - 1], args[count - 2] = nil, nil, nil, nil
    return callback(keys, args)
  end

  -- As parts of a call. keys: sessions, endings   arguments: '', name, token, reason   refusal: {"session_absent"}

  local function find_of_part(log, part, args, at)
    return find_session(part.key, args[at + 1], args[at + 2], log.now)
  end

  local function check_session(log, part, args, at)
    if not find_of_part(log, part, args, at) then return {'session_absent'} end
  end

  parts.session_expect = {check = check_session, apply = function() return '' end}
  parts.session_touch = {
    check = check_session,
    apply = function(_, part, args, at) return session_touch({part.key}, {args[at + 1], args[at + 2]})[2] or '' end,
  }
  parts.session_end = {
    check = check_session,
    apply = function(log, part, args, at)
      local s = find_of_part(log, part, args, at)
      if s then finish(log, part.key, part.keys[2], s, args[at + 3]) end
      return ''
    end,
  }

  -- For erasures.

  sessions.count = function(key) return #read_all(key) end

  -- Removes a customer's sessions, and what the partition's endings say of them; their numbers stay, so that no reader misses
  -- one. Returns how many sessions that were.
  sessions.forget = function(key, endings, whose)
    for i, entry in ipairs(redis_call('LRANGE', endings, 0, -1)) do
      local place, name = match(entry, '^(%d+ %x+) (%S+) ')
      if name == whose then redis_call('LSET', endings, i - 1, place .. ' - ') end
    end
    local count = sessions.count(key)
    redis_call('UNLINK', key)
    return count
  end

  -- For the sweeper.

  sessions.expire = function(log, key, endings)
    local all, generation = read_all(key)
    sort_out(log, key, endings, all, generation)
  end

  -- When one of them is over next, or nil; and those that live, by name.
  sessions.look = function(key, now)
    local all, generation = read_all(key)
    local nearest, live = nil, {}
    for _, s in ipairs(all) do
      local over = cause(s, generation, now)
      local time = over and now or s.ends + 0
      live[s.name] = not over
      if not nearest or time < nearest then nearest = time end
    end
    return nearest, live
  end

define('session_start', session_start)
define('session_touch', session_touch)
define('session_load', session_load, READS)
define('session_end', session_end)
define('session_rotate', session_rotate)
define('session_reauthenticated', session_reauthenticated)
define('session_list', session_list, READS)
define('session_revoke', session_revoke)
define('session_endings', session_endings, READS)
define('session_read', session_do, READS)
define('session_write', session_do)
end
