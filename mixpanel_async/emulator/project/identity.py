"""Who is who: the three systems by which a Mixpanel project joins ids into one person.

Pure: no I/O, no clock. Each class keeps only the links themselves; what an event counts as is asked when it is read,
which is what makes Original and Simplified retroactive. Legacy is not, so the project asks it once, as a message
arrives.

Sources: Mixpanel's pages on identity management, `$identify`, `$create_alias` and `$merge` and their decision diagrams
(https://docs.mixpanel.com/docs/tracking-methods/id-management, read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - Only an accepted verb uses up its ids: a refused `$identify` does not make its `$identified_id` "once used", and
      a refused `$create_alias` leaves the alias free.
    - Repeating a pair (`$identify` or `$create_alias`) is refused as the diagrams say, and changes nothing.
    - `$anon_id` counts as taken if any id of its cluster, itself included, was used as `$identified_id`.
    - The UUIDv4 test takes the dashed form 8-4-4-4-12 in either letter case, and looks at the version only.
    - A verb whose two ids are one person already is accepted without effect, even in a full cluster. In Legacy such an
      alias would point to itself and is refused with `errSameIDs`.
    - The cap is the size of the largest cluster allowed: 500 as in the prose; the diagrams say 499.
    - Canonical id in Original: that of the cluster which the verb names first (`$identified_id`, the alias'
      `distinct_id`, the first of `$distinct_ids`), so that it stays while the cluster grows.
    - Simplified: the first user claims a device, in order of arrival and then of the batch. A `$user_id` that begins
      with `$device:` names a device. A `distinct_id` of that form beside a `$user_id` links nothing. Forbidden and
      empty ids count as absent. One prefix is taken off a `$device_id`.
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

# https://docs.mixpanel.com/reference/import-events, read 2026-08-21; compared without regard to letter case.
FORBIDDEN_IDS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined",
        "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}", "lmy47d",
    }
)  # fmt: skip

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "errSameIDs": "both ids are the same",
    "errAnonDistinctIdNonGUIDForm": "$anon_id is not in UUID v4 form",
    "errAnonDistinctIdAssignedAlready": "$anon_id is already merged with an id that was used as $identified_id",
    "errAliasAlreadyExists": "this alias was used already",
    "errManyIDs": "the merged person would have more ids than Mixpanel allows",
}

_UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)

ChooseCanonical = Callable[[str, str], str]
Outcome = Literal["merged", "unchanged", "failed", "ignored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityResult:
    """What an identity verb, or a Simplified link, came to.

    Args:
        outcome: `merged`; `unchanged` (accepted, but one person already); `failed`; `ignored` (this system does not
            know the verb).
        reason: Mixpanel's `$failure_reason` code, or None.
        description: the same in words, or an empty string.
        kept: canonical id after a merge, or None.
        absorbed: the id that was canonical before and no longer is, or None.
    """

    outcome: Outcome
    reason: str | None = None
    description: str = ""
    kept: str | None = None
    absorbed: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Something accepted that joins ids, or that later verbs are judged by.

    Args:
        verb: an identity verb, or `DEVICE_LINK` for a device that a user claimed in Simplified.
        first: the id that the verb names first; the user of a device.
        second: the other id; the device.
        kept: the canonical id after a merge; None if the ids were one person already.
    """

    verb: str
    first: str
    second: str
    kept: str | None


_UNCHANGED: Final = IdentityResult(outcome="unchanged")


def failed_result(reason: str) -> IdentityResult:
    """The verdict on a refused verb, with Mixpanel's code."""
    return IdentityResult(outcome="failed", reason=reason, description=DESCRIPTIONS[reason])


def ignored_result(description: str) -> IdentityResult:
    """The verdict on a verb that has no effect here, with the reason in words."""
    return IdentityResult(outcome="ignored", description=description)


def as_id(value: object) -> str:
    """An id as Mixpanel treats it: text. Numbers become text; anything else counts as absent (an empty string)."""
    if type(value) is str:
        return value
    return str(value) if type(value) in {int, float} else ""


