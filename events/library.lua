#!lua name=tenantry_v3
-- The event store's functions. Lua in Valkey is atomic but has no rollback: every check comes before the first write,
-- and the writes that follow can't fail on what was checked. Errors are "CODE detail"; valkey_store.py maps the codes.
-- A changed function gets a new library name, so that old and new writers never share one. Libraries of several releases
-- lie side by side: a writer of the release before goes on with tenantry_v2, which lacks set_timer and else is the same.
-- One of the first release goes on with tenantry_v1 (an entry per event, fields e and h), and what it wrote is read here;
-- it can't read what is written here, fails on it, and writes nothing.

local function fail(code, detail) return redis.error_reply(code .. ' ' .. detail) end

-- KEYS of one tenant, all in its slice: {s017}:log:<tenant> ...; a wrong tag would write where nobody reads.
local function wrong_key(keys, tenant)
  local tag = string.match(keys[1], '^({s%d%d%d}):log:')
  if not tag then return keys[1] end
  local want = {tag .. ':log:' .. tenant, tag .. ':meta:' .. tenant, tag .. ':replies:' .. tenant,
                tag .. ':streams:' .. tenant, tag .. ':timers', tag .. ':appends', tag .. ':tenants'}
  for i = 1, #want do
    if keys[i] ~= want[i] then return keys[i] or ('missing key ' .. i) end
  end
  return nil
end

