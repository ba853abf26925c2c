"""The three ID merge systems by which a Mixpanel project joins ids into people.

Pure: no I/O, no clock. Each class stores only the links between ids. In Original and Simplified, the person of an event
is resolved when the event is read, so that links apply to earlier events too. Legacy resolves an event once, at
arrival.

Sources: Mixpanel's pages on identity management, `$identify`, `$create_alias` and `$merge` and their decision diagrams
(https://docs.mixpanel.com/docs/tracking-methods/id-management, read 2026-08-21). Observed in 2026-11: `$identify` of
the browser and mobile SDKs, with `distinct_id` and `$anon_distinct_id` instead of `$identified_id` and `$anon_id`, and
the form of the anonymous ids that a real project joined.

Decisions where Mixpanel's documents are silent
    - Only an accepted call marks its ids as used: a refused `$identify` does not make its `$identified_id` "once used",
      and a refused `$create_alias` leaves the alias free.
    - A repeated pair of ids (`$identify` or `$create_alias`) is refused as in the diagrams, and changes nothing.
    - `$anon_id` counts as assigned if any id of its cluster, itself included, was used as `$identified_id`.
    - The form of an anonymous id: five groups of hexadecimal digits joined by dashes, in either letter case, with or
      without the prefix `$device:`. In Original and Legacy, the ids with and without the prefix are two ids.
    - An `$identify` in both spellings uses the documented one if it is complete, else that of the SDKs. Numbers count
      as text; other types and empty ids count as absent.
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

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

IDENTIFY: Final = "$identify"
CREATE_ALIAS: Final = "$create_alias"
MERGE: Final = "$merge"
VERBS: Final = frozenset({IDENTIFY, CREATE_ALIAS, MERGE})

DEVICE_PREFIX: Final = "$device:"
DEVICE_LINK: Final = "$device"

# https://docs.mixpanel.com/reference/import-events, read 2026-08-21. The comparison ignores letter case.
FORBIDDEN_IDS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined",
        "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}", "lmy47d",
    }
)  # fmt: skip

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "errSameIDs": "both ids are the same",
    "errAnonDistinctIdNonGUIDForm": "the anonymous id is not five groups of hexadecimal digits joined by dashes",
    "errAnonDistinctIdAssignedAlready": "the anonymous id is already merged with an identified user",
    "errAliasAlreadyExists": "this alias was used already",
    "errManyIDs": "the merged person would have more ids than Mixpanel allows",
}

DEVICE_TAKEN: Final = "an earlier event linked the device to another user"

_MAX_SHOWN_ID: Final = 255
_ANONYMOUS_ID: Final = re.compile(r"(?:\$device:)?[0-9A-Fa-f]+(?:-[0-9A-Fa-f]+){4}")
_DOCUMENTED: Final = ("$identified_id", "$anon_id")
_OF_SDKS: Final = ("distinct_id", "$anon_distinct_id")

ChooseCanonical = Callable[[str, str], str]
Outcome = Literal["merged", "unchanged", "failed", "ignored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityResult:
    """Result of an identity call, or of a device link in Simplified.

    Args:
        outcome: `merged`, `unchanged` (accepted, but the ids were one person already), `failed`, or `ignored` (the call
            has no effect in this system).
        reason: Mixpanel's `$failure_reason` code, or None.
        description: explanation of the outcome, or an empty string.
        kept: canonical id after a merge, or None.
        absorbed: id that was canonical before the merge and no longer is, or None.
    """

    outcome: Outcome
    reason: str | None = None
    description: str = ""
    kept: str | None = None
    absorbed: str | None = None


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


_UNCHANGED: Final = IdentityResult(outcome="unchanged")


def failed_result(reason: str) -> IdentityResult:
    """Return the result of a refused identity call with Mixpanel's code."""
    return IdentityResult(outcome="failed", reason=reason, description=DESCRIPTIONS[reason])


def ignored_result(description: str) -> IdentityResult:
    """Return the result of an identity call that has no effect in this project."""
    return IdentityResult(outcome="ignored", description=description)


def as_id(value: object) -> str:
    """Return an id as text, as Mixpanel does. Numbers become text; other types count as absent (an empty string)."""
    if type(value) is str:
        return value
    return str(value) if type(value) in {int, float} else ""


