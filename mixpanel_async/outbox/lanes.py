"""Names of lanes, and which worker should serve which ordered lane (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from .._model.config import check_count
from .._model.errors import raise_configuration_error, show_text
from .._model.records import RecordKind

if TYPE_CHECKING:
    from .protocol import EntryId

MAX_PARTITIONS: Final = 256
KINDS: Final = tuple(kind.value for kind in RecordKind)
"""All kinds of records, by name."""
_PARTITIONED: Final = (RecordKind.PEOPLE.value, RecordKind.GROUPS.value)
_UNORDERED: Final = (RecordKind.EVENTS.value, RecordKind.IMPORTS.value)


def lane_names(partitions: int, kinds: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the names of the lanes of some kinds; None for all kinds."""
    wanted = [kind for kind in KINDS if kinds is None or kind in kinds]
    return tuple(
        name
        for kind in wanted
        for name in ([f"{kind}:{number}" for number in range(partitions)] if kind in _PARTITIONED else [kind])
    )


def is_ordered(lane: str) -> bool:
    """Return whether one worker at a time serves the lane, in order."""
    return lane not in _UNORDERED


def entries_lost_with(gone: Collection[EntryId], known: Collection[EntryId]) -> set[EntryId]:
    """Return those of the known entries that a worker loses with others: all entries of an ordered lane."""
    lanes = {one.lane for one in gone if is_ordered(one.lane)}
    return {one for one in known if one in gone or one.lane in lanes}


def kind_of(lane: str) -> str:
    """Return the kind of the records of a lane."""
    return lane.partition(":")[0]


def preferred_worker(lane: str, workers: Collection[str]) -> str | None:
    """Return the worker that should serve an ordered lane; None without live workers.

    With rendezvous hashing, a worker that comes or goes moves only the lanes that it gains or loses.
    """
    return max(workers, key=lambda worker: (_rank(worker, lane), worker), default=None)


def _rank(worker: str, lane: str) -> str:
    # The scripts in Redis compute the same.
    return hashlib.sha1(f"{worker}/{lane}".encode(), usedforsecurity=False).hexdigest()


def check_partitions(value: object) -> None:
    """Check the option `partitions`.

    Raises:
        ConfigurationError: if it is not a whole number, or out of bounds.
    """
    check_count("partitions", value, maximum=MAX_PARTITIONS)


def check_kinds(kinds: Collection[str] | None) -> None:
    """Check the option `kinds`.

    Raises:
        ConfigurationError: if it is empty or has an unknown kind.
    """
    if kinds is None:
        return
    if not isinstance(kinds, Collection):
        raise_configuration_error(f"kinds must be a collection of {', '.join(KINDS)}, not {type(kinds).__name__}")
    unknown = sorted(str(kind) for kind in kinds if kind not in KINDS)
    if isinstance(kinds, str) or unknown or not kinds:
        wrong = show_text(kinds if isinstance(kinds, str) else unknown[0]) if kinds else "nothing"
        raise_configuration_error(f"kinds must be a collection of {', '.join(KINDS)}, not {wrong}")
