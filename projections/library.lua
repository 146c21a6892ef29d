#!lua name=tenantry_projection_v1
-- Read model and checkpoint in one step: an event is in the model if and only if the checkpoint says so, so a
-- projection that is killed anywhere and starts again neither loses nor repeats one.

-- KEYS checkpoints, model
-- ARGV tenant, expected checkpoint, new checkpoint, n adds, n puts, then n x (field, amount), then n x (field, value)
local function apply(keys, args)
  local tag = string.match(keys[1], '^({s%d%d%d}):')
  if not tag or string.sub(keys[2], 1, #tag + 1) ~= tag .. ':' then
    return redis.error_reply('WRONGKEY ' .. keys[2])
  end
  for i = 1, 2 do
    local kind = redis.call('TYPE', keys[i]).ok
    if kind ~= 'none' and kind ~= 'hash' then return redis.error_reply('CORRUPT ' .. keys[i] .. ' is a ' .. kind) end
  end
  local at = redis.call('HGET', keys[1], args[1]) or '0'
  if at ~= args[2] then return redis.error_reply('CHECKPOINT ' .. at) end
  local next_arg = 6
  for _ = 1, tonumber(args[4]) do
    redis.call('HINCRBY', keys[2], args[next_arg], args[next_arg + 1])
    next_arg = next_arg + 2
  end
  for _ = 1, tonumber(args[5]) do
    redis.call('HSET', keys[2], args[next_arg], args[next_arg + 1])
    next_arg = next_arg + 2
  end
  redis.call('HSET', keys[1], args[1], args[3])
  return tonumber(args[3])
end

redis.register_function('tenantry_projection_v1_apply', apply)
