"""Lua scripts of `RedisOutbox`. Each runs atomically in Redis, and reads no clock but that of Redis.

Keys, all with the prefix `{name}:`, so that a queue is in one slot of a cluster:

    <lane>          stream of entries, with the consumer group `w`
    begun:<lane>    hash: entry id -> worker that began a request with its non-idempotent records
    meta            hash: version `v`, `epoch`, `partitions`, `salt`, `project`, and the counters
    from:<producer> hash: lane -> last sequence number; expires
    workers         sorted set: worker -> milliseconds at which it counts as dead
    terms           hash: worker -> its term
    leases          hash: ordered lane -> `<milliseconds of its end>|<worker>`
    pauses          hash: path of an endpoint -> milliseconds of the end of its pause
    dead            stream of dead letters, one record each
    forget          hash: keyed hash of an erased id -> milliseconds of the erasure
    none            never exists; see below

A worker is named `<name>#<random>/<kinds>`; its kinds are joined with commas, or `*`.

Fields of an entry: `t` acceptance time in ms, `n` number of records, `o` positions of non-idempotent records, `z` `g`
if it is compressed with gzip, `v` version if it is not 1, `b` body.

Redis may carry a command out long after its client has given up, and the worker would not know of the entries that it
takes. Each worker therefore has a term, which it raises after a lost answer. Its next heartbeat makes the new term
known, and commands of an older term take nothing from then on.

A script returns an array that begins with `OK`, or with `LOST` if the queue was removed or created again.

When Redis has reached `maxmemory`, it refuses commands that may need memory, but not after the first write of a
script. The scripts of workers therefore begin by deleting the key `none`: workers must be able to drain a full queue.
"""

from __future__ import annotations

from typing import Final

from .redis_lua import ALLOW_FULL_MEMORY, COUNTING, HELPERS

VERSION: Final = 1
"""Version of the keys and fields. A queue of another version is refused."""

GROUP: Final = "w"
"""Consumer group of the streams."""

RELEASED: Final = "released#0/*"
"""Consumer that holds what workers gave back. It never lives, so that any worker takes it over."""

# KEYS: none, meta, lanes. ARGV: version, epoch, partitions, salt, project, names of the lanes.
OPEN: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
local meta = KEYS[2]
local function state()
  local found = redis.call('HMGET', meta, 'v', 'epoch', 'partitions', 'salt', 'project')
  return {'OK', found[1], found[2], found[3], found[4], found[5]}
end
local is_new = redis.call('EXISTS', meta) == 0
if is_new then
  redis.call('HSET', meta, 'v', ARGV[1], 'epoch', ARGV[2], 'partitions', ARGV[3], 'salt', ARGV[4], 'project', ARGV[5])
elseif redis.call('HGET', meta, 'v') ~= ARGV[1] or redis.call('HGET', meta, 'partitions') ~= ARGV[3] then
  return state()
