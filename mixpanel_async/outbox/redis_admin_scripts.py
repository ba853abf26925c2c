"""Lua scripts of `QueueAdmin`. The keys and fields are those of `redis_scripts.py`.

A script of a large queue runs once for each page: Redis serves no other client while it runs.
"""

from __future__ import annotations

from typing import Final

from .redis_lua import ALLOW_FULL_MEMORY, COUNTING, HELPERS

# KEYS: meta. Answer: OK, version, epoch, number of partitions, salt.
META: Final = """
local found = redis.call('HMGET', KEYS[1], 'v', 'epoch', 'partitions', 'salt')
return {'OK', found[1], found[2], found[3], found[4]}
"""

# KEYS: meta, workers, leases, pauses, forget, lanes. ARGV: epoch, names of the lanes.
# Answer: OK, fields of meta, workers with the milliseconds that they are still alive, lanes with their worker,
# endpoints with the milliseconds of their pause, number of erased persons, then for each lane: entries, acceptance time
# of the oldest or nothing, version of its entry, workers with the number of entries that they have read.
STATUS: Final = (
    HELPERS
    + """
if lost(KEYS[1], ARGV[1]) then return {'LOST'} end
local now, workers, leases, pauses = time_ms(), {}, {}, {}
local found = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for i = 1, #found, 2 do
  workers[#workers + 1], workers[#workers + 2] = found[i], math.max(0, tonumber(found[i + 1]) - now)
end
found = redis.call('HKEYS', KEYS[3])
for _, lane in ipairs(found) do
  local owner, ends = lease_of(KEYS[3], lane)
  if owner and ends > now then leases[#leases + 1], leases[#leases + 2] = lane, owner end
end
found = redis.call('HGETALL', KEYS[4])
for i = 1, #found, 2 do
  local left = tonumber(found[i + 1]) - now
  if left > 0 then pauses[#pauses + 1], pauses[#pauses + 2] = found[i], left end
end
local answer = {'OK', redis.call('HGETALL', KEYS[1]), workers, leases, pauses, redis.call('HLEN', KEYS[5])}
for i = 6, #KEYS do
  local first, held = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1], {}
  local pending = redis.pcall('XPENDING', KEYS[i], 'w')
  for _, one in ipairs(not pending.err and pending[4] or {}) do
    held[#held + 1], held[#held + 2] = one[1], one[2]
  end
  answer[#answer + 1] = redis.call('XLEN', KEYS[i])
  answer[#answer + 1] = first and number(first[2], 't', 15) and field(first[2], 't') or false
  answer[#answer + 1] = first and field(first[2], 'v') or '1'
  answer[#answer + 1] = held
end
return answer
"""
)

# KEYS: meta, dead. ARGV: epoch, id after which to begin, most dead letters.
# Answer: OK, last id or nothing, then for each reason: reason, records, bytes, time of the oldest.
COUNT_DEAD: Final = (
    HELPERS
    + """
if lost(KEYS[1], ARGV[1]) then return {'LOST'} end
local found = redis.call('XRANGE', KEYS[2], ARGV[2], '+', 'COUNT', ARGV[3])
local reasons, counts = {}, {}
for _, one in ipairs(found) do
  local reason = field(one[2], 'r')
  if not counts[reason] then
    reasons[#reasons + 1], counts[reason] = reason, {0, 0, field(one[2], 't')}
  end
  counts[reason][1] = counts[reason][1] + 1
  counts[reason][2] = counts[reason][2] + #field(one[2], 'b')
end
local answer = {'OK', #found > 0 and found[#found][1]}
for _, reason in ipairs(reasons) do
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = reason, counts[reason][1], counts[reason][2]
  answer[#answer + 1] = counts[reason][3]
end
return answer
"""
)