def verb_ids(verb: str, properties: Mapping[str, Any]) -> tuple[str, str] | str:
    """The two ids that an identity verb names, or the property that is missing or malformed."""
    if verb == MERGE:
        pair = properties.get("$distinct_ids")
        if type(pair) is not list or len(pair) != 2 or not all(as_id(item) for item in pair):
            return "$distinct_ids"
        return as_id(pair[0]), as_id(pair[1])
    names = ("$identified_id", "$anon_id") if verb == IDENTIFY else ("distinct_id", "alias")
    first, second = (as_id(properties.get(name)) for name in names)
    if not first:
        return names[0]
    return (first, second) if second else names[1]


class Identities(Protocol):
    """One project's links between ids."""

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:
        """Take an identity verb with the two ids of `verb_ids`."""

    def attribute_event(self, properties: dict[str, Any]) -> tuple[str, str | None]:
        """The id that an ordinary event counts under as it arrives, and a device id that it claims for that person.

        Properties that Mixpanel derives from the `distinct_id` are added in place.
        """

    def link_device(self, device: str, person: str) -> IdentityResult | None:
        """Link a device as `place` named it; None if nothing is new."""

    def restore_link(self, link: Link) -> None:
        """Take a link that such a project accepted before, as it was accepted then."""

    def current_id(self, arrival_id: str) -> str:
        """Whom an event that arrived under this id counts for now."""

    def resolve(self, distinct_id: str) -> str:
        """The canonical id of a person by any id; an unknown id is its own."""

    def cluster(self, distinct_id: str) -> set[str]:
        """All ids of the person whom this id names."""

    def linked_ids(self) -> list[str]:
        """Every id that takes part in a link."""


class LegacyIdentities:
    """Before March 2020: an alias is a pointer from a new id to an older one, followed as messages arrive."""

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
        # Profiles are not combined: the alias leads new messages to the old id and touches nothing stored.
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
        # Pointers never change direction, so shortening them is safe and keeps long chains cheap.
        while distinct_id != root:
            self._pointers[distinct_id], distinct_id = root, self._pointers[distinct_id]
        return root

    def cluster(self, distinct_id: str) -> set[str]:
        root = self.resolve(distinct_id)
        return {root, *(alias for alias in list(self._pointers) if self.resolve(alias) == root)}

    def linked_ids(self) -> list[str]:
        return [*self._pointers, *self._pointers.values()]


class OriginalIdentities:
    """Original ID Merge: clusters that only ever grow.

    Args:
        cluster_limit: ids in the largest cluster allowed; at least 2.
        choose_canonical: given the canonical ids of two clusters, the one that the verb names first in front, returns
            the one to keep.
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
        verdict = self._merge(first, second)
        if verdict.outcome != "failed":
            self._mark_used(verb, first, second)
        return verdict

    def _mark_used(self, verb: str, first: str, second: str) -> None:
        if verb == IDENTIFY:
            self._identified.add(first)
        elif verb == CREATE_ALIAS:
            self._aliases.add(second)

    def _failure_reason(self, verb: str, first: str, second: str) -> str | None:
        if verb == IDENTIFY:
            if first == second:
                return "errSameIDs"
            if not _UUID4.fullmatch(second):
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
            raise ValueError("choose_canonical must return one of the two ids that it was given")
        absorbed = right if kept == left else left
        self._join_clusters(kept, absorbed)
        return IdentityResult(outcome="merged", kept=kept, absorbed=absorbed)

    def _join_clusters(self, kept: str, absorbed: str) -> None:
        together = self.cluster(kept) | self.cluster(absorbed)
        self._members.pop(absorbed, None)
        self._members[kept] = together
        for member in together:
            self._canonical_ids[member] = kept

    def restore_link(self, link: Link) -> None:
        self._mark_used(link.verb, link.first, link.second)
        left, right = self.resolve(link.first), self.resolve(link.second)
        if left != right:
            # The limit and the choice of the canonical id may have been others then.
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
    """Simplified ID Merge: a device belongs to the first user seen on it, and a user has any number of devices."""

    def __init__(self) -> None:
        self._user_of_device: dict[str, str] = {}
        self._devices_of_user: dict[str, list[str]] = {}

    def apply(self, verb: str, first: str, second: str) -> IdentityResult:  # noqa: ARG002  the verbs do nothing here
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
            return ignored_result(f"the device belongs to another user since an earlier event: {owner}")
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
    """An id that may link: neither empty nor on the forbidden list."""
    text = as_id(value)
    return "" if len(text) <= 36 and text.lower() in FORBIDDEN_IDS else text
