"""What is to be kept of a project over a restart: all of it at the start, and then what changes.

Pure. A project writes here as it goes, which costs it an append; the store takes the changes away and writes them to
disk. Links are kept as the verbs that made them and with the canonical id chosen then, so that a restart neither asks
for it again nor refuses what was accepted once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..project.identity import IdentityResult, Link
from ..project.profiles import Profile

EventRow = tuple[str, str, bytes, tuple[str, float]]
"""An event: name, id that it counted under as it arrived, properties as JSON, endpoint and time of arrival."""
LogRow = tuple[str, bytes, IdentityResult]
"""An entry of the identity log: name of the event, its properties as JSON, what it came to."""


@dataclass(slots=True)
class ChangeSet:
    """Changes of a project, or, as read back at a start, everything there is.

    Args:
        cleared: whether everything before these changes is forgotten.
        forgotten: how many of the oldest events are no longer kept.
        rows: events that came.
        log: entries of the identity log that came.
        links: links that came, with the time at which they did.
        profiles: as they are now, by person; None if they were deleted.
        groups: the same, by group key and id.
    """

    cleared: bool = False
    forgotten: int = 0
    rows: list[EventRow] = field(default_factory=list)
    log: list[LogRow] = field(default_factory=list)
    links: list[tuple[float, Link]] = field(default_factory=list)
    profiles: dict[str, Profile | None] = field(default_factory=dict)
    groups: dict[tuple[str, str], Profile | None] = field(default_factory=dict)

    def take(self) -> ChangeSet:
        """The changes so far, which are then gone from here."""
        taken = ChangeSet(self.cleared, self.forgotten, self.rows, self.log, self.links, self.profiles, self.groups)
        self.clear()
        self.cleared = False
        return taken

    def clear(self) -> None:
        """Note that everything so far is forgotten."""
        self.cleared = True
        self.forgotten = 0
        self.rows, self.log, self.links, self.profiles, self.groups = [], [], [], {}, {}

    def __bool__(self) -> bool:
        return bool(
            self.cleared or self.forgotten or self.rows or self.log or self.links or self.profiles or self.groups
        )
