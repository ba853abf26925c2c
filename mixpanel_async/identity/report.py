"""Report of an audit. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._model.config import IdMerge
from .findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class LargePerson:
    """Person with many ids.

    Args:
        person: canonical id.
        ids: number of ids.
        events: number of events.
    """

    person: str
    ids: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Result of an audit.

    Args:
        id_merge: ID merge system in which the events were replayed.
        events: number of events read, identity calls included.
        calls: number of identity calls among them.
        incomplete_calls: number of identity calls without two ids.
        profiles: number of user profiles read.
        ids: number of ids, those of profiles included.
        persons: number of people.
        joined_persons: number of people with more than one id.
        persons_of_several_users: number of people with more than one identified user.
        sizes: number of people by their number of ids, in ascending order of size.
        largest: the people with the most ids, the largest first.
        outcomes: number of identity calls and device links by outcome: `merged`, `unchanged`, `repeated` (refused or
            without effect, but the ids are one person), `failed` and `ignored`.
        ordered_by_time: number of events that were ordered by their `time`, because they have no time of arrival.
        findings: the faults found, the most frequent first.
    """

    id_merge: IdMerge
    events: int
    calls: int
    incomplete_calls: int
    profiles: int
    ids: int
    persons: int
    joined_persons: int
    persons_of_several_users: int
    sizes: Mapping[int, int]
    largest: tuple[LargePerson, ...]
    outcomes: Mapping[str, int]
    ordered_by_time: int
    findings: tuple[Finding, ...]

    @property
    def finding_count(self) -> int:
        """Number of cases of all findings."""
        return sum(finding.count for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "id_merge": self.id_merge.value,
            "events": self.events,
            "calls": self.calls,
            "incomplete_calls": self.incomplete_calls,
            "profiles": self.profiles,
            "ids": self.ids,
            "persons": self.persons,
            "joined_persons": self.joined_persons,
            "persons_of_several_users": self.persons_of_several_users,
            "sizes": {str(size): count for size, count in self.sizes.items()},
            "largest": [{"person": one.person, "ids": one.ids, "events": one.events} for one in self.largest],
            "outcomes": dict(self.outcomes),
            "ordered_by_time": self.ordered_by_time,
            "finding_count": self.finding_count,
            "findings": [finding.as_dict() for finding in self.findings],
        }
