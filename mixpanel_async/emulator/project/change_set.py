"""Changes of a project that are still to be written to disk.

Pure. The project appends to the change set. The store takes the changes and writes them. Links are kept as the calls
that made them, with the canonical id chosen at that time, so that a restart reproduces them without evaluating the
calls again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mixpanel_async.identity.results import IdentityResult
from mixpanel_async.identity.systems import Link

from .profiles import Profile

# Tuples of plain values, because a million tracked objects would slow down every garbage collection.
Arrival = tuple[str, float]
"""Arrival of an event: endpoint, and time in seconds since the epoch."""
EventRow = tuple[str, str, bytes, Arrival]
"""Stored event: name, id it counted under at arrival, properties as JSON, arrival."""
IdentityRow = tuple[str, bytes, IdentityResult]
"""Entry of the identity log: event name, properties as JSON, result."""

UpdateRow = tuple[str, str, bytes, float]
"""Profile update: group key, or empty for a user; id as resolved at arrival; record as JSON; time."""


@dataclass(slots=True)
class ChangeSet:
    """Changes of a project since the last `take`, or the whole project when read back at startup.

    Args:
        cleared: whether all data before these changes is deleted.
        events_removed: number of oldest events removed to stay within the limits.
        event_rows: new events.
        identity_rows: new entries of the identity log.
        links: new links, each with the time of its event.
        profiles: changed profiles by person; None marks a deleted profile.
        groups: changed group profiles by group key and id; None marks a deleted profile.
    """

    cleared: bool = False
    events_removed: int = 0
    event_rows: list[EventRow] = field(default_factory=list)
    identity_rows: list[IdentityRow] = field(default_factory=list)
    links: list[tuple[float, Link]] = field(default_factory=list)
    profiles: dict[str, Profile | None] = field(default_factory=dict)
    groups: dict[tuple[str, str], Profile | None] = field(default_factory=dict)

    def take(self) -> ChangeSet:
        """Return the changes collected so far and start an empty set."""
        taken = ChangeSet(
            self.cleared,
            self.events_removed,
            self.event_rows,
            self.identity_rows,
            self.links,
            self.profiles,
            self.groups,
        )
        self.clear()
        self.cleared = False
        return taken

    def remove_oldest_event(self) -> None:
        """Record that the project removed its oldest event."""
        self.events_removed += 1

    def clear(self) -> None:
        """Record that all data is deleted, and discard the changes collected so far."""
        self.cleared = True
        self.events_removed = 0
        self.event_rows, self.identity_rows, self.links, self.profiles, self.groups = [], [], [], {}, {}

    def __bool__(self) -> bool:
        return bool(
            self.cleared
            or self.events_removed
            or self.event_rows
            or self.identity_rows
            or self.links
            or self.profiles
            or self.groups
        )