def verb_ids(verb: str, properties: Mapping[str, Any]) -> tuple[str, str] | str:
    """Return the two ids of an identity call, or the name of the property that is missing or malformed."""
    if verb == MERGE:
        pair = properties.get("$distinct_ids")
        if type(pair) is not list or len(pair) != 2 or not all(as_id(item) for item in pair):
            return "$distinct_ids"
        return as_id(pair[0]), as_id(pair[1])
    if verb == CREATE_ALIAS:
        return _pair(properties, "distinct_id", "alias")
    documented, of_sdks = _pair(properties, *_DOCUMENTED), _pair(properties, *_OF_SDKS)
    if isinstance(documented, str) and not isinstance(of_sdks, str):
        return of_sdks
    if "$anon_distinct_id" in properties and properties.keys().isdisjoint(_DOCUMENTED):
        return of_sdks
    return documented


def _pair(properties: Mapping[str, Any], *names: str) -> tuple[str, str] | str:
    """Return the ids in two properties, or the name of the first one that has none."""
    first, second = (as_id(properties.get(name)) for name in names)
    if not first:
        return names[0]
    return (first, second) if second else names[1]


def id_problem(name: str, value: object) -> str:
    """Return what is wrong with a property that `verb_ids` has returned."""
    if value is None:
        return "must not be missing"
    if name == "$distinct_ids":
        return "must be a list of two ids"
    return "must not be empty" if value == "" else "must be a string"


class Identities(Protocol):
    """ID merge system of one project: the links between its ids."""

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        """Apply an identity call with the two ids of `verb_ids`."""

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        """Return the id that an ordinary event counts under at arrival, and the device that it links to that id.

        The device is None if the event links none. Properties that Mixpanel derives from the `distinct_id` are added in
        place.
        """

    def link_device(self, device: str, person: str) -> IdentityResult | None:
        """Link a device of `attribute_event` to a person. Return None if the link exists already."""

    def restore_link(self, link: Link) -> None:
        """Apply a link that was accepted earlier, with the canonical id chosen at that time."""

    def current_id(self, arrival_id: str) -> str:
        """Return the canonical id that an event counts for now, given the id it counted under at arrival."""

    def resolve(self, distinct_id: str) -> str:
        """Return the canonical id of an id. An unknown id is its own canonical id."""

    def cluster(self, distinct_id: str) -> set[str]:
        """Return all ids of the person with this id."""

    def linked_ids(self) -> list[str]:
        """Return every id that is part of a link."""


class LegacyIdentities:
    """System of projects from before March 2020: an alias is a pointer from a new id to an older one.

    Pointers are followed when events and updates arrive.
    """

    def __init__(self) -> None:
        self._pointers: dict[str, str] = {}

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        if verb != CREATE_ALIAS:
            return ignored_result(f"{verb} has no effect in a Legacy project")
        if second in self._pointers:
            return failed_result("errAliasAlreadyExists")
        root = self.resolve(first)
        if root == second:
            return failed_result("errSameIDs")
        self._pointers[second] = root
        # Profiles are not merged: the alias redirects later events and updates, and changes no stored data.
        return IdentityResult(outcome="merged")

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        return self.resolve(as_id(properties.get("distinct_id"))), None

    def link_device(self, device: str, person: str) -> IdentityResult | None:  # noqa: ARG002  only Simplified has devices
        return None

    def restore_link(self, link: Link) -> None:
        self._pointers[link.second] = self.resolve(link.first)

    def current_id(self, arrival_id: str) -> str:
        return arrival_id

    def resolve(self, distinct_id: str) -> str:
        root = distinct_id
        while root in self._pointers:
            root = self._pointers[root]
        # A pointer never changes its root, so path compression is safe and keeps long chains cheap.
        while distinct_id != root:
            self._pointers[distinct_id], distinct_id = root, self._pointers[distinct_id]
        return root

    def cluster(self, distinct_id: str) -> set[str]:
        root = self.resolve(distinct_id)
        return {root, *(alias for alias in list(self._pointers) if self.resolve(alias) == root)}

    def linked_ids(self) -> list[str]:
        return [*self._pointers, *self._pointers.values()]


