"""Status of a queue in Redis: answers of the server as public values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .queue_status import QueueCount, QueueServer, QueueWorker
from .redis_connection import RedisConnection
from .redis_queue import permitted, policy_of
from .redis_scripts import RELEASED

_INFO_SECTIONS: Final = ("server", "persistence", "memory", "replication")
# One call of each command that Redis writes to its append-only file for a script.
_WRITES: Final = (
    "XADD KEY * f v",
    "XACK KEY g 0-0",
    "XDEL KEY 0-0",
    "XCLAIM KEY g c 0 0-0",
    "XGROUP CREATE KEY g 0",
    "HSET KEY f v",
    "HINCRBY KEY f 1",
    "HDEL KEY f",
    "ZADD KEY 1 m",
    "ZREM KEY m",
    "DEL KEY",
    "PEXPIREAT KEY 1",
)


def pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield names and values of a list in which they alternate."""
    return zip(flat[::2], flat[1::2], strict=True)


def lane_count(name: str, row: Sequence[Any], fields: Mapping[str, str]) -> QueueCount:
    """Return the waiting records of a lane, from the answer of the script `STATUS` and the fields of the metadata."""
    entries, accepted_at, _, held = row
    return QueueCount(
        records=int(fields.get(f"records:{name}", 0)),
        bytes=int(fields.get(f"bytes:{name}", 0)),
        oldest=None if accepted_at is None else int(accepted_at) / 1000,
        entries=int(entries),
        held=sum(int(count) for _, count in pairs(held)),
    )


def workers_of(alive: Sequence[Any], leases: Sequence[Any], held: Sequence[Sequence[Any]]) -> tuple[QueueWorker, ...]:
    """Return the workers of a queue.

    Args:
        alive: workers and the milliseconds that they are still alive.
        leases: lanes and their workers.
        held: for each lane, workers and the number of entries that they have read.
    """
    counts: dict[bytes, int] = {}
    for lane in held:
        for worker, count in pairs(lane):
            counts[worker] = counts.get(worker, 0) + int(count)
    lanes: dict[bytes, list[str]] = {}
    for lane, worker in pairs(leases):
        lanes.setdefault(worker, []).append(lane.decode())
    seconds = {worker: int(left) / 1000 for worker, left in pairs(alive)}
    found = []
    for worker in sorted(seconds.keys() | counts.keys()):
        # Entries that workers gave back at their end have no owner.
        if worker.decode() != RELEASED and (seconds.get(worker) or counts.get(worker)):
            name, _, kinds = worker.decode().rpartition("/")
            found.append(
                QueueWorker(
                    name=name,
                    kinds=() if kinds == "*" else tuple(kinds.split(",")),
                    alive_for=seconds.get(worker, 0.0),
                    held=counts.get(worker, 0),
                    lanes=tuple(sorted(lanes.get(worker, ()))),
                )
            )
    return tuple(found)


async def read_server(connection: RedisConnection, key: str) -> QueueServer:
    """Return what the server with a key tells about itself."""
    info: dict[str, Any] = {}
    for section in _INFO_SECTIONS:
        info |= _flat(await permitted(connection, key, "INFO", section))
    fsync = _flat(await permitted(connection, key, "CONFIG", "GET", "appendfsync")).get("appendfsync")
    is_valkey = "valkey_version" in info
    policy = await policy_of(connection, key)
    append_only = _number(info.get("aof_enabled"))
    return QueueServer(
        name="valkey" if is_valkey else "redis",
        version=str(info.get("valkey_version" if is_valkey else "redis_version", "unknown")),
        role=info.get("role"),
        replicas=_number(info.get("connected_slaves")),
        append_only=None if append_only is None else bool(append_only),
        append_fsync=fsync,
        append_status=info.get("aof_last_write_status"),
        policy=None if policy == "unknown" else policy,
        memory=_number(info.get("used_memory")),
        max_memory=_number(info.get("maxmemory")),
        default_user_may_write=await _may_default_user_write(connection, key),
    )


async def _may_default_user_write(connection: RedisConnection, key: str) -> bool | None:
    """Return whether the user `default` may run the commands that change the queue; None if the server hides it."""
    for command in _WRITES:
        words = [key if word == "KEY" else word for word in command.split()]
        answer = _text(await permitted(connection, key, "ACL", "DRYRUN", "default", *words))
        if not isinstance(answer, str):
            return None
        if answer != "OK":
            return False
    return True


def _flat(answer: Any) -> dict[str, Any]:
    """Return names and values of the answer to INFO or CONFIG GET, which the client may have parsed."""
    if isinstance(answer, (list, tuple)):
        answer = dict(pairs(answer))
    if not isinstance(answer, dict):
        return {}
    # A client of a cluster answers for each node.
    first = next(iter(answer.values()), None)
    found = first if isinstance(first, dict) else answer
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None
