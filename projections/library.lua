#!lua name=tenantry_projection_v1
-- Read model and checkpoint in one step: an event is in the model if and only if the checkpoint says so, so a
-- projection that is killed anywhere and starts again neither loses nor repeats one.

-- KEYS checkpoints, model, then indexes and the set of their names, if any
-- ARGV tenant, expected checkpoint, new checkpoint, n adds, n puts, then n x (field, amount), then n x (field, value),
--      then, if there are any: n indexes, n moves, n x index name, n x (key, member, score, key of the index that has the
--      score or 0); a score of 'out' takes the member out
local function apply(keys, args)
  local tag = string.match(keys[1], '^({s%d%d%d}):')
  for i = 2, #keys do
    if not tag or string.sub(keys[i], 1, #tag + 1) ~= tag .. ':' then
      return redis.error_reply('WRONGKEY ' .. keys[i])
    end
  end
  for i = 1, #keys do
    local kind, wanted = redis.call('TYPE', keys[i]).ok, 'zset'
    if i <= 2 then wanted = 'hash' elseif i == #keys then wanted = 'set' end
    if kind ~= 'none' and kind ~= wanted then return redis.error_reply('CORRUPT ' .. keys[i] .. ' is a ' .. kind) end
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
  if #keys > 2 then
    local names, moves = tonumber(args[next_arg]), tonumber(args[next_arg + 1])
    next_arg = next_arg + 2
    for _ = 1, names do
      redis.call('SADD', keys[#keys], args[next_arg])
      next_arg = next_arg + 1
    end
    for _ = 1, moves do
      local key, member, score = keys[tonumber(args[next_arg])], args[next_arg + 1], args[next_arg + 2]
      local like = tonumber(args[next_arg + 3])
      if like > 0 then score = redis.call('ZSCORE', keys[like], member) end
      if score == 'out' then
        redis.call('ZREM', key, member)
      elseif score then
        redis.call('ZADD', key, score, member)
      end
      next_arg = next_arg + 4
    end
  end
  redis.call('HSET', keys[1], args[1], args[3])
  return tonumber(args[3])
end

redis.register_function('tenantry_projection_v1_apply', apply)
