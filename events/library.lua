#!lua name=tenantry_v1
-- The event store's functions. Lua in Valkey is atomic but has no rollback: every check comes before the first write,
-- and the writes that follow can't fail on what was checked. Errors are "CODE detail"; valkey_store.py maps the codes.
-- A changed function gets a new library name, so that old and new writers never share one.

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

-- Keys of another type than ours. Hashes are read before the first write, and a wrong type stops the function there.
local function wrong_type(keys)
  for i, kind in pairs({[1] = 'stream', [5] = 'zset', [6] = 'stream', [7] = 'set'}) do
    local found = redis.call('TYPE', keys[i]).ok
    if found ~= 'none' and found ~= kind then return keys[i] .. ' is a ' .. found end
  end
  return nil
end

-- A stream's index: field <stream> holds its version, field <stream>#<n> the positions of its events 128n+1 ... 128n+128,
-- five bytes each, so that a stream is found in the log without scanning it and an append touches one small field.
local CHUNK_BYTES = 128 * 5

local function index_stream(streams, name, version, positions)
  local at = 1
  while at <= #positions do
    local chunk = math.floor(version / 128)
    local field = name .. '#' .. chunk
    local room = (chunk + 1) * CHUNK_BYTES - version * 5
    local part = string.sub(positions, at, at + room - 1)
    local before = version % 128 == 0 and '' or redis.call('HGET', streams, field)
    redis.call('HSET', streams, field, before .. part)
    version = version + #part / 5
    at = at + #part
  end
  redis.call('HSET', streams, name, version)
end

-- KEYS log meta replies streams timers appends tenants
-- ARGV 1 tenant, 2 epoch, 3 expected position, 4 previous hash, 5 new head hash, 6 reply TTL ms, 7 status, 8 placement,
--      9 next timer us ('' as before, '0' none), 10 n commands, 11 n events, 12 n streams,
--      then n x (command id, body hash, reply), then n x (record, hash),
--      then n x (stream, its version so far, packed positions of its new events)
local function append(keys, args)
  local tenant = args[1]
  local wrong = wrong_key(keys, tenant)
  if wrong then return fail('WRONGKEY', wrong) end
  wrong = wrong_type(keys)
  if wrong then return fail('CORRUPT', wrong) end
  local log, meta, replies, streams = keys[1], keys[2], keys[3], keys[4]
  local n_commands, n_events, n_streams = tonumber(args[10]), tonumber(args[11]), tonumber(args[12])
  if n_events == 0 or #args ~= 12 + 3 * n_commands + 2 * n_events + 3 * n_streams then
    return fail('BADARGS', 'count ' .. #args)
  end

  local ids, known = {}, {}
  for i = 1, n_commands do ids[i] = args[10 + 3 * i] end
  local before = n_commands > 0 and redis.call('HMGET', replies, unpack(ids)) or {}
  for i = 0, n_commands - 1 do
    local at, stored = 13 + 3 * i, before[i + 1]
    if stored then
      if string.sub(stored, 1, 32) ~= args[at + 1] then return fail('REUSED', args[at]) end
      known[#known + 1] = args[at]
      known[#known + 1] = string.sub(stored, 33)
    end
  end
  if #known > 0 then return {0, known} end

  local state = redis.call('HMGET', meta, 'epoch', 'position', 'head', 'status')
  local position = tonumber(state[2] or '0')
  if state[1] ~= args[2] then return fail('FENCED', 'epoch is ' .. (state[1] or 'none')) end
  if state[4] and state[4] ~= 'active' then return fail('CLOSED', state[4]) end
  if position ~= tonumber(args[3]) then return fail('POSITION', 'is at ' .. position .. ', expected ' .. args[3]) end
  if position > 0 and state[3] ~= args[4] then return fail('POSITION', 'another event is at ' .. position) end

  local first_stream = 13 + 3 * n_commands + 2 * n_events
  local indexed = 0
  for at = first_stream, #args, 3 do
    local version = redis.call('HGET', streams, args[at]) or '0'
    if version ~= args[at + 1] then
      return fail('POSITION', 'stream ' .. args[at] .. ' is at ' .. version .. ', expected ' .. args[at + 1])
    end
    indexed = indexed + #args[at + 2]
  end
  if indexed ~= 5 * n_events then return fail('BADARGS', 'positions of ' .. indexed .. ' bytes') end

  local at = 13 + 3 * n_commands
  for i = 1, n_events do
    redis.call('XADD', log, (position + i) .. '-0', 'e', args[at], 'h', args[at + 1])
    at = at + 2
  end
  for s = first_stream, #args, 3 do index_stream(streams, args[s], tonumber(args[s + 1]), args[s + 2]) end
  local last = position + n_events
  redis.call('HSET', meta, 'position', last, 'head', args[5], 'status', args[7], 'placement', args[8])
  if n_commands > 0 then
    local fields = {'HSETEX', replies, 'PX', args[6], 'FIELDS', n_commands}
    for i = 0, n_commands - 1 do
      local c = 13 + 3 * i
      fields[#fields + 1] = args[c]
      fields[#fields + 1] = args[c + 1] .. args[c + 2]
    end
    redis.call(unpack(fields))
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

-- KEYS meta timers; ARGV tenant, epoch, reason
local function halt(keys, args)
  local tag = string.match(keys[1], '^({s%d%d%d}):meta:')
  if not tag or keys[1] ~= tag .. ':meta:' .. args[1] or keys[2] ~= tag .. ':timers' then
    return fail('WRONGKEY', keys[1])
  end
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

-- KEYS log meta streams; ARGV tenant, through position, then fields of the streams' index that lie below it
local function trim(keys, args)
  local tenant = args[1]
  local tag = string.match(keys[1], '^({s%d%d%d}):log:')
  if not tag or keys[1] ~= tag .. ':log:' .. tenant or keys[2] ~= tag .. ':meta:' .. tenant
     or keys[3] ~= tag .. ':streams:' .. tenant then return fail('WRONGKEY', keys[1]) end
  local through, position = tonumber(args[2]), tonumber(redis.call('HGET', keys[2], 'position') or '0')
  if through > position then return fail('POSITION', 'is at ' .. position .. ', trimmed through ' .. through) end
  local dropped = redis.call('XTRIM', keys[1], 'MINID', (through + 1) .. '-0')
  for i = 3, #args do redis.call('HDEL', keys[3], args[i]) end
  return dropped
end

redis.register_function('tenantry_v1_halt', halt)
redis.register_function('tenantry_v1_trim', trim)
redis.register_function('tenantry_v1_append', append)
redis.register_function('tenantry_v1_claim', claim)
