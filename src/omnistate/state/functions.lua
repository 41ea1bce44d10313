-- Documents. A document is a hash: one field per field of the class, one per entry of a mapping. Values are opaque bytes.
-- Its header is in meta, in the field 'doc:<entry>':
-- "<offset> <epoch> <bytes> <deadline> <collected> <codec> <class version>[ born=][ next=][ index=]".
-- - Offset and epoch are its version. `bytes` is never too low: it grows by what is written, and is counted anew before it
--   would refuse anything.
-- - The deadline is what counts, 0 for none; `collected` is the key's own time-out, which is later and only collects the
--   garbage, so it is rarely renewed. 0: the key has none.
-- - born: when it began, where the class has a lifetime. next: the earliest deadline of one of its fields, or earlier.
--   index: the names of the indexes that hold it.
-- The deadline of a field or entry is in the hash too, in a field of the same name after '!'. It stays through changes of
-- the value and goes with it.

local MOST_BYTES = 262144         -- of a document
local MOST_DOCUMENTS = 1000       -- of a customer, collections too
local MOST_OF_CUSTOMER = 67108864 -- bytes of all documents and collections together
local WEIGHED = 65536             -- a document that grew over a multiple of this is weighed with the others
local GRACE = HOUR                -- a key outlives the deadline by this at least: a clock that was ahead may go back
local LARGEST = 9007199254740991  -- integers are safe up to 2^53 in every language that will read them
local collection_kinds = {}        -- filled by the slice of collections: how the entries of each kind expire
local readers                      -- set by the slice of collections: how each kind is read
local sessions = {}                -- filled by the slice of sessions: what the sweeper needs of them
local HEADER = '^(%d+) (%d+) (%d+ %x+) (%d+) %S+ (%d+)(.*)$'

-- Version, bytes, collection time, class version and further members of a document that is there at `now`; nil for none.
local function look(header, now)
  if not header then return nil end
  local deadline, collected, version, bytes, class, more = match(header, HEADER)
  if deadline + 0 <= now then return nil end
  return version, bytes + 0, collected + 0, class, more
end

-- A deadline as it is in a header, 0 for none.
local function deadline_in(header)
  local deadline = sub(header, 1, 13)
  return deadline == NEVER and 0 or deadline + 0
end

-- A header; `rest` is codec, class version and what follows.
local function spell_header(deadline, collected, position, bytes, rest)
  deadline = deadline == 0 and NEVER or stamp(deadline)
  return deadline .. ' ' .. stamp(collected) .. ' ' .. position .. ' ' .. text(bytes) .. ' ' .. rest
end

-- expected: '*' any, '-' absent, '+' present, or "<offset> <epoch>", the version that the document must have.
local function meets(version, expected)
  if expected == '*' then return true end
  if expected == '-' then return not version end
  if expected == '+' then return version ~= nil end
  return version == expected
end

-- Turns: a writer that has lost several races may keep others off the document for a moment, so that none starves. A turn
-- is no lock that correctness rests on: it ends by itself, and a clock that was set back makes it void.
local function others_turn(log, entry, token)
  local counts, what, whose = turn_counts(log)
  return counts and what == entry and whose ~= token
end

local function take_turn(log, entry, token)
  local meta = log.keys[1]
  redis_call('HSET', meta, 'turn', entry .. ' ' .. token .. ' ' .. text(log.now + TURN))
  local state = redis_call('HGET', meta, 's')
  if state then redis_call('HSET', meta, 's', '0' .. sub(state, 2)) end
end

-- How a write is meant, in one argument that is the same for many calls: it is parsed once.
-- "<patch | replace | rewrite> <ttl> <lifetime> <codec> <class version> <sets> <drops> <steps> <1: with a turn's token>"
--   rewrite: the same document as a whole: its fields keep their deadlines
--   ttl in ms, 0 for none or -1 to keep the deadline; lifetime in ms or 0
local HOW = '^(%a+) (%-?%d+) (%d+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d)$'
local MOST_PLANS = 500
local plans, plan_count = {}, 0

local function plan_of(how)
  local plan = plans[how]
  if plan then return plan end
  local mode, ttl, lifetime, codec, class, sets, drops, steps, turn = match(how, HOW)
  plan = {
    mode = mode, replace = mode ~= 'patch', ttl = ttl + 0, lifetime = lifetime + 0, form = codec .. ' ' .. class,
    class = class, sets = 2 * sets, drops = drops + 0, steps = steps + 0, turn = turn == '1', at = -1,
  }
  plan.is_plain = mode == 'patch' and plan.ttl >= 0 and plan.lifetime == 0 and plan.drops == 0 and plan.steps < 2 and not plan.turn
  if plan_count == MOST_PLANS then plans, plan_count = {}, 0 end
  plans[how], plan_count = plan, plan_count + 1
  return plan
end

-- The beginning of an event about the document or collection of this entry, as "<what>.<verb>".
local function begin_event(entry, header, verb)
  local name, owner = match(entry, '^doc:([^:]+):?(.*)$')
  local kind = match(header, '^%d+ %d+ %d+ %x+ %d+ ([^%s/]+)')
  local what = collection_kinds[kind] and 'collection' or 'state'
  local event = '{"type":"' .. what .. '.' .. verb .. '","' .. what .. '":"' .. name .. '"'
  if owner ~= '' then event = event .. ',"owner":"' .. owner .. '"' end
  return event
