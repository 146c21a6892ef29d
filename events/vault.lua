#!lua name=tenantry_vault_v1
-- What the vault has to do in one step. Positions are the first eight bytes of a witnessed head, big-endian, so that
-- comparing bytes compares positions.

-- KEYS heads; ARGV n x (tenant, head). Only ever raises.
local function witness(keys, args)
  local names = {}
  for i = 1, #args, 2 do names[#names + 1] = args[i] end
  local known = redis.call('HMGET', keys[1], unpack(names))
  for i = 1, #args, 2 do
    local before = known[(i + 1) / 2]
    if not before or string.sub(before, 1, 8) < string.sub(args[i + 1], 1, 8) then
      redis.call('HSET', keys[1], args[i], args[i + 1])
    end
  end
  return #names
end

-- KEYS keys; ARGV tenant, old record, new record -> 1 where it was the old one
local function replace_key(keys, args)
  if redis.call('HGET', keys[1], args[1]) ~= args[2] then return 0 end
  redis.call('HSET', keys[1], args[1], args[3])
  return 1
end

redis.register_function('tenantry_vault_v1_witness', witness)
redis.register_function('tenantry_vault_v1_replace_key', replace_key)
