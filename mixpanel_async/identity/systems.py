"""The three ID merge systems by which a Mixpanel project joins ids into people.

Pure: no I/O, no clock. Each class stores only the links between ids. In Original and Simplified, the person of an event
is resolved when the event is read, so that links apply to earlier events too. Legacy resolves an event once, at
arrival.

Sources: Mixpanel's pages on identity management and their decision diagrams
(https://docs.mixpanel.com/docs/tracking-methods/id-management, read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - Only an accepted call marks its ids as used: a refused `$identify` does not make its `$identified_id` "once used",
      and a refused `$create_alias` leaves the alias free.
    - A repeated pair of ids (`$identify` or `$create_alias`) is refused as in the diagrams, and changes nothing.
    - `$anon_id` counts as assigned if any id of its cluster, itself included, was used as `$identified_id`.
    - `$identify` needs its ids in Original only. In Simplified it is an ordinary event if it has a `$device_id` and a
      `$user_id`, which join. The other identity calls join nothing there, but count for the person of these ids.
    - A call whose ids are already one person is accepted without effect, even in a full cluster. In Legacy, such an
      alias would point to itself and is refused with `errSameIDs`.
    - The limit is the size of the largest cluster allowed: 500 as in the text. The diagrams show 499.
    - The canonical id in Original is that of the cluster that the call names first (`$identified_id`, the `distinct_id`
      of an alias, the first of `$distinct_ids`), so that it does not change while the cluster grows.
    - Simplified: a device belongs to its first user, in order of arrival and then of the batch. A `$user_id` with the
      prefix `$device:` names a device. A `distinct_id` with that prefix links nothing if the event has a `$user_id`.
      Forbidden and empty ids count as absent. One prefix is removed from a `$device_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .calls import CREATE_ALIAS, DEVICE_PREFIX, IDENTIFY, as_id, is_anonymous, linked_person, verb_ids
from .forest import Forest, IdTable
from .results import DEVICE_TAKEN, ORDINARY, UNCHANGED, IdentityResult, Reason, failed_result, ignored_result

CLUSTER_LIMIT: Final = 500
"""Maximum number of ids of one person in Original, as Mixpanel documents it."""

_MAX_SHOWN_ID: Final = 255

ChooseCanonical = Callable[[str, str], str]


def keep_first(first: str, second: str) -> str:  # noqa: ARG001  the signature of a choice
    """Keep the canonical id of the cluster that the identity call names first."""
    return first


@dataclass(frozen=True, slots=True)
class Link:
    """Accepted identity call. It joins ids or affects the outcome of later calls.

    Args:
        verb: name of the identity call, or `DEVICE_LINK` for a device link in Simplified.
        first: id that the call names first, or the user of a device.
        second: the other id, or the device.
        kept: canonical id after a merge; None if the ids were one person already.
    """

    verb: str
    first: str
    second: str
    kept: str | None


class Identities(Protocol):
    """ID merge system of one project: the links between its ids."""

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        """Apply an identity call with the two ids of `verb_ids`."""

    def refusal(self, verb: str, first: str, second: str) -> IdentityResult | None:
        """Return what `apply` would if it joined nothing, or None if it would join. It changes nothing."""

    def is_ordinary(self, verb: str, properties: Mapping[str, Any]) -> bool:
        """Return whether an identity call is an ordinary event in this system, as `$identify` of the SDKs may be."""

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        """Return the id that an ordinary event counts under at arrival, and the device that it links to that id.

        The device is None if the event links none. Properties that Mixpanel derives from the `distinct_id` are added in
        place.
        """

    def link_device(self, device: str, person: str) -> IdentityResult | None:
        """Link a device of `attribute_event` to a person. Return None if the link exists already."""

    def link_refusal(self, device: str, person: str) -> IdentityResult | None:
        """Return what linking a device would if it joined nothing, or None if it would join. It changes nothing."""

    def restore_link(self, link: Link) -> None:
        """Apply a link that was accepted earlier, with the canonical id chosen at that time."""

    def current_id(self, arrival_id: str) -> str:
        """Return the canonical id that an event counts for now, given the id it counted under at arrival."""

    def resolve(self, distinct_id: str) -> str:
        """Return the canonical id of an id. An unknown id is its own canonical id."""

    def cluster(self, distinct_id: str) -> set[str]:
        """Return all ids of the person with this id."""

    def size(self, distinct_id: str) -> int:
        """Return the number of ids of the person with this id."""

    def linked_ids(self) -> list[str]:
        """Return every id that is part of a link."""


class _LinkedIds:
    """Ids joined by accepted links. Common part of the systems.

    Args:
        table: numbers of the ids, which others may share; by default a new one.
    """

    def __init__(self, table: IdTable | None = None) -> None:
        self._table = IdTable() if table is None else table
        self._forest = Forest()

    def _join(self, kept: str, absorbed: str) -> tuple[int, int]:
        """Join two people. The canonical id of the first one stays. Return the roots as `Forest.unite` does."""
        return self._forest.unite(self._table.number(kept), self._table.number(absorbed))

    def link_device(self, device: str, person: str) -> IdentityResult | None:  # noqa: ARG002  only Simplified has devices
        return None

    def link_refusal(self, device: str, person: str) -> IdentityResult | None:  # noqa: ARG002  only Simplified has devices
        return ORDINARY

    def resolve(self, distinct_id: str) -> str:
        number = self._table.find(distinct_id)
        return distinct_id if number is None else self._table.name(self._forest.label(number))

    def cluster(self, distinct_id: str) -> set[str]:
        number = self._table.find(distinct_id)
        if number is None:
            return {distinct_id}
        return {self._table.name(member) for member in self._forest.members(number)}

    def size(self, distinct_id: str) -> int:
        number = self._table.find(distinct_id)
        return 1 if number is None else self._forest.size(number)

    def linked_ids(self) -> list[str]:
        return [name for number, name in enumerate(self._table.names()) if self._forest.size(number) > 1]


class LegacyIdentities(_LinkedIds):
    """System of projects from before March 2020: an alias is a pointer from a new id to an older one.

    Pointers are followed when events and updates arrive.
    """

    def __init__(self, table: IdTable | None = None) -> None:
        super().__init__(table)
        self._aliases: set[str] = set()

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        refused = self.refusal(verb, first, second)
        if refused is not None:
            return refused
        root = self.resolve(first)
        self._aliases.add(second)
        # An id that is no alias is the canonical id of all ids that point to it, which follow it to the new root.
        self._join(root, second)
        # Profiles are not merged: the alias redirects later events and updates, and changes no stored data.
        return IdentityResult(outcome="merged")

    def refusal(self, verb: str, first: str, second: str) -> IdentityResult | None:
        if verb != CREATE_ALIAS:
            return ignored_result(Reason.NOT_IN_LEGACY, f"{verb} has no effect in a Legacy project")
        if second in self._aliases:
            return failed_result(Reason.ALIAS_EXISTS)
        return failed_result(Reason.SAME_IDS) if self.resolve(first) == second else None

    def is_ordinary(self, verb: str, properties: Mapping[str, Any]) -> bool:
        return verb == IDENTIFY and isinstance(verb_ids(verb, properties), str)

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        return self.resolve(as_id(properties.get("distinct_id"))), None

    def restore_link(self, link: Link) -> None:
        self._aliases.add(link.second)
        self._join(link.first, link.second)

    def current_id(self, arrival_id: str) -> str:
        return arrival_id


class OriginalIdentities(_LinkedIds):
    """Original ID Merge: clusters of ids that merge and never split.

    Args:
        cluster_limit: maximum number of ids in a cluster, at least 2.
        choose_canonical: returns the canonical id to keep of the two given. The first one belongs to the id that the
            call names first.
        table: numbers of the ids, which others may share; by default a new one.
    """

    def __init__(
        self,
        cluster_limit: int = CLUSTER_LIMIT,
        choose_canonical: ChooseCanonical = keep_first,
        table: IdTable | None = None,
    ) -> None:
        super().__init__(table)
        self._limit = cluster_limit
        self._choose_canonical = choose_canonical
        self._identified: set[int] = set()
        # Roots of the clusters that contain an identified id.
        self._identified_roots: set[int] = set()
        self._aliases: set[str] = set()

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        refused = self.refusal(verb, first, second)
        result = self._merge(first, second) if refused is None else refused
        if result.outcome != "failed":
            self._mark_used(verb, first, second)
        return result

    def refusal(self, verb: str, first: str, second: str) -> IdentityResult | None:
        reason = self._failure_reason(verb, first, second)
        if reason is not None:
            return failed_result(reason)
        left, right = self.resolve(first), self.resolve(second)
        if left == right:
            return UNCHANGED
        return failed_result(Reason.TOO_MANY_IDS) if self.size(left) + self.size(right) > self._limit else None

    def is_ordinary(self, verb: str, properties: Mapping[str, Any]) -> bool:  # noqa: ARG002  every call counts here
        return False

    def is_identified(self, distinct_id: str) -> bool:
        """Return whether an accepted `$identify` used this id as `$identified_id`."""
        return self._table.find(distinct_id) in self._identified

    def identified(self) -> Iterator[str]:
        """Yield the ids that an accepted `$identify` used as `$identified_id`."""
        return map(self._table.name, self._identified)

    def _mark_used(self, verb: str, first: str, second: str) -> None:
        if verb == IDENTIFY:
            number = self._table.number(first)
            self._identified.add(number)
            self._identified_roots.add(self._forest.root(number))
        elif verb == CREATE_ALIAS:
            self._aliases.add(second)

    def _failure_reason(self, verb: str, first: str, second: str) -> Reason | None:
        if verb == IDENTIFY:
            if first == second:
                return Reason.SAME_IDS
            if not is_anonymous(second):
                return Reason.NOT_ANONYMOUS
            number = self._table.find(second)
            if number is not None and self._forest.root(number) in self._identified_roots:
                return Reason.ALREADY_ASSIGNED
        elif verb == CREATE_ALIAS and second in self._aliases:
            return Reason.ALIAS_EXISTS
        return None

    def _merge(self, first: str, second: str) -> IdentityResult:
        left, right = self.resolve(first), self.resolve(second)
        kept = self._choose_canonical(left, right)
        if kept not in {left, right}:
            raise ValueError("choose_canonical must return one of its two arguments")
        absorbed = right if kept == left else left
        self._join_clusters(kept, absorbed)
        return IdentityResult(outcome="merged", kept=kept, absorbed=absorbed)

    def _join_clusters(self, kept: str, absorbed: str) -> None:
        root, other = self._join(kept, absorbed)
        if other in self._identified_roots:
            self._identified_roots.discard(other)
            self._identified_roots.add(root)

    def restore_link(self, link: Link) -> None:
        left, right = self.resolve(link.first), self.resolve(link.second)
        if left != right:
            # The limit and `choose_canonical` may have been different when the link was accepted.
            self._join_clusters(left, right) if link.kept == left else self._join_clusters(right, left)
        self._mark_used(link.verb, link.first, link.second)

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        return as_id(properties.get("distinct_id")), None

    def current_id(self, arrival_id: str) -> str:
        return self.resolve(arrival_id)


class SimplifiedIdentities(_LinkedIds):
    """Simplified ID Merge: a device belongs to its first user, and a user has any number of devices.

    Args:
        table: numbers of the ids, which others may share; by default a new one.
    """

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        return self.refusal(verb, first, second)

    def refusal(self, verb: str, first: str, second: str) -> IdentityResult:  # noqa: ARG002  no effect in Simplified
        return ignored_result(Reason.NOT_IN_SIMPLIFIED, f"{verb} has no effect in a project with Simplified ID Merge")

    def is_ordinary(self, verb: str, properties: Mapping[str, Any]) -> bool:
        if verb != IDENTIFY:
            return False
        _, device = linked_person(properties)
        return device is not None or isinstance(verb_ids(verb, properties), str)

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        person, device = linked_person(properties)
        if person:
            return person, device
        sent = as_id(properties.get("distinct_id"))
        if sent.startswith(DEVICE_PREFIX):
            properties["$device_id"] = sent.removeprefix(DEVICE_PREFIX)
        elif sent:
            properties["$user_id"] = sent
        return sent, None

    def link_device(self, device: str, person: str) -> IdentityResult | None:
        if self.resolve(device) == person:
            return None
        refused = self.link_refusal(device, person)
        if refused is not None:
            return refused
        self._join(person, device)
        return IdentityResult(outcome="merged", kept=person, absorbed=device)

    def link_refusal(self, device: str, person: str) -> IdentityResult | None:
        owner = self.resolve(device)
        if owner == person:
            return UNCHANGED
        if owner == device:
            return None
        return ignored_result(Reason.DEVICE_TAKEN, f"{DEVICE_TAKEN}: {owner[:_MAX_SHOWN_ID]}")

    def restore_link(self, link: Link) -> None:
        self._join(link.first, link.second)

    def current_id(self, arrival_id: str) -> str:
        return self.resolve(arrival_id)
