"""Parts of the Lua scripts of `RedisOutbox` and `QueueAdmin`; `redis_scripts.py` describes the keys and fields."""

from __future__ import annotations

from typing import Final

# Entries may have been written by other programs: an invalid number must not end a script after its first write.
HELPERS: Final = """
local function lost(meta, epoch)
  return redis.call('HGET', meta, 'epoch') ~= epoch
end
local function time_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
  return false
end
local function number(fields, name, digits)
  local found = field(fields, name)
  return found and #found <= digits and string.match(found, '^%d+$') and tonumber(found)
end
local function records_of(fields)
  return math.max(number(fields, 'n', 9) or 1, 1)
end
local function bytes_of(fields)
  return #(field(fields, 'b') or '')
end
local function text(ms)
  return string.format('%.0f', ms)
end
local function is_stale(terms, worker, term)
  return tonumber(term) < tonumber(redis.call('HGET', terms, worker) or '0')
end
local function lease_of(leases, lane)
  local lease = redis.call('HGET', leases, lane)
  if not lease then return false, 0 end
  local ends, owner = string.match(lease, '^(%d+)|(.*)$')
  return owner, tonumber(ends)
end
"""
ALLOW_FULL_MEMORY: Final = "redis.call('DEL', KEYS[1])\n"
COUNTING: Final = """
local function count(meta, lane, records, bytes)
  redis.call('HINCRBY', meta, 'records', records)
  redis.call('HINCRBY', meta, 'bytes', bytes)
  redis.call('HINCRBY', meta, 'records:' .. lane, records)
  redis.call('HINCRBY', meta, 'bytes:' .. lane, bytes)
end
"""