-- A key that has another type than ours. Only keys that are not read before the first write need the look: reading a
-- hash of a wrong type stops the function by itself, and so does adding to the log, which is the first write.
local function wrong_type(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then return key .. ' is a ' .. found end
  return nil
end

-- A stream's index: field <stream> holds its version, field <stream>#<n> the positions of its events 128n+1 ... 128n+128,
-- five bytes each, so that a stream is found in the log without scanning it and an append touches one small field. What
-- lies in the archive only is not in it: position 0 stands for that where a field goes on.
local CHUNK_EVENTS, POSITION_BYTES = 128, 5
local ARGS_MAX = 2000 -- of one call: Lua's stack ends at 8,000

local function chunk_field(stream, version) return stream .. '#' .. math.floor(version / CHUNK_EVENTS) end

-- What the index holds of the streams in args[first ...]: version, newest chunk, version, newest chunk ...
local function read_index(streams, args, first)
  local found, fields = {}, {}
  for at = first, #args, 3 do
    fields[#fields + 1] = args[at]
    fields[#fields + 1] = chunk_field(args[at], tonumber(args[at + 1]))
    if #fields >= ARGS_MAX or at + 3 > #args then
      for _, value in ipairs(redis.call('HMGET', streams, unpack(fields))) do found[#found + 1] = value end
      fields = {}
    end
  end
  return found
end

-- The first stream that is not where the writer believes it to be.
local function wrong_version(index, args, first)
  local i = 1
  for at = first, #args, 3 do
    local version, chunk = index[i] or '0', index[i + 1] or ''
    if version ~= args[at + 1] then
      return 'POSITION', 'stream ' .. args[at] .. ' is at ' .. version .. ', expected ' .. args[at + 1]
    end
    if #chunk > 0 and #chunk ~= version % CHUNK_EVENTS * POSITION_BYTES then
      return 'CORRUPT', 'the index of stream ' .. args[at] .. ' has ' .. #chunk .. ' bytes at version ' .. version
    end
    i = i + 2
  end
  return nil
end

local function write_index(streams, index, args, first)
  local fields, i = {}, 1
  for at = first, #args, 3 do
    local stream, version, positions = args[at], tonumber(args[at + 1]), args[at + 2]
    local chunk, from = index[i + 1] or string.rep('\0', version % CHUNK_EVENTS * POSITION_BYTES), 1
    while from <= #positions do
      local room = (CHUNK_EVENTS - version % CHUNK_EVENTS) * POSITION_BYTES
      local part = string.sub(positions, from, from + room - 1)
      fields[#fields + 1] = chunk_field(stream, version)
      fields[#fields + 1] = chunk .. part
      version, from, chunk = version + #part / POSITION_BYTES, from + #part, ''
    end
    fields[#fields + 1] = stream
    fields[#fields + 1] = version
    if #fields >= ARGS_MAX or at + 3 > #args then
      redis.call('HSET', streams, unpack(fields))
      fields = {}
    end
    i = i + 2
  end
end

-- The answers that commands of this append got before, or an error where one came with another body.
local function known_replies(replies, args, n_commands)
  local ids, known = {}, {}
  for i = 1, n_commands do ids[i] = args[11 + 2 * i] end
  for i, stored in ipairs(redis.call('HMGET', replies, unpack(ids))) do
    if stored then
      if string.sub(stored, 1, 32) ~= string.sub(args[12 + 2 * i], 1, 32) then return nil, ids[i] end
      known[#known + 1] = ids[i]
      known[#known + 1] = string.sub(stored, 33)
    end
  end
  return known, nil
end

-- KEYS log meta replies streams timers appends tenants
-- ARGV 1 tenant, 2 epoch, 3 expected position, 4 previous hash, 5 new head hash, 6 reply TTL ms, 7 status, 8 placement,
--      9 next timer us ('' as before, '0' none), 10 n commands, 11 n entries, 12 n streams,
--      then n x (command id, body hash and reply), then n x (how many events, the events as one string),
--      then n x (stream, its version so far, packed positions of its new events)
-- An entry of the log holds one event or more; its id is the position of the last.
local function append(keys, args)
  local tenant = args[1]
  local wrong = wrong_key(keys, tenant)
  if wrong then return fail('WRONGKEY', wrong) end
  local log, meta, replies, streams = keys[1], keys[2], keys[3], keys[4]
  local n_commands, n_entries, n_streams = tonumber(args[10]), tonumber(args[11]), tonumber(args[12])
  local first_entry = 13 + 2 * n_commands
  local first_stream = first_entry + 2 * n_entries
  if n_entries == 0 or #args ~= first_stream - 1 + 3 * n_streams then return fail('BADARGS', 'count ' .. #args) end

  if n_commands > 0 then
    local known, reused = known_replies(replies, args, n_commands)
    if reused then return fail('REUSED', reused) end
    if #known > 0 then return {0, known} end
  end

  local state = redis.call('HMGET', meta, 'epoch', 'position', 'head', 'status', 'placement')
  local position = tonumber(state[2] or '0')
  if state[1] ~= args[2] then return fail('FENCED', 'epoch is ' .. (state[1] or 'none')) end
  if state[4] and state[4] ~= 'active' then return fail('CLOSED', state[4]) end
  if position ~= tonumber(args[3]) then return fail('POSITION', 'is at ' .. position .. ', expected ' .. args[3]) end
  local head = state[3] or string.rep('\0', 32) -- codec.py's GENESIS
  if head ~= args[4] then return fail('POSITION', 'another event is at ' .. position) end

  local index = read_index(streams, args, first_stream)
  local code, detail = wrong_version(index, args, first_stream)
  if code then return fail(code, detail) end
  local last, indexed = position, 0
  for at = first_entry, first_stream - 1, 2 do last = last + tonumber(args[at]) end
  for at = first_stream, #args, 3 do indexed = indexed + #args[at + 2] end
  if indexed ~= POSITION_BYTES * (last - position) then return fail('BADARGS', 'positions of ' .. indexed .. ' bytes') end
  wrong = wrong_type(keys[6], 'stream') or (args[9] ~= '' and wrong_type(keys[5], 'zset'))
    or (position == 0 and wrong_type(keys[7], 'set'))
  if wrong then return fail('CORRUPT', wrong) end

  local at_position = position
  for at = first_entry, first_stream - 1, 2 do
    at_position = at_position + tonumber(args[at])
    redis.call('XADD', log, at_position .. '-0', 'b', args[at + 1])
  end
  write_index(streams, index, args, first_stream)
  if state[4] == args[7] and state[5] == args[8] then
    redis.call('HSET', meta, 'position', last, 'head', args[5])
  else
    redis.call('HSET', meta, 'position', last, 'head', args[5], 'status', args[7], 'placement', args[8])
  end
  if n_commands > 0 then
    redis.call('HSETEX', replies, 'PX', args[6], 'FIELDS', n_commands, unpack(args, 13, first_entry - 1))
  end
  if args[9] == '0' then
    redis.call('ZREM', keys[5], tenant)
  elseif args[9] ~= '' then
    redis.call('ZADD', keys[5], args[9], tenant)
  end
  if position == 0 then redis.call('SADD', keys[7], tenant) end
  redis.call('XADD', keys[6], 'MAXLEN', '~', 8192, '*', 't', tenant, 'p', last)
  return {1, position + 1, last}
end

-- Of functions that take meta and timers.
local function has_wrong_keys(keys, tenant)
  local tag = string.match(keys[1], '^({s%d%d%d}):meta:')
  return not tag or keys[1] ~= tag .. ':meta:' .. tenant or keys[2] ~= tag .. ':timers'
end

-- KEYS meta timers; ARGV tenant, epoch, next timer us (0: none)
local function set_timer(keys, args)
  if has_wrong_keys(keys, args[1]) then return fail('WRONGKEY', keys[1]) end
  if (redis.call('HGET', keys[1], 'epoch') or '0') ~= args[2] then return 0 end
  if args[3] == '0' then
    redis.call('ZREM', keys[2], args[1])
  else
    redis.call('ZADD', keys[2], args[3], args[1])
  end
  return 1
end

-- KEYS meta timers; ARGV tenant, epoch, reason
local function halt(keys, args)
  if has_wrong_keys(keys, args[1]) then return fail('WRONGKEY', keys[1]) end
  if redis.call('HGET', keys[1], 'epoch') ~= args[2] then return 0 end
  redis.call('HSET', keys[1], 'status', 'halted', 'halted_because', args[3])
  redis.call('ZREM', keys[2], args[1])
  return 1
end

-- KEYS meta -> {epoch, position, head, status, placement}
local function claim(keys, args)
  local tag = string.match(keys[1], '^({s%d%d%d}):meta:')
  if not tag or keys[1] ~= tag .. ':meta:' .. args[1] then return fail('WRONGKEY', keys[1]) end
  local epoch = redis.call('HINCRBY', keys[1], 'epoch', 1)
  local state = redis.call('HMGET', keys[1], 'position', 'head', 'status', 'placement')
  return {epoch, tonumber(state[1] or '0'), state[2] or '', state[3] or 'active', state[4] or 'pool'}
end

local function last_position(chunk)
  local value = 0
  for i = #chunk - POSITION_BYTES + 1, #chunk do value = value * 256 + string.byte(chunk, i) end
  return value
end

-- KEYS log meta streams; ARGV tenant, through position, then fields of the streams' index that may lie below it
local function trim(keys, args)
  local tenant = args[1]
  local tag = string.match(keys[1], '^({s%d%d%d}):log:')
  if not tag or keys[1] ~= tag .. ':log:' .. tenant or keys[2] ~= tag .. ':meta:' .. tenant
     or keys[3] ~= tag .. ':streams:' .. tenant then return fail('WRONGKEY', keys[1]) end
  local through, position = tonumber(args[2]), tonumber(redis.call('HGET', keys[2], 'position') or '0')
  if through > position then return fail('POSITION', 'is at ' .. position .. ', trimmed through ' .. through) end
  local dropped = redis.call('XTRIM', keys[1], 'MINID', (through + 1) .. '-0')
  for i = 3, #args do
    local chunk = redis.call('HGET', keys[3], args[i])
    if chunk and last_position(chunk) <= through then redis.call('HDEL', keys[3], args[i]) end
  end
  return dropped
end

redis.register_function('tenantry_v3_halt', halt)
redis.register_function('tenantry_v3_set_timer', set_timer)
redis.register_function('tenantry_v3_trim', trim)
redis.register_function('tenantry_v3_append', append)
redis.register_function('tenantry_v3_claim', claim)
