"""Comparison of a plan with events that were exported after it was applied. Pure.

An exported event shows the person that it counts for, and the id as it was sent: both are one person. The events of the
calls themselves show whether Mixpanel accepted them. People are joined in reports up to an hour later, in rare cases a
day, and only some rows of an export change even then, so a call may be accepted and not be visible yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from mixpanel_async import IdMerge
from mixpanel_async.identity import (
    CREATE_ALIAS,
    DEVICE_PREFIX,
    IDENTIFY,
    MERGE,
    VERBS,
    IdentityGraph,
    as_id,
    verb_ids,
)

from .calls import CallKind, PlannedPair, Skip

if TYPE_CHECKING:
    from .plan_file import Plan

_KINDS: Final[Mapping[str, CallKind]] = {
    IDENTIFY: CallKind.IDENTIFY,
    CREATE_ALIAS: CallKind.ALIAS,
    MERGE: CallKind.MERGE,
}
_BEFORE: Final = "$distinct_id_before_identity"
_NO_LIMIT: Final = 2**62

Key = tuple[str, str, str]


class Status(str, Enum):
    """Status of a pair according to an export."""

    JOINED = "joined"
    """Events of both ids count for one person."""
    ACCEPTED = "accepted"
    """Mixpanel accepted the calls, and no event contradicts. An id without later events shows no more."""
    PENDING = "pending"
    """Mixpanel accepted the calls, but events of the two ids still count for two people."""
    REFUSED = "refused"
    """Mixpanel refused the call, and marked its event with the reason."""
    APART = "apart"
    """Events of the two ids count for two people, and no call of the plan was found."""
    UNKNOWN = "unknown"
    """The export has neither the call nor events of both ids."""

    @property
    def is_good(self) -> bool:
        return self in {Status.JOINED, Status.ACCEPTED}


@dataclass(frozen=True, slots=True)
class Finding:
    """Status of one pair.

    Args:
        pair: the pair.
        status: what the export says about it.
        reason: Mixpanel's reason, if it refused the call.
    """

    pair: PlannedPair
    status: Status
    reason: str = ""


class ReadBack:
    """Comparison of a plan with exported events.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # Ids that are one person according to events, and according to accepted calls as well.
        self._shown = IdentityGraph(IdMerge.ORIGINAL, cluster_limit=_NO_LIMIT)
        self._claimed = IdentityGraph(IdMerge.ORIGINAL, cluster_limit=_NO_LIMIT)
        self._refused: dict[Key, str] = {}
        self._accepted: set[Key] = set()
        self._owners: dict[str, str] = {}
        self.events = 0
        """Number of events read."""

    def add(self, event: object) -> None:
        """Take one exported event into account. Anything else is ignored."""
        if not isinstance(event, Mapping):
            return
        name, properties = event.get("event"), event.get("properties")
        if not isinstance(name, str) or not isinstance(properties, Mapping):
            return
        self.events += 1
        if self._plan.is_simplified:
            self._add_simplified(properties)
            return
        person = as_id(properties.get("distinct_id"))
        sent = as_id(properties.get(_BEFORE)) or person
        if name in VERBS:
            self._add_call(name, {**properties, "distinct_id": sent})
        elif person:
            self._show(sent, person)

    def _add_call(self, name: str, properties: Mapping[str, Any]) -> None:
        ids = verb_ids(name, properties)
        if isinstance(ids, str):
            return
        key = (_KINDS[name].value, *ids)
        reason = as_id(properties.get("$failure_reason"))
        if reason:
            self._refused[key] = reason
        else:
            self._accepted.add(key)
            self._claimed.merge(*ids)

    def _add_simplified(self, properties: Mapping[str, Any]) -> None:
        person = as_id(properties.get("distinct_id"))
        device = as_id(properties.get("$device_id")).removeprefix(DEVICE_PREFIX)
        user = as_id(properties.get("$user_id"))
        if device and user:
            self._accepted.add((CallKind.LINK.value, user, DEVICE_PREFIX + device))
            self._shown.add(user)
            self._claimed.merge(user, DEVICE_PREFIX + device)
        elif device and person:
            self._show(DEVICE_PREFIX + device, person)
            if not person.startswith(DEVICE_PREFIX):
                self._owners[DEVICE_PREFIX + device] = person
        elif person:
            self._show(person, person)

    def _show(self, sent: str, person: str) -> None:
        if sent == person:
            self._shown.add(sent)
        else:
            self._shown.merge(sent, person)
            self._claimed.merge(sent, person)

    def findings(self) -> Iterator[Finding]:
        """Yield the status of every pair whose ids the plan joins, or found joined."""
        for pair in self._plan.calls:
            yield self._finding(pair)
        for pair in self._plan.left_out:
            if pair.skip in {Skip.JOINED, Skip.IMPLIED}:
                yield self._finding(pair)

    def _finding(self, pair: PlannedPair) -> Finding:
        key = (pair.kind, pair.first, pair.second)
        if self._shown.is_same_person(pair.first, pair.second):
            return Finding(pair, Status.JOINED)
        owner = self._owners.get(pair.second)
        if owner is not None and owner != pair.first and pair.kind == CallKind.LINK.value:
            return Finding(pair, Status.REFUSED, "the device belongs to another user")
        if key in self._refused and key not in self._accepted:
            return Finding(pair, Status.REFUSED, self._refused[key])
        is_seen = pair.first in self._shown and pair.second in self._shown
        if self._claimed.is_same_person(pair.first, pair.second):
            # In Legacy, events from before the alias stay where they are.
            is_visible = is_seen and self._plan.id_merge is not IdMerge.LEGACY
            return Finding(pair, Status.PENDING if is_visible else Status.ACCEPTED)
        if pair.skip is Skip.JOINED:
            # Joined by calls before the first day of the export.
            return Finding(pair, Status.APART if is_seen else Status.ACCEPTED)
        return Finding(pair, Status.APART if is_seen else Status.UNKNOWN)