end

-- Ends a document whose deadline has passed, when no index holds it; its key is collected by its own time-out.
expire_document = function(log, entry, header)
  local deadline, more = match(header, '^(%d+) %d+ %d+ %x+ %d+ %S+ %d+(.*)$')
  if deadline + 0 > log.now or find(more, ' index=', 1, true) then return false end
  append(log, begin_event(entry, header, 'expired'))
  redis_call('SREM', log.keys[4], entry)
  return true
end

-- A string as JSON. Names of entries are text that was checked to be UTF-8.
local function quote(name)
  return '"' .. gsub(name, '[%c"\\]', function(c) return format('\\u%04x', byte(c)) end) .. '"'
end

-- Removes the fields whose deadlines have passed, with an event. Returns the next deadline, or nil.
local function purge(log, document, entry, header)
  local held, gone, names, nearest = redis_call('HGETALL', document), {}, {}, nil
  for i = 1, #held, 2 do
    if byte(held[i]) == 33 then
      local deadline = tonumber(held[i + 1])
      if deadline <= log.now then
        gone[#gone + 1], gone[#gone + 2] = held[i], sub(held[i], 2)
        names[#names + 1] = quote(sub(held[i], 2))
      elseif not nearest or deadline < nearest then
        nearest = deadline
      end
    end
  end
  if #gone > 0 then
    append(log, begin_event(entry, header, 'entries_expired') .. ',"fields":[' .. concat(names, ',') .. ']')
    for i = 1, #gone, 1000 do redis_call('HDEL', document, unpack(gone, i, math_min(i + 999, #gone))) end
  end
  return nearest
end

-- The header of a document or collection of which entries have ended, with an event at the log's position.
local function after_purge(log, key, header, nearest)
  header = gsub(gsub(header, ' next=%d+', nearest and ' next=' .. text(nearest) or ''), '^(%d+ %d+ )%d+ %x+', '%1' .. log.position)
  -- Its time-out went with the last entry: the next write gives it another.
  if redis_call('EXISTS', key) == 0 then header = gsub(header, '^(%d+) %d+', '%1 ' .. NONE) end
  return header
end

-- Ends the entries whose time is over. Returns the new header of the document or collection.
local function end_entries(log, key, entry, header, deadlines)
  local purge_ = collection_kinds[match(header, '^%d+ %d+ %d+ %x+ %d+ ([^%s/]+)')] or purge
  local offset = log.offset
  local nearest, freed = purge_(log, key, entry, header, deadlines)
  if freed then
    local at, bytes, rest = match(header, '^(%d+ %d+ %d+ %x+ )(%d+)(.*)$')
    header = at .. text(math_max(bytes - freed, 0)) .. rest
  end
  if log.offset > offset then return after_purge(log, key, header, nearest) end
  return (gsub(header, ' next=%d+', nearest and ' next=' .. text(nearest) or ''))
end

-- A hash as its fields and values, without the fields whose deadlines have passed.
local function unexpired(held, now)
  local gone, rest = {}, {}
  for i = 1, #held, 2 do
    if byte(held[i]) == 33 and tonumber(held[i + 1]) <= now then gone[held[i]], gone[sub(held[i], 2)] = true, true end
  end
  for i = 1, #held, 2 do
    if not gone[held[i]] then rest[#rest + 1], rest[#rest + 2] = held[i], held[i + 1] end
  end
  return rest
end

local function refused(log, document, header, version, reason)
  local class = version and match(header, '^%d+ %d+ %d+ %x+ %d+ %S+ (%d+)')
  if class == '0' then return {'kind', match(header, '^%d+ %d+ %d+ %x+ %d+ (%S+)')} end
  return {'conflict', version and header or '', version and unexpired(redis_call('HGETALL', document), log.now) or {}, reason}
end

-- A version means the entries of a document too. Some that have ended since are noted now, so that it is another version:
-- whoever asked for the former one does not bring them back. Returns the new header, or nil.
local function ended_since(log, part, entry, expected)
  local nearest = byte(expected) > 47 and tonumber(match(part.header, ' next=(%d+)'))
  if not nearest or nearest > log.now then return nil end
  local offset = log.offset
  local header = end_entries(log, part.key, entry, part.header, part.keys and part.keys[2])
  if log.offset == offset then return nil end
  log.count = 0  -- the operation itself is refused, and not remembered
  commit(log, '', 0, entry, header)
  return header
end

-- The bytes of a document once args[first ... last] (field, value ...) are set and args[drop ... dropped] are gone.
local function count_bytes(document, args, first, last, drop, dropped)
  local held, bytes = redis_call('HGETALL', document), 0
  local sizes = {}
  for i = 1, #held, 2 do sizes[held[i]] = #held[i] + #held[i + 1] end
  for i = first, last, 2 do sizes[args[i]] = #args[i] + #args[i + 1] end
  for i = drop, dropped do sizes[args[i]] = nil end
  for _, size in pairs(sizes) do bytes = bytes + size end
  return bytes
end

-- Whether the customer has room: nil, or a reply. `bytes`: of entry, which had `before`; `is_new`: it was not there. What
-- other parts of the same call add is counted too.
local function over_quota(log, entry, bytes, before, is_new)
  if is_new then
    if redis_call('SCARD', log.keys[4]) + log.added >= MOST_DOCUMENTS then return {'full', 'documents', text(MOST_DOCUMENTS)} end
    log.added = log.added + 1
  end
  local sum = bytes + log.grown
  log.grown = log.grown + bytes - before
  if bytes - bytes % WEIGHED <= before then return nil end
  local entries = redis_call('SMEMBERS', log.keys[4])
  for i = 1, #entries do
    local header = entries[i] ~= entry and redis_call('HGET', log.keys[1], entries[i])
    if header then sum = sum + tonumber(match(header, '^%d+ %d+ %d+ %x+ (%d+)')) end
  end
  if sum > MOST_OF_CUSTOMER then return {'full', 'bytes', text(MOST_OF_CUSTOMER)} end
end

-- The deadline of what is written now, and the beginning of its life where the class limits that.
local function deadline_of(log, part, ttl, lifetime)
  if lifetime == 0 then return ttl > 0 and log.now + ttl or 0 end
  local born = part.more and tonumber(match(part.more, ' born=(%d+)')) or log.now
  part.born = born
  local ends = born + lifetime
  if ttl > 0 and log.now + ttl < ends then return log.now + ttl end
  return ends
end

-- Gives a key its time-out. Returns `collected` for the header. `begins`: it has none yet.
local function keep_until(log, part, deadline, ttl, begins)
  local key, collected = part.key, part.collected
  if deadline > 0 then
    if begins or deadline + GRACE > collected then
      collected = deadline + GRACE + ttl / 16 + 1000
      -- A hash that has lost its last field has lost its time-out as well, so the next write gives it another.
      if redis_call('PEXPIREAT', key, text(collected)) == 0 then collected = 0 end
      part.outlive = deadline + ttl / 8
    elseif part.shrinks and redis_call('EXISTS', key) == 0 then
      collected = 0
    end
    if begins or part.deadline == 0 or deadline < part.deadline then falls_due(log, deadline) end
    return collected
  end
  if begins or collected > 0 then
    if not begins then redis_call('PERSIST', key) end
    part.outlive = -1
  end
  return 0
end

-- A write is a part of a call. Its arguments from `at` to `last`: entry, expected, how (as above), event, steps (field, amount,
-- event text after the sum ...), sets (field, value ...), drops (field ...), and then any of
--   'until', field, deadline in ms from now or 0, ...        a deadline of its own for a field
--   'index', name, score                                     with a key each, after the document's and the history's; the
--     score may be '' for none, 'now', '@<field>' for the integer in a field, '+<score>' for a document that begins
--   'history', entries to keep, age in ms, who               with the key after the document's
-- and at last the token of a turn, if `how` says so.
local OPTIONS = {['until'] = 3, index = 3, history = 4}

-- `alone`: nothing of this call is written before this part is.
local function check_write(log, part, args, at, last, alone)
  local entry, now, header = args[at], log.now, part.header
  local expected, token, plan = args[at + 1], '', plan_of(args[at + 2])
  local replace = plan.replace
  if plan.turn then token, last = args[last], last - 1 end
  local version, bytes, collected, class, more = look(header, now)
  local must_wait = log.turn and others_turn(log, entry, token)
  if not meets(version, expected) then
    if token ~= '' and not must_wait then take_turn(log, entry, token) end
    return refused(log, part.key, header, version, must_wait and 'turn' or 'version')
  end
  if must_wait then return {'wait'} end
  if more and more ~= '' then
    header = ended_since(log, part, entry, expected)
    if header then return refused(log, part.key, header, version, 'version') end
    header = part.header
  end
  if version and class ~= plan.class then
    local kind = class == '0' and match(header, '^%d+ %d+ %d+ %x+ %d+ (%S+)')
    if kind then return {'kind', kind} end
    -- An older class does not replace what a newer one wrote, unless it has read it.
    if not replace or expected == '*' and tonumber(class) > tonumber(plan.class) then
      return refused(log, part.key, header, version, 'class')
    end
  end

  local step = at + 4
  local first = step + 3 * plan.steps
  local tail = first + plan.sets - 1
  local drop = tail + 1
  local dropped = drop + plan.drops - 1
  local begins = replace or not version
  local before = bytes or 0
  if begins then bytes = 0 end
  for i = first, tail do bytes = bytes + #args[i] end
  -- A sum that cannot be is found when it is written, if that is the first write; otherwise it is looked for here.
  local careful = not alone or not version and header or more and more ~= '' or plan.steps > 1
  local nearest = careful and more and tonumber(match(more, ' next=(%d+)'))
  local some_ended = nearest and nearest <= now
  for i = step, first - 1, 3 do
    bytes = bytes + #args[i] + 17
    if careful then
      local ends = some_ended and tonumber(redis_call('HGET', part.key, '!' .. args[i]) or '')
      local held = not begins and not (ends and ends <= now) and redis_call('HGET', part.key, args[i]) or '0'
      local sum = match(held, '^%-?%d+$') and tonumber(held) + tonumber(args[i + 1])
      if not sum or sum > LARGEST or sum < -LARGEST then return {'not_integer', args[i]} end
    end
  end
  if bytes > MOST_BYTES then
    if not begins then bytes = count_bytes(part.key, args, first, tail, drop, dropped) end
    if bytes > MOST_BYTES then return {'large', text(bytes)} end
  end
  if not version or bytes - bytes % WEIGHED > before then
    local reply = over_quota(log, entry, bytes, before, not version)
    if reply then return reply end
  end
  part.version, part.bytes, part.collected, part.more, part.begins = version, bytes, collected, more, begins
  part.step, part.first, part.tail, part.drop, part.dropped, part.outlive, part.born = step, first, tail, drop, dropped, 0, false
  part.plan, part.last = plan, last
end

-- What history keeps of a change: "<version> <version before> <class version before> <time> <kind> <length of who>\n<who>", then
-- the fields as they were before it, each as "<name length> <value length or -1> <name><value>". kind: fields | whole | deleted.
local function remember(log, part, key, args, at, keep, age, who)
  local before, lines, names = part.version, {}, {}
  local document = part.key
  if before and part.begins then
    local held = redis_call('HGETALL', document)
    if part.more ~= '' then held = unexpired(held, log.now) end  -- what has ended is not to be brought back by `undo`
    for i = 1, #held, 2 do lines[#lines + 1] = format('%d %d ', #held[i], #held[i + 1]) .. held[i] .. held[i + 1] end
  elseif before then
    for i = part.first, part.tail, 2 do names[#names + 1] = args[i] end
    for i = part.drop, part.dropped do
      names[#names + 1] = args[i]
      if part.more ~= '' then names[#names + 1] = '!' .. args[i] end  -- its deadline goes with it
    end
    for i = part.step, part.first - 1, 3 do names[#names + 1] = args[i] end
    local held = #names > 0 and redis_call('HMGET', document, unpack(names)) or {}
    for i = 1, #names do
      local value = held[i]
      lines[i] = format('%d %d ', #names[i], value and #value or -1) .. names[i] .. (value or '')
    end
  end
  part.remembered = function(version)
    local kind = part.gone and 'deleted' or part.begins and 'whole' or 'fields'
    local class = before and match(part.header, '^%d+ %d+ %d+ %x+ %d+ %S+ (%d+)') or '0'
    local line = concat({version, before or '- -', class, text(log.now), kind, text(#who)}, ' ') .. '\n' .. who .. concat(lines)
    redis_call('RPUSH', key, line)
    if tonumber(keep) > 0 then redis_call('LTRIM', key, '-' .. keep, -1) end
    for _ = 1, 2 do  -- what is older than the age: two for each that comes, so the list never grows by age
      local oldest = redis_call('LINDEX', key, 0)
      local time = oldest and match(oldest, '^%d+ %x+ %S+ %S+ %d+ (%d+) ')
      if not time or log.now - tonumber(time) <= tonumber(age) then break end
      redis_call('LPOP', key)
    end
    redis_call('PEXPIREAT', key, text(log.now + age))
  end
end

-- Adds to an integer of a document. Returns the sum as text; nil, and nothing has changed, where there is none.
local function add(document, field, amount)
  local sum = redis_pcall('HINCRBY', document, field, amount)
  if type(sum) ~= 'number' then return nil end
  if sum > LARGEST or sum < -LARGEST then
    redis_call('HINCRBY', document, field, -amount)
    return nil
  end
  return text(sum)
end

-- What a plan says at a moment: the deadline, and what the time-out of the key must be at least.
local function time_plan(plan, now)
  plan.at = now
  if plan.ttl == 0 then
    plan.deadline, plan.renew = NEVER, NONE
  else
    plan.deadline, plan.renew = stamp(now + plan.ttl), stamp(now + plan.ttl + GRACE)
  end
  plan.edge = plan.deadline .. '9'  -- is after a header with the same deadline
end

-- Returns "<offset> <epoch>", with a further line for the sums of steps; or nil and a refusal, before anything is written.
local function apply_write(log, part, args, at)
  local document, now, entry, plan, last = part.key, log.now, args[at], part.plan, part.last
  local begins, version, ttl, lifetime = part.begins, part.version, plan.ttl, plan.lifetime
  local more, options, result, extra = part.more, part.dropped + 1, '', ''
  if not version and part.header then
    append(log, begin_event(entry, part.header, 'expired'))
  elseif more and more ~= '' then
    local nearest = tonumber(match(more, ' next=(%d+)'))
    if nearest and nearest <= now and plan.mode ~= 'replace' then
      nearest = purge(log, document, entry, part.header)
      if redis_call('EXISTS', document) == 0 then part.collected = 0 end  -- its time-out went with the last field
      more = gsub(more, ' next=%d+', nearest and ' next=' .. text(nearest) or '')
    end
  end
  local index_key, history = 2, nil
  local option = options
  while option <= last do
    if args[option] == 'history' then history, index_key = option, 3 end
    option = option + OPTIONS[args[option]]
  end
  if history then remember(log, part, part.keys[2], args, at, args[history + 1], args[history + 2], args[history + 3]) end
  local rewritten = more and plan.mode == 'rewrite' and match(more, ' next=') and redis_call('HGETALL', document) or {}
  if begins then redis_call('DEL', document) end
  local event = args[at + 3]
  for i = part.step, part.first - 1, 3 do
    local sum = add(document, args[i], args[i + 1])
    if not sum then return nil, {'not_integer', args[i]} end
    event, result = event .. sum .. args[i + 2], (result == '' and '\n' or result .. ' ') .. sum
  end
  if part.tail > part.first then redis_call('HSET', document, unpack(args, part.first, part.tail)) end
  part.shrinks = part.dropped >= part.drop
  if part.shrinks then redis_call('HDEL', document, unpack(args, part.drop, part.dropped)) end
  append(log, event)
  local position = log.position
  if history then part.remembered(position) end

  if options <= last or more and more ~= '' or lifetime > 0 then
    local nearest = more and (not begins or #rewritten > 0) and tonumber(match(more, ' next=(%d+)'))
    for i = 1, #rewritten, 2 do
      if byte(rewritten[i]) == 33 and redis_call('HEXISTS', document, sub(rewritten[i], 2)) == 1 then
        redis_call('HSET', document, rewritten[i], rewritten[i + 1])
      end
    end
    if nearest and part.shrinks then
      for i = part.drop, part.dropped do redis_call('HDEL', document, '!' .. args[i]) end
    end
    local indexes = {}
    local i = options
    while i <= last do
      local option = args[i]
      if option == 'until' then
        if args[i + 2] == '0' then
          redis_call('HDEL', document, '!' .. args[i + 1])
        elseif redis_call('HEXISTS', document, args[i + 1]) == 1 then
          local deadline = now + args[i + 2]
          redis_call('HSET', document, '!' .. args[i + 1], text(deadline))
          falls_due(log, deadline)
          if not nearest or deadline < nearest then nearest = deadline end
        end
      elseif option == 'index' then
        local member = match(log.keys[1], '}:(.+):meta$') .. sub(entry, #match(entry, '^doc:[^:]+') + 1)
        local score, only_new = args[i + 2], false
        if byte(score) == 64 then
          score = redis_call('HGET', document, sub(score, 2)) or ''
        elseif byte(score) == 43 then
          score, only_new = sub(score, 2), true
        end
        if score == 'now' then score = text(now) end
        if only_new and version then
          score = nil  -- as it is
        elseif score == '' then
          redis_call('ZREM', part.keys[index_key], member)
        else
          redis_call('ZADD', part.keys[index_key], score, member)
        end
        indexes[#indexes + 1], index_key = args[i + 1], index_key + 1
      end
      i = i + OPTIONS[option]
    end
    if nearest then extra = ' next=' .. text(nearest) end
    local held = more and match(more, ' index=(%S+)') or ''
    for _, name in ipairs(indexes) do
      if not find(',' .. held .. ',', ',' .. name .. ',', 1, true) then held = held == '' and name or held .. ',' .. name end
    end
    if held ~= '' then extra = extra .. ' index=' .. held end
  end

  part.deadline = version and deadline_in(part.header) or 0
  local deadline = 0
  if ttl < 0 then
    deadline, ttl = part.deadline, part.deadline - now
    part.born = more and match(more, ' born=(%d+)')
  elseif ttl + lifetime > 0 then
    deadline = deadline_of(log, part, ttl, lifetime)
  end
  if part.born then extra = ' born=' .. text(part.born) .. extra end
  local collected = keep_until(log, part, deadline, ttl > 0 and ttl or lifetime, begins)
  if not version then redis_call('SADD', log.keys[4], entry) end
  if plan.turn then
    redis_call('HDEL', log.keys[1], 'turn')
    log.turn = false
  end
  local header = spell_header(deadline, collected, position, part.bytes, plan.form .. extra)
  return position .. result, nil, header
end

-- The usual write, in a third of the time: a patch of a document that is there, of the class's present shape, without history,
-- indexes or deadlines of fields, of a customer of whom nothing else is to be looked at. It makes the checks of `open` and
-- `check_write`, and writes what `apply_write` and `commit` write. Returns nil, having written nothing, for every other,
-- also when it is to be refused, when the room has to be counted, or a time-out is to be renewed.
local function write_plainly(keys, args)
  local plan, meta, document = plan_of(args[6]), keys[1], keys[6]
  local first = 8 + 3 * plan.steps
  local tail = first + plan.sets - 1
  if #args ~= tail then return nil end  -- it has options
  local held = redis_call('HMGET', meta, 's', args[4], args[2])
  local state, header = held[1], held[2]
  if held[3] or not state or not header then return nil end
  local now = milliseconds()
  if state <= plain_moment or header <= moment_text then return nil end
  local version, counted, form = match(header, '^(%d+ %x+) (%d+) (.*)$', 29)
  if form ~= plan.form or args[5] ~= '*' and args[5] ~= version then return nil end
  local offset, epoch = match(state, '^(%d+) (%x+)$', 16)
  offset = offset + 1
  if offset % 64 == 0 or offset == 1 or sub(epoch, EPOCH_TIME + 1) ~= primary then return nil end
  local before = counted + 0
  local bytes = plan.steps == 1 and before + #args[8] + 17 or before
  for i = first, tail do bytes = bytes + #args[i] end
  if bytes > MOST_BYTES or bytes - bytes % WEIGHED > before then return nil end
  if plan.at ~= now then time_plan(plan, now) end
  local collected = sub(header, 15, 27)
  -- The deadline moves on, and the key's time-out is late enough for it.
  if plan.renew > collected or plan.edge < header or plan.ttl == 0 and collected ~= NONE then return nil end

  local event, sum = args[7], nil
  if plan.steps == 1 then
    sum = add(document, args[8], args[9])
    if not sum then return {'not_integer', args[8]} end
    event = event .. sum .. args[10] .. moment_end
  else
    event = event .. moment_end
  end
  if plan.sets == 2 then
    redis_call('HSET', document, args[first], args[tail])
  elseif plan.sets > 0 then
    redis_call('HSET', document, unpack(args, first, tail))
  end
  local position = text(offset) .. ' ' .. epoch
  publish(keys[2], position, event)
  local result = sum and position .. '\n' .. sum or position
  redis_call('HSET', meta, 's', sub(state, 1, 15) .. position, args[2], args[3] .. ':' .. result,
    args[4], plan.deadline .. ' ' .. collected .. ' ' .. position .. ' ' .. text(bytes) .. ' ' .. form)
  return result
end

local the_write = {}

-- state_write: patch or replace a document
-- keys: the log's five, document, then those of its options   arguments: (open), then those of a write: entry first, how third
-- reply: as apply_write returns | {"conflict", header, document, "version" | "turn" | "class"} | {"done", ...}
--   | {"large", bytes} | {"full", what, limit} | {"not_integer", field} | {"wait"}: it is another writer's turn
local function state_write(keys, args)
  local done = args[1] == '1' and plan_of(args[6]).is_plain and write_plainly(keys, args)
  if done then return done end
  local at = args[1] + 3
  local log, reply = open(keys, args, false, args[at])
  if not log then return reply end
  local part, last = the_write, #args
  part.key, part.header = keys[6], log.header
  if keys[7] then part.keys = {unpack(keys, 6)} end
  reply = check_write(log, part, args, at, last, true)
  if reply then return reply end
  local result, refusal, header = apply_write(log, part, args, at, last)
  if not result then return refusal end
  return commit(log, result, part.outlive, args[at], header)
end

-- A delete is a part of a call: entry, expected, event, and maybe 'history', keep, age, who. Its keys: the document, its
-- history where it has one, then the indexes.
local function check_delete(log, part, args, at)
  local version, _, _, class, more = look(part.header, log.now)
  part.version, part.more = version, more
  if version and (class == '0') ~= (part.name == 'erase') then
    return {'kind', class == '0' and match(part.header, '^%d+ %d+ %d+ %x+ %d+ (%S+)') or 'document'}
  end
  local header = part.header
  if meets(version, args[at + 1]) then
    header = version and ended_since(log, part, args[at], args[at + 1])
    if not header then return nil end
  end
  return refused(log, part.key, header, version, 'version')
end

local function apply_delete(log, part, args, at, last)
  if not part.version then return '' end
  local entry, from = args[at], 2
  if last > at + 2 then
    part.begins, part.gone, from = true, true, 3
    remember(log, part, part.keys[2], args, at, args[at + 4], args[at + 5], args[at + 6])
  end
  append(log, args[at + 2])
  if part.remembered then part.remembered(log.position) end
  redis_call('UNLINK', part.key)
  local member = match(log.keys[1], '}:(.+):meta$') .. sub(entry, #match(entry, '^doc:[^:]+') + 1)
  for i = from, #part.keys do redis_call('ZREM', part.keys[i], member) end
  redis_call('SREM', log.keys[4], entry)
  redis_call('HDEL', log.keys[1], entry)
  return log.position
end

-- state_read: a document with the log's position of the same moment
-- keys: meta, document   arguments: entry   reply: {"ok", epoch, offset, header or '', document, now} | {"merged", customer}
local function state_read(keys, args)
  local epoch, offset, into, header = read_meta(keys[1], args[1])
  if into then return {'merged', into} end
  local now = milliseconds()
  local version, _, _, class, more = look(header, now)
  if not version then return {'ok', epoch or '', offset, '', {}, '0'} end
  if class == '0' then return {'ok', epoch, offset, header, {}, '0'} end  -- a collection: the reader says so
  local held = redis_call('HGETALL', keys[2])
  local nearest = more ~= '' and match(more, ' next=(%d+)')
  if nearest and tonumber(nearest) <= now then held = unexpired(held, now) end
  return {'ok', epoch, offset, header, held, text(now)}
end

-- Parts of a call, by name: check(log, part, args, at, last, alone) gives a refusal or nil; apply(log, part, args, at, last)
-- gives the result, nothing, and the new header of its entry. args[at] is the entry, or ''.
local parts = {
  write = {check = check_write, apply = apply_write},
  delete = {check = check_delete, apply = apply_delete},
  expect = {
    check = function(log, part, args, at)
      local version = look(part.header, log.now)
      if not meets(version, args[at + 1]) or version and ended_since(log, part, args[at], args[at + 1]) then
        return {'conflict', '', {}, 'version'}
      end
    end,
    apply = function() return '' end,
  },
}

-- change: several parts, all or nothing
-- keys: the log's five, then those of each part
-- arguments: (open), number of parts, and of each: name, number of keys, number of arguments, arguments
-- reply: "<length>:<result>" of each part and of the position, '' if nothing has changed, one after the other
--   | {"part", its index, refusal ...} | {"done", ...}
local function change(keys, args)
  local at = args[1] + 3
  local log, reply = open(keys, args, false, args[at + 4])
  if not log then return reply end
  local count, list, key = tonumber(args[at]), {}, 6
  at = at + 1
  for n = 1, count do
    local part, key_count = {name = args[at], at = at + 3, last = at + 2 + args[at + 2]}, tonumber(args[at + 1])
    part.key, part.keys, part.header = keys[key], {unpack(keys, key, key + key_count - 1)}, log.header
    if count > 1 then part.header = redis_call('HGET', keys[1], args[part.at]) end
    list[n], key, at = part, key + key_count, part.last + 1
  end
  for n, part in ipairs(list) do
    reply = parts[part.name].check(log, part, args, part.at, part.last, false)
    if reply then return {'part', text(n - 1), unpack(reply)} end
  end
  local results, before, fields = {}, log.offset, {}
  for n, part in ipairs(list) do
    local result, _, header = parts[part.name].apply(log, part, args, part.at, part.last)
    results[n] = format('%d:', #result) .. result
    if header then fields[#fields + 1], fields[#fields + 2] = args[part.at], header end
    if part.outlive and part.outlive ~= 0 then outlives(log, part.outlive) end
  end
  if log.offset == before then return concat(results) .. '0:' end
  log.fields = fields
  return commit(log, concat(results) .. format('%d:', #log.position) .. log.position, log.outlive)
end

-- Whether a document or collection belongs to a session that has ended. `live`: those that live, by name.
local function is_left_over(entry, live)
  local session = match(entry, ':session:(.+)$')
  return session and not live[session]
end

-- log_due: what of a customer has fallen due
-- keys: meta, docs, sessions   reply: {entry, header ...}
local function log_due(keys)
  local now, reply = milliseconds(), {}
  local _, live = sessions.look(keys[3], now)
  for _, entry in ipairs(redis_call('SMEMBERS', keys[2])) do
    local header = redis_call('HGET', keys[1], entry)
    local deadline, more = match(header or '', '^(%d+) %d+ %d+ %x+ %d+ %S+ %d+(.*)$')
    local nearest = deadline and tonumber(match(more, ' next=(%d+)'))
    if deadline and (deadline + 0 <= now or nearest and nearest <= now or is_left_over(entry, live)) then
      reply[#reply + 1], reply[#reply + 2] = entry, header
      if #reply >= 200 then break end
    end
  end
  return reply
end

-- When the sweeper is to look at this customer again.
local function reschedule(keys, now)
  local member = match(keys[1], '}:(.+):meta$')
  local nearest, live = sessions.look(keys[6], now)
  local life = redis_call('PEXPIRETIME', keys[1])
  if life == -2 then
    redis_call('UNLINK', keys[4])  -- it has no time-out when it was begun anew between two looks at the time-outs
    return redis_call('ZREM', keys[5], member)
  end
  for _, entry in ipairs(redis_call('SMEMBERS', keys[4])) do
    local header = redis_call('HGET', keys[1], entry)
    if header then
      local deadline, more = match(header, '^(%d+) %d+ %d+ %x+ %d+ %S+ %d+(.*)$')
      local next_ = tonumber(match(more, ' next=(%d+)'))
      deadline = is_left_over(entry, live) and now or deadline ~= NEVER and tonumber(deadline)
      if deadline and (not nearest or deadline < nearest) then nearest = deadline end
      if next_ and (not nearest or next_ < nearest) then nearest = next_ end
    end
  end
  if nearest and nearest < now then nearest = now end
  redis_call('ZADD', keys[5], nearest and text(nearest) or life == -1 and '+inf' or text(life), member)
end

-- log_expire: ends what has fallen due, with events, and says when the sweeper is to come again
-- keys: the log's five, sessions, endings, then those of each entry
-- arguments: 0, '', and of each entry: entry, own keys, indexes that hold it
-- reply: number of events   Doing it twice is doing it once: what has ended has no header and no record any more.
local function log_expire(keys, args)
  local log, reply = open(keys, args, true)
  if not log then return reply end
  local key, before, fields = 8, log.offset, {}
  sessions.expire(log, keys[6], keys[7])
  local _, live = sessions.look(keys[6], log.now)
  for at = 3, #args, 3 do
    local entry, own, indexes = args[at], tonumber(args[at + 1]), tonumber(args[at + 2])
    local header = redis_call('HGET', keys[1], entry)
    local version, _, _, _, more = look(header, log.now)
    if header and (not version or is_left_over(entry, live)) then
      append(log, begin_event(entry, header, 'expired'))
      for i = key, key + own - 1 do redis_call('UNLINK', keys[i]) end
      local member = match(keys[1], '}:(.+):meta$') .. sub(entry, #match(entry, '^doc:[^:]+') + 1)
      for i = key + own, key + own + indexes - 1 do redis_call('ZREM', keys[i], member) end
      redis_call('SREM', keys[4], entry)
      redis_call('HDEL', keys[1], entry)
    elseif version then
      local nearest = tonumber(match(more, ' next=(%d+)'))
      if nearest and nearest <= log.now then
        fields[#fields + 1], fields[#fields + 2] = entry, end_entries(log, keys[key], entry, header, keys[key + 1])
      end
    end
    key = key + own + indexes
  end
  if #fields > 0 then
    log.fields = fields
    commit(log, '', 0)
  elseif log.offset > before then
    commit(log, '', 0)
  end
  reschedule(keys, log.now)
  return log.offset - before
end

-- agenda_take: customers whom the sweeper is to look at now; nobody else gets them for `lease`
-- keys: agenda   arguments: lease in ms, most   reply: {member ...}
local function agenda_take(keys, args)
  local now = milliseconds()
  local due = redis_call('ZRANGE', keys[1], '-inf', text(now), 'BYSCORE', 'LIMIT', 0, args[2])
  for _, member in ipairs(due) do redis_call('ZADD', keys[1], text(now + args[1]), member) end
  return due
end

-- log_outcome: what is remembered of an operation id   keys: meta, older   arguments: id   reply: its record, or ''
local function log_outcome(keys, args)
  return redis_call('HGET', keys[1], args[1]) or redis_call('HGET', keys[2], args[1]) or ''
end

-- log_entries: what there is of a customer   keys: meta, docs
-- reply: {customer it was merged into or '', entry, header ...}, what has expired left out
local function log_entries(keys)
  local reply, now = {redis_call('HGET', keys[1], 'into') or ''}, milliseconds()
  for _, entry in ipairs(redis_call('SMEMBERS', keys[2])) do
    local header = redis_call('HGET', keys[1], entry)
    if look(header, now) then reply[#reply + 1], reply[#reply + 2] = entry, header end
  end
  return reply
end

-- agenda_size: how many customers a partition has, and the time   keys: agenda   reply: {number, milliseconds}
local function agenda_size(keys)
  local others = redis_call('ZCOUNT', keys[1], text(QUEUES), text(KEY))
  return {redis_call('ZCARD', keys[1]) - others, milliseconds()}
end

-- agenda_page: customers of a partition   keys: agenda   arguments: cursor   reply: {next cursor, member ...}
local function agenda_page(keys, args)
  local found = redis_call('ZSCAN', keys[1], args[1], 'COUNT', 1000)
  local reply = {found[1]}
  for i = 1, #found[2], 2 do reply[#reply + 1] = found[2][i] end
  return reply
end

-- Whether `one` is before or at `other` in an index, which is in the order of bytes. Lua's own <= is that of the server's locale.
local function is_up_to(one, other)
  for i = 1, math_min(#one, #other) do
    local left, right = byte(one, i), byte(other, i)
    if left ~= right then return left < right end
  end
  return #one <= #other
end

-- The rank of the first entry of an index that is after (score, member).
local function rank_after(index, score, member)
  local low = redis_call('ZCOUNT', index, '-inf', '(' .. score)
  local high = low + redis_call('ZCOUNT', index, score, score)
  while low < high do
    local middle = math_floor((low + high) / 2)
    if is_up_to(redis_call('ZRANGE', index, middle, middle)[1], member) then low = middle + 1 else high = middle end
  end
  return low
end

-- index_scan: documents of a partition whose scores are in ranges
-- keys: indexes, the first of which is walked   arguments: most, entries to look at, score and member after which to go on or
--   '', and of each index: least, most
-- reply: {score, member to go on after, or '', '', member ...}
local function index_scan(keys, args)
  local index, most, budget, start = keys[1], tonumber(args[1]), tonumber(args[2]), nil
  local least, highest = args[5], tonumber(args[6])
  if args[3] == '' then start = redis_call('ZCOUNT', index, '-inf', '(' .. least) else start = rank_after(index, args[3], args[4]) end
  local reply, looked = {'', ''}, 0
  while looked < budget do
    local found = redis_call('ZRANGE', index, start + looked, start + looked + 99, 'WITHSCORES')
    for i = 1, #found, 2 do
      if tonumber(found[i + 1]) > highest then
        reply[1], reply[2] = '', ''
        return reply
      end
      looked = looked + 1
      local fits = true
      for k = 2, #keys do
        local score = tonumber(redis_call('ZSCORE', keys[k], found[i]) or '')
        if not score or score < tonumber(args[3 + 2 * k]) or score > tonumber(args[4 + 2 * k]) then
          fits = false
          break
        end
      end
      if fits then
        reply[#reply + 1] = found[i]
        if #reply - 2 == most then
          reply[1], reply[2] = found[i + 1], found[i]
          return reply
        end
      end
    end
    if #found < 200 then
      reply[1], reply[2] = '', ''
      return reply
    end
    reply[1], reply[2] = found[#found], found[#found - 1]
  end
  return reply
end

-- state_history: a document and what is remembered of its past
-- keys: meta, document, history   arguments: entry, most changes
-- reply: {"ok", epoch, offset, header or '', document, now, changes, newest last} | {"merged", customer}
local function state_history(keys, args)
  local reply = state_read({keys[1], keys[2]}, args)
  if reply[1] ~= 'ok' then return reply end
  reply[6], reply[7] = text(milliseconds()), redis_call('LRANGE', keys[3], '-' .. args[2], -1)
  return reply
end

define('state_write', state_write)
define('state_history', state_history, READS)
define('index_scan', index_scan, READS)
define('state_read', state_read, READS)
define('change', change)
define('log_due', log_due, READS)
define('log_expire', log_expire)
define('log_entries', log_entries, READS)
define('log_outcome', log_outcome, READS)
define('agenda_size', agenda_size, READS)
define('agenda_take', agenda_take)
define('agenda_page', agenda_page, READS)
