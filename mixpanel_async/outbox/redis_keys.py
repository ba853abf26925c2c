"""Names of the keys of a queue in Redis, and the form of its entries (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .counters import counter_of
from .lanes import lane_names
from .protocol import DeadEntry, Entry, EntryId

# Longer messages are cut: dead letters are many.
_MAX_MESSAGE: Final = 500
_TIME_DIGITS: Final = 15
# Latest time of an entry in milliseconds. A clock that is not set may be before 1970, or after this.
_LATEST: Final = 10**_TIME_DIGITS - 1


class Keys:
    """Names of the keys of one queue.

    Args:
        name: name of the queue.
        partitions: number of lanes for profile updates, and of lanes for group updates.
    """

    __slots__ = ("_prefix", "lanes")

    def __init__(self, name: str, partitions: int) -> None:
        # The braces keep all keys in one slot of a cluster.
        self._prefix = f"{{{name}}}:"
        self.lanes = lane_names(partitions)
        """Names of the lanes, which are also names of keys."""

    def __call__(self, *names: str) -> list[str]:
        """Return keys by their names without the prefix, such as `meta` and `events`."""
        return [self._prefix + name for name in names]

    def all_lanes(self, *names: str) -> list[str]:
        """Return keys by their names, and then those of all lanes."""
        return self(*names, *self.lanes)

    def with_lanes(self, names: Sequence[str], lanes: Sequence[str]) -> tuple[list[str], dict[str, int]]:
        """Return keys by names, then `<lane>` and `begun:<lane>` of some lanes; and the number of each lane's key."""
        used = [*dict.fromkeys(lanes)]
        pairs = [key for lane in used for key in (lane, f"begun:{lane}")]
        return self(*names, *pairs), {lane: len(names) + 1 + 2 * at for at, lane in enumerate(used)}


def push_args(entry: Entry, key: int) -> list[str | bytes | int]:
    """Return the arguments of the script `PUSH` for one entry, whose lane has this number of key."""
    return [
        key,
        entry.lane,
        min(max(0, round(entry.accepted_at * 1000)), _LATEST),
        entry.records,
        ",".join(map(str, entry.non_idempotent)),
        "g" if entry.is_compressed else "",
        "" if entry.sequence is None else entry.sequence,
        entry.body,
    ]


def settle_args(id: EntryId, key: int, dead: Sequence[DeadEntry]) -> list[str | bytes | int]:
    """Return the arguments of the script `SETTLE` for one entry, whose lane has this number of key."""
    args: list[str | bytes | int] = [key, id.lane, id.id, len(dead)]
    for one in dead:
        args += [one.reason.value, counter_of(one.reason), one.unreadable, one.message[:_MAX_MESSAGE], len(one.records)]
        once_only = frozenset(one.non_idempotent)
        for position, body in enumerate(one.records):
            args += ["1" if position in once_only else "", bytes(body)]
    return args


def fields_of(flat: Sequence[Any]) -> dict[str, bytes]:
    """Return the fields of an entry from the list that Redis answers."""
    return {name.decode("ascii", "replace"): value for name, value in zip(flat[::2], flat[1::2], strict=False)}


def is_newer(fields: Mapping[str, bytes]) -> bool:
    """Return whether a newer version wrote an entry."""
    return fields.get("v", b"1") != b"1"


def entry_from(lane: str, fields: Mapping[str, bytes]) -> Entry:
    """Return an entry from its fields. One that cannot be read has an empty body, which is not a valid one."""
    records, accepted_at = _number(fields.get("n"), 9), _number(fields.get("t"), _TIME_DIGITS)
    positions = fields.get("o", b"")
    try:
        once_only = tuple(map(int, positions.split(b","))) if positions else ()
    except ValueError:
        once_only = None
    if not records or accepted_at is None or once_only is None or "b" not in fields:
        # The scripts count it as this number of records too.
        return Entry(lane=lane, records=records or 1, body=b"", accepted_at=0.0)
    return Entry(
        lane=lane,
        records=records,
        body=fields["b"],
        is_compressed=fields.get("z") == b"g",
        non_idempotent=once_only,
        accepted_at=accepted_at / 1000,
    )


def _number(value: bytes | None, digits: int) -> int | None:
    """Return a number as the function of this name in the scripts does."""
    return int(value) if value is not None and value.isdigit() and len(value) <= digits else None


def sort_key(id: str) -> tuple[int, int]:
    """Return the position of an id in its lane."""
    time, _, number = id.partition("-")
    return int(time), int(number)