end
local lost = 0
for i = 3, #KEYS do
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[i], 'w', '0', 'MKSTREAM')
  if type(made) == 'table' and made.err then
    if not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
    made = false
  end
  if made or is_new then
    -- The stream is new, or it or the counters were removed: count what it has now.
    local lane, records, bytes, after = ARGV[i + 3], 0, 0, '-'
    while true do
      local found = redis.call('XRANGE', KEYS[i], after, '+', 'COUNT', 100)
      for _, one in ipairs(found) do
        records, bytes = records + records_of(one[2]), bytes + bytes_of(one[2])
      end
      if #found < 100 then break end
      after = '(' .. found[#found][1]
    end
    local had = redis.call('HMGET', meta, 'records:' .. lane, 'bytes:' .. lane)
    local gone = tonumber(had[1] or '0') - records
    redis.call('HINCRBY', meta, 'records', 0 - gone)
    redis.call('HINCRBY', meta, 'bytes', bytes - tonumber(had[2] or '0'))
    redis.call('HSET', meta, 'records:' .. lane, records, 'bytes:' .. lane, bytes)
    if gone > 0 then
      redis.call('HINCRBY', meta, 'lost', gone)
      lost = lost + gone
    else
      redis.call('HINCRBY', meta, 'in', 0 - gone)
    end
  end
end
local answer = state()
answer[7] = lost
return answer
"""
)

# KEYS: meta, sequence numbers of the producer, lanes. ARGV: epoch, most bytes, most records or '', milliseconds to
# keep the sequence numbers, then for each entry: number of its key, lane, t, n, o, z, sequence or '', body.
PUSH: Final = (
    HELPERS
    + COUNTING
    + """
if lost(KEYS[1], ARGV[1]) then return {'LOST'} end
local most_bytes, most_records = tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {'OK'}
for i = 5, #ARGV, 8 do
  local key, lane, records, sequence, body = KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 3], ARGV[i + 6], ARGV[i + 7]
  local waiting = redis.call('HMGET', KEYS[1], 'bytes', 'records')
  local last = sequence ~= '' and redis.call('HGET', KEYS[2], lane)
  if last and tonumber(sequence) <= tonumber(last) then
    answer[#answer + 1] = 'KNOWN'
  elseif tonumber(waiting[1] or '0') + #body > most_bytes
      or (most_records and tonumber(waiting[2] or '0') + tonumber(records) > most_records) then
    answer[#answer + 1] = 'FULL'
  else
    local fields = {'t', ARGV[i + 2], 'n', records}
    if ARGV[i + 4] ~= '' then fields[5], fields[6] = 'o', ARGV[i + 4] end
    if ARGV[i + 5] ~= '' then fields[#fields + 1], fields[#fields + 2] = 'z', ARGV[i + 5] end
    fields[#fields + 1], fields[#fields + 2] = 'b', body
    redis.call('XADD', key, '*', unpack(fields))
    count(KEYS[1], lane, records, #body)
    redis.call('HINCRBY', KEYS[1], 'in', records)
    if sequence ~= '' then
      redis.call('HSET', KEYS[2], lane, sequence)
      redis.call('PEXPIRE', KEYS[2], ARGV[4])
    end
    answer[#answer + 1] = 'TAKEN'
  end
end
return answer
"""
)

# KEYS: none, meta, workers. ARGV: epoch, worker, milliseconds of a lease.
ANNOUNCE: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
redis.call('ZADD', KEYS[3], text(time_ms() + ARGV[3]), ARGV[2])
return {'OK'}
"""
)

# KEYS: none, meta, workers, leases, pauses, dead, forget, terms, lanes. ARGV: epoch, worker, milliseconds of a lease,
# largest number of entries to take over from dead workers, '1' to list all entries of the worker, term, names of the
# lanes.
# Answer: OK, whether the worker counted as dead, held lanes, lanes to give up, pauses with their seconds, entries that
# it took over (lane, id, deliveries), all its entries or nothing, number of waiting records, acceptance time of the
# oldest, number of dead letters, bytes of the waiting records, number of workers that are alive.
HEARTBEAT: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
local meta, workers, leases, pauses = KEYS[2], KEYS[3], KEYS[4], KEYS[5]
if lost(meta, ARGV[1]) then return {'LOST'} end
if is_stale(KEYS[8], ARGV[2], ARGV[6]) then return {'OK'} end
redis.call('HSET', KEYS[8], ARGV[2], ARGV[6])
local me, now, page = ARGV[2], time_ms(), tonumber(ARGV[4])
local until_ms = text(now + ARGV[3])
local alive_until = tonumber(redis.call('ZSCORE', workers, me) or '0')
-- After an outage of Redis all workers count as dead. Each first renews itself, and takes over at its next heartbeat.
local was_dead = alive_until <= now
redis.call('ZADD', workers, until_ms, me)
local alive = redis.call('ZRANGEBYSCORE', workers, '(' .. text(now), '+inf')

local function serves(worker, lane)
  local kinds = string.match(worker, '/([^/]*)$')
  local kind = string.match(lane, '^[^:]*')
  return kinds == '*' or string.find(',' .. kinds .. ',', ',' .. kind .. ',', 1, true) ~= nil
end
local function preferred(lane)
  local best, rank = false, ''
  for _, worker in ipairs(alive) do
    if serves(worker, lane) then
      local own = redis.sha1hex(worker .. '/' .. lane)
      if own > rank or (own == rank and worker > best) then best, rank = worker, own end
    end
  end
  return best
end
local taken = {}
local function take(lane, key, id, deliveries)
  redis.call('XCLAIM', key, 'w', me, 0, id, 'RETRYCOUNT', deliveries + 1, 'JUSTID')
  taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = lane, id, deliveries + 1
end
local function pending(key, limit, worker, after)
  if worker then return redis.call('XPENDING', key, 'w', after or '-', '+', limit, worker) end
  return redis.call('XPENDING', key, 'w', after or '-', '+', limit)
end
local function each_pending(key, worker, visit)
  local after = '-'
  while true do
    local found = pending(key, 1000, worker, after)
    for _, one in ipairs(found) do visit(one) end
    if #found < 1000 then return end
    after = '(' .. found[#found][1]
  end
end

local held, leaving = {}, {}
for i = 9, #KEYS do
  local lane, key = ARGV[i - 2], KEYS[i]
  if lane ~= 'events' and lane ~= 'imports' and serves(me, lane) then
    local owner, ends = lease_of(leases, lane)
    local wanted = preferred(lane)
    if owner == me and wanted ~= me and #pending(key, 1) == 0 then
      redis.call('HDEL', leases, lane)
    elseif owner == me then
      redis.call('HSET', leases, lane, until_ms .. '|' .. me)
      held[#held + 1] = lane
      if wanted ~= me then leaving[#leaving + 1] = lane end
    elseif wanted == me and not was_dead and ends <= now then
      each_pending(key, false, function(one)
        if one[2] ~= me then take(lane, key, one[1], one[4])
        else taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = lane, one[1], one[4] end
      end)
      redis.call('HSET', leases, lane, until_ms .. '|' .. me)
      held[#held + 1] = lane
    end
  end
end

if not was_dead then
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', text(now))) do
    local left = 0
    for i = 9, #KEYS do
      local lane, key = ARGV[i - 2], KEYS[i]
      if (lane == 'events' or lane == 'imports') and serves(me, lane) and page > 0 then
        local found = pending(key, page, worker)
        page = page - #found
        for _, one in ipairs(found) do take(lane, key, one[1], one[4]) end
      end
      left = left + #pending(key, 1, worker)
    end
    if left == 0 then
      for i = 9, #KEYS do redis.call('XGROUP', 'DELCONSUMER', KEYS[i], 'w', worker) end
      redis.call('ZREM', workers, worker)
      redis.call('HDEL', KEYS[8], worker)
    end
  end
end

local own = {}
if was_dead or ARGV[5] == '1' then
  for i = 9, #KEYS do
    each_pending(KEYS[i], me, function(one)
      own[#own + 1], own[#own + 2], own[#own + 3] = ARGV[i - 2], one[1], one[4]
    end)
  end
end

local paused = {}
local found = redis.call('HGETALL', pauses)
for i = 1, #found, 2 do
  local left = tonumber(found[i + 1]) - now
  if left > 0 then paused[#paused + 1], paused[#paused + 2] = found[i], left
  else redis.call('HDEL', pauses, found[i]) end
end

local oldest = false
for i = 9, #KEYS do
  local first = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
  local at = first and number(first[2], 't', 15)
  if at and (not oldest or at < oldest) then oldest = at end
end
-- An erased id is forgotten once no older record waits, and a day has passed in which producers could hand over more.
if redis.call('EXISTS', KEYS[7]) == 1 then
  local erased = redis.call('HGETALL', KEYS[7])
  for i = 1, #erased, 2 do
    local time = tonumber(erased[i + 1])
    if now - time > 86400000 and (not oldest or oldest > time) then redis.call('HDEL', KEYS[7], erased[i]) end
  end
end
return {
  'OK', was_dead and 1 or 0, held, leaving, paused, taken, own,
  redis.call('HGET', meta, 'records') or '0', oldest and text(oldest), redis.call('XLEN', KEYS[6]),
  redis.call('HGET', meta, 'bytes') or '0', #alive, redis.call('HGET', meta, 'erasures') or '0',
}
"""
)

# KEYS: none, meta, workers, leases, terms, lanes. ARGV: epoch, worker, most records, most entries, term, most bytes,
# names of the lanes.
# A worker that counts as dead gets nothing: others would not take over its entries.
# Answer: OK, number of erasures, then for each entry: lane, id, fields.
TAKE: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
local me, now, records, entries, bytes = ARGV[2], time_ms(), 0, 0, 0
local answer = {'OK', redis.call('HGET', KEYS[2], 'erasures') or '0'}
if tonumber(redis.call('ZSCORE', KEYS[3], me) or '0') <= now then return answer end
if is_stale(KEYS[5], me, ARGV[5]) then return answer end
for i = 6, #KEYS do
  local lane, key = ARGV[i + 1], KEYS[i]
  local mine = lane == 'events' or lane == 'imports'
  if not mine then
    local owner, ends = lease_of(KEYS[4], lane)
    mine = owner == me and ends > now
  end
  while mine and records < tonumber(ARGV[3]) and entries < tonumber(ARGV[4]) and bytes < tonumber(ARGV[6]) do
    local found = redis.call('XREADGROUP', 'GROUP', 'w', me, 'COUNT', 1, 'STREAMS', key, '>')
    if not found then break end
    local one = found[1][2][1]
    records, entries, bytes = records + records_of(one[2]), entries + 1, bytes + bytes_of(one[2])
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = lane, one[1], one[2]
  end
end
return answer
"""
)

# KEYS: meta, lane. ARGV: epoch, worker, most records, most bytes, ids.
# Answer: OK, number of erasures, then for each entry: id, and its fields if the worker still has it.
FETCH: Final = (
    HELPERS
    + """
if lost(KEYS[1], ARGV[1]) then return {'LOST'} end
local answer, records, bytes = {'OK', redis.call('HGET', KEYS[1], 'erasures') or '0'}, 0, 0
for i = 5, #ARGV do
  if records >= tonumber(ARGV[3]) or bytes >= tonumber(ARGV[4]) then break end
  local mine = #redis.call('XPENDING', KEYS[2], 'w', ARGV[i], ARGV[i], 1, ARGV[2]) > 0
  local one = mine and redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
  answer[#answer + 1], answer[#answer + 2] = ARGV[i], one and one[2] or false
  if one then records, bytes = records + records_of(one[2]), bytes + bytes_of(one[2]) end
end
return answer
"""
)

# KEYS: none, meta, leases, then lane and begun of each used lane. ARGV: epoch, worker, then for each entry: number of
# the lane's key, lane, id. Answer: OK, then the answer to each entry.
BEGIN: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
local me, now, answer = ARGV[2], time_ms(), {'OK'}
for i = 3, #ARGV, 3 do
  local at, lane, id = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  local mine = #redis.call('XPENDING', KEYS[at], 'w', id, id, 1, me) > 0
  if mine and lane ~= 'events' and lane ~= 'imports' then
    local owner, ends = lease_of(KEYS[3], lane)
    mine = owner == me and ends > now
  end
  if not mine then
    answer[#answer + 1] = 'GONE'
  elseif redis.call('HSETNX', KEYS[at + 1], id, me) == 1 or redis.call('HGET', KEYS[at + 1], id) == me then
    answer[#answer + 1] = 'MINE'
  else
    answer[#answer + 1] = 'BEGUN'
  end
end
return answer
"""
)

_TRIM_DEAD: Final = """
local function trim_dead(meta, dead, keep, most_bytes)
  while true do
    local first = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    if not first then return end
    local bytes = tonumber(redis.call('HGET', meta, 'dead_bytes') or '0')
    if redis.call('XLEN', dead) <= keep and bytes <= most_bytes then return end
    redis.call('XDEL', dead, first[1])
    redis.call('HINCRBY', meta, 'dead_bytes', 0 - #field(first[2], 'b'))
  end
end
"""

# KEYS: none, meta, dead, then lane and begun of each used lane. ARGV: epoch, worker, dead letters to keep, their most
# bytes, then for each entry: number of the lane's key, lane, id, number of dead letters, and for each of these: reason,
# counter, number of records without body, message, number of bodies, and for each body: '1' if it must not be sent
# twice, body. Answer: OK, number of removed entries.
SETTLE: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + COUNTING
    + _TRIM_DEAD
    + """
local meta, dead, keep = KEYS[2], KEYS[3], tonumber(ARGV[3])
if lost(meta, ARGV[1]) then return {'LOST'} end
local now, removed, buried, i = text(time_ms()), 0, false, 5
-- A key of another type ends the script here, and not between two writes.
redis.call('XLEN', dead)
for at = 4, #KEYS, 2 do redis.call('HLEN', KEYS[at + 1]) end

local function bury(lane, reason, message, once, body)
  redis.call('XADD', dead, '*', 'l', lane, 'r', reason, 'm', message, 't', now, 'o', once, 'b', body)
  redis.call('HINCRBY', meta, 'dead_bytes', #body)
  buried = true
end

while i <= #ARGV do
  local at, lane, id, letters = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  i = i + 4
  -- If no worker has the entry, the consumer group was removed and made anew after this worker had read it.
  local pending = redis.call('XPENDING', KEYS[at], 'w', id, id, 1)[1]
  local mine = not pending or pending[2] == ARGV[2]
  local entry = mine and redis.call('XRANGE', KEYS[at], id, id)[1]
  local failed = 0
  for _ = 1, letters do
    local reason, counter, unreadable, message = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
    local bodies = tonumber(ARGV[i + 4])
    i = i + 5
    if entry then
      redis.call('HINCRBY', meta, counter, bodies + unreadable)
      failed = failed + bodies + unreadable
    end
    for _ = 1, bodies do
      if entry and keep > 0 and counter ~= 'purged' then bury(lane, reason, message, ARGV[i], ARGV[i + 1]) end
      i = i + 2
    end
  end
  if mine then
    redis.call('XACK', KEYS[at], 'w', id)
    redis.call('XDEL', KEYS[at], id)
    redis.call('HDEL', KEYS[at + 1], id)
  end
  if entry then
    local records = records_of(entry[2])
    count(meta, lane, 0 - records, 0 - bytes_of(entry[2]))
    redis.call('HINCRBY', meta, 'out', records - failed)
    removed = removed + 1
  end
end
if buried then trim_dead(meta, dead, keep, tonumber(ARGV[4])) end
return {'OK', removed}
"""
)

# KEYS: none, meta, pauses. ARGV: epoch, endpoint, milliseconds.
PAUSE: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
local ends = time_ms() + tonumber(ARGV[3])
if ends > tonumber(redis.call('HGET', KEYS[3], ARGV[2]) or '0') then
  redis.call('HSET', KEYS[3], ARGV[2], text(ends))
end
return {'OK'}
"""
)

# KEYS: none, meta, workers, leases, terms, lanes, begun of each lane. ARGV: epoch, worker, consumer of released
# entries, number of lanes, lanes, then for each entry whose mark is removed: number of its lane, id.
RELEASE: Final = (
    ALLOW_FULL_MEMORY
    + HELPERS
    + """
if lost(KEYS[2], ARGV[1]) then return {'LOST'} end
local me, released, lanes = ARGV[2], ARGV[3], tonumber(ARGV[4])
for i = 5 + lanes, #ARGV, 2 do
  local at, id = 5 + tonumber(ARGV[i]), ARGV[i + 1]
  local mine = #redis.call('XPENDING', KEYS[at], 'w', id, id, 1, me) > 0
  if mine and redis.call('HGET', KEYS[at + lanes], id) == me then redis.call('HDEL', KEYS[at + lanes], id) end
end
for i = 6, 5 + lanes do
  local lane = ARGV[i - 1]
  local owner = lease_of(KEYS[4], lane)
  if owner == me then redis.call('HDEL', KEYS[4], lane) end
  while true do
    local found = redis.call('XPENDING', KEYS[i], 'w', '-', '+', 1000, me)
    for _, one in ipairs(found) do
      redis.call('XCLAIM', KEYS[i], 'w', released, 0, one[1], 'RETRYCOUNT', one[4] - 1, 'JUSTID')
    end
    if #found > 0 then redis.call('ZADD', KEYS[3], 0, released) end
    if #found < 1000 then break end
  end
  redis.call('XGROUP', 'DELCONSUMER', KEYS[i], 'w', me)
end
redis.call('ZREM', KEYS[3], me)
redis.call('HDEL', KEYS[5], me)
return {'OK'}
"""
)