# KEYS: meta, a stream, its begun. ARGV: epoch, id after which to begin, most entries.
# Answer: OK, then for each entry: id, fields, 1 if a request with it has begun.
READ: Final = (
    HELPERS
    + """
if lost(KEYS[1], ARGV[1]) then return {'LOST'} end
local answer = {'OK'}
for _, one in ipairs(redis.call('XRANGE', KEYS[2], ARGV[2], '+', 'COUNT', ARGV[3])) do
  answer[#answer + 1], answer[#answer + 2] = one[1], one[2]
  answer[#answer + 1] = redis.call('HEXISTS', KEYS[3], one[1])
end
return answer
"""
)

# KEYS: meta, dead, lane. ARGV: epoch, name of the lane, ids of dead letters of this lane.
# Answer: OK, number of dead letters that are in the lane now, as one entry.
PUT_BACK: Final = (
    HELPERS
    + COUNTING
    + """
if lost(KEYS[1], ARGV[1]) then return {'LOST'} end
local bodies, ids, once, size = {}, {}, {}, 0
for i = 3, #ARGV do
  local one = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
  if one then
    if field(one[2], 'o') == '1' then once[#once + 1] = #bodies end
    bodies[#bodies + 1], ids[#ids + 1] = field(one[2], 'b'), one[1]
    size = size + #bodies[#bodies]
  end
end
if #ids == 0 then return {'OK', 0} end
local body, fields = table.concat(bodies, '\\n'), {'t', text(time_ms()), 'n', #ids}
if #once > 0 then fields[#fields + 1], fields[#fields + 2] = 'o', table.concat(once, ',') end
fields[#fields + 1], fields[#fields + 2] = 'b', body
redis.call('XADD', KEYS[3], '*', unpack(fields))
count(KEYS[1], ARGV[2], #ids, #body)
redis.call('HINCRBY', KEYS[1], 'retried', #ids)
redis.call('HINCRBY', KEYS[1], 'dead_bytes', 0 - size)
redis.call('XDEL', KEYS[2], unpack(ids))
return {'OK', #ids}
"""
)

# KEYS: none, meta, dead. ARGV: epoch, ids. Answer: OK, number of removed dead letters.
DROP_DEAD: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
local removed = 0
for i = 2, #ARGV do
  local one = redis.call('XRANGE', KEYS[3], ARGV[i], ARGV[i])[1]
  if one then
    redis.call('XDEL', KEYS[3], one[1])
    redis.call('HINCRBY', KEYS[2], 'dead_bytes', 0 - #field(one[2], 'b'))
    removed = removed + 1
  end
end
return {'OK', removed}
"""
)

# KEYS: none, meta, workers, lane, its begun. ARGV: epoch, name of the lane, id after which to begin, most entries.
# Entries that a live worker has read are left to it: it may have sent them.
# Answer: OK, number of removed records, last id or nothing.
DROP_WAITING: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + COUNTING
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
local now, removed = time_ms(), 0
local found = redis.call('XRANGE', KEYS[4], ARGV[3], '+', 'COUNT', ARGV[4])
for _, one in ipairs(found) do
  local pending = redis.call('XPENDING', KEYS[4], 'w', one[1], one[1], 1)[1]
  local alive_until = pending and redis.call('ZSCORE', KEYS[3], pending[2])
  if not alive_until or tonumber(alive_until) <= now then
    local records = records_of(one[2])
    redis.call('XACK', KEYS[4], 'w', one[1])
    redis.call('XDEL', KEYS[4], one[1])
    redis.call('HDEL', KEYS[5], one[1])
    count(KEYS[2], ARGV[2], 0 - records, 0 - bytes_of(one[2]))
    redis.call('HINCRBY', KEYS[2], 'purged', records)
    removed = removed + records
  end
end
return {'OK', removed, #found > 0 and found[#found][1]}
"""
)

# KEYS: none, meta, forget. ARGV: epoch, keyed hash of a person.
ERASE: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
redis.call('HSET', KEYS[3], ARGV[2], text(time_ms()))
redis.call('HINCRBY', KEYS[2], 'erasures', 1)
return {'OK'}
"""
)