class OriginalIdentities:
    """Original ID Merge: clusters of ids that merge and never split.

    Args:
        cluster_limit: maximum number of ids in a cluster, at least 2.
        choose_canonical: returns the canonical id to keep of the two given. The first one belongs to the id that the
            call names first.
    """

    def __init__(self, cluster_limit: int, choose_canonical: ChooseCanonical) -> None:
        self._limit = cluster_limit
        self._choose_canonical = choose_canonical
        self._canonical_ids: dict[str, str] = {}
        self._members: dict[str, set[str]] = {}
        self._identified: set[str] = set()
        self._aliases: set[str] = set()

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        refused = self._failure_reason(verb, first, second)
        if refused is not None:
            return failed_result(refused)
        result = self._merge(first, second)
        if result.outcome != "failed":
            self._mark_used(verb, first, second)
        return result

    def _mark_used(self, verb: str, first: str, second: str) -> None:
        if verb == IDENTIFY:
            self._identified.add(first)
        elif verb == CREATE_ALIAS:
            self._aliases.add(second)

    def _failure_reason(self, verb: str, first: str, second: str) -> str | None:
        if verb == IDENTIFY:
            if first == second:
                return "errSameIDs"
            if not _ANONYMOUS_ID.fullmatch(second):
                return "errAnonDistinctIdNonGUIDForm"
            if not self._identified.isdisjoint(self.cluster(second)):
                return "errAnonDistinctIdAssignedAlready"
        elif verb == CREATE_ALIAS and second in self._aliases:
            return "errAliasAlreadyExists"
        return None

    def _merge(self, first: str, second: str) -> IdentityResult:
        left, right = self.resolve(first), self.resolve(second)
        if left == right:
            return _UNCHANGED
        if len(self.cluster(left)) + len(self.cluster(right)) > self._limit:
            return failed_result("errManyIDs")
        kept = self._choose_canonical(left, right)
        if kept not in {left, right}:
            raise ValueError("choose_canonical must return one of its two arguments")
        absorbed = right if kept == left else left
        self._join_clusters(kept, absorbed)
        return IdentityResult(outcome="merged", kept=kept, absorbed=absorbed)

    def _join_clusters(self, kept: str, absorbed: str) -> None:
        members = self.cluster(kept) | self.cluster(absorbed)
        self._members.pop(absorbed, None)
        self._members[kept] = members
        for member in members:
            self._canonical_ids[member] = kept

    def restore_link(self, link: Link) -> None:
        self._mark_used(link.verb, link.first, link.second)
        left, right = self.resolve(link.first), self.resolve(link.second)
        if left != right:
            # The limit and `choose_canonical` may have been different when the link was accepted.
            self._join_clusters(left, right) if link.kept == left else self._join_clusters(right, left)

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        return as_id(properties.get("distinct_id")), None

    def link_device(self, device: str, person: str) -> IdentityResult | None:  # noqa: ARG002  only Simplified has devices
        return None

    def current_id(self, arrival_id: str) -> str:
        return self.resolve(arrival_id)

    def resolve(self, distinct_id: str) -> str:
        return self._canonical_ids.get(distinct_id, distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        return set(self._members.get(self.resolve(distinct_id), {distinct_id}))

    def linked_ids(self) -> list[str]:
        return list(self._canonical_ids)


class SimplifiedIdentities:
    """Simplified ID Merge: a device belongs to its first user, and a user has any number of devices."""

    def __init__(self) -> None:
        self._user_of_device: dict[str, str] = {}
        self._devices_of_user: dict[str, list[str]] = {}

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:  # noqa: ARG002  no effect in Simplified
        return ignored_result(f"{verb} has no effect in a project with Simplified ID Merge")

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        if "$device_id" in properties or "$user_id" in properties:
            device, user = _linkable_id(properties.get("$device_id")), _linkable_id(properties.get("$user_id"))
            device = device.removeprefix(DEVICE_PREFIX)
            if user.startswith(DEVICE_PREFIX):
                device, user = device or user.removeprefix(DEVICE_PREFIX), ""
            if user:
                return user, DEVICE_PREFIX + device if device else None
            if device:
                return DEVICE_PREFIX + device, None
        sent = as_id(properties.get("distinct_id"))
        if sent.startswith(DEVICE_PREFIX):
            properties["$device_id"] = sent.removeprefix(DEVICE_PREFIX)
        elif sent:
            properties["$user_id"] = sent
        return sent, None

    def link_device(self, device: str, person: str) -> IdentityResult | None:
        owner = self._user_of_device.get(device)
        if owner == person:
            return None
        if owner is not None:
            return ignored_result(f"{DEVICE_TAKEN}: {owner:.{_MAX_SHOWN_ID}}")
        self._link(device, person)
        return IdentityResult(outcome="merged", kept=person, absorbed=device)

    def restore_link(self, link: Link) -> None:
        self._link(link.second, link.first)

    def _link(self, device: str, person: str) -> None:
        self._user_of_device[device] = person
        self._devices_of_user.setdefault(person, []).append(device)

    def current_id(self, arrival_id: str) -> str:
        return self.resolve(arrival_id)

    def resolve(self, distinct_id: str) -> str:
        return self._user_of_device.get(distinct_id, distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        person = self.resolve(distinct_id)
        return {person, *self._devices_of_user.get(person, ())}

    def linked_ids(self) -> list[str]:
        return [*self._user_of_device, *self._devices_of_user]


def _linkable_id(value: object) -> str:
    """Return an id that can be linked; an empty string for a forbidden one."""
    text = as_id(value)
    return "" if len(text) <= 36 and text.lower() in FORBIDDEN_IDS else text
