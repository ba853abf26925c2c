"""Findings of an audit: possible faults in the ids of a project, and advice for each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from .._model.config import IdMerge
from .results import ADVICE, Reason


class FindingKind(Enum):
    """Kind of a problem with ids. The values are the names in JSON."""

    FAILED_CALLS = "failed_calls"
    """Identity calls that Mixpanel refused, although their ids are different people."""
    IGNORED_CALLS = "ignored_calls"
    """Identity calls without effect, whose ids are different people."""
    PLACEHOLDER_IDS = "placeholder_ids"
    """Ids such as `undefined`, `null`, `[object Object]` or a UUID of zeros."""
    ID_VARIANTS = "id_variants"
    """Different people whose ids differ in letter case or white space only, or by the prefix `$device:`."""
    MIXED_ID_KINDS = "mixed_id_kinds"
    """Users with an e-mail address and another user id as their ids."""
    SHARED_DEVICES = "shared_devices"
    """Devices with several users."""
    SPLIT_BY_EMAIL = "split_by_email"
    """People who share an `$email`, which is in the detail of each case."""
    SPLIT_BY_USER_ID = "split_by_user_id"
    """People who share a `$user_id`."""
    NEAR_LIMIT = "near_limit"
    """People with almost as many ids as Mixpanel allows, or as many."""
    ALIAS_CHAINS = "alias_chains"
    """Aliases of aliases."""
    LEGACY_ORDER = "legacy_order"
    """Legacy: aliases that had events before the call."""
    EVENTS_LEFT_BEHIND = "events_left_behind"
    """Events from before an identity call that still count for another person after it."""


TITLES: Final[Mapping[FindingKind, str]] = {
    FindingKind.FAILED_CALLS: "Identity calls that Mixpanel refused",
    FindingKind.IGNORED_CALLS: "Identity calls without effect",
    FindingKind.PLACEHOLDER_IDS: "Ids that are placeholders",
    FindingKind.ID_VARIANTS: "Variants of one id",
    FindingKind.MIXED_ID_KINDS: "Users with an e-mail address and another id as ids",
    FindingKind.SHARED_DEVICES: "Devices with several users",
    FindingKind.SPLIT_BY_EMAIL: "Several persons with one $email",
    FindingKind.SPLIT_BY_USER_ID: "Several persons with one $user_id",
    FindingKind.NEAR_LIMIT: "Persons near the limit of ids",
    FindingKind.ALIAS_CHAINS: "Aliases of aliases",
    FindingKind.LEGACY_ORDER: "Aliases that had events before the call",
    FindingKind.EVENTS_LEFT_BEHIND: "Events from before an identity call that did not join",
}

_ADVICE: Final[Mapping[FindingKind, str]] = {
    FindingKind.PLACEHOLDER_IDS: (
        "All visitors without an id share such an id, and look like one very active user. Mixpanel refuses most of "
        "them in imports. Check for a missing id before the call, and send the anonymous id, or an empty distinct_id. "
        "Ids that were joined with one cannot be separated again."
    ),
    FindingKind.ID_VARIANTS: (
        "Mixpanel compares ids character by character, so that each variant is a person. Use one form where ids are "
        "created, such as id.strip().lower() for e-mail addresses."
    ),
    FindingKind.MIXED_ID_KINDS: (
        "Choose one kind of id for users, preferably the key of your database, which never changes. Send the e-mail "
        "address as the profile property $email."
    ),
    FindingKind.SHARED_DEVICES: (
        "Several users on one device are a shared device, or an app that keeps the anonymous id at log-out. Call "
        "reset() in the SDK at log-out, so that the next user gets a new one."
    ),
    FindingKind.SPLIT_BY_EMAIL: (
        "If the address belongs to one user, the persons are one. A shared mailbox is no mistake."
    ),
    FindingKind.SPLIT_BY_USER_ID: (
        "In this project, $user_id joins nothing by itself. Join the ids at log-in: identify in Original, alias at "
        "sign-up in Legacy."
    ),
    FindingKind.NEAR_LIMIT: ADVICE[Reason.TOO_MANY_IDS],
    FindingKind.ALIAS_CHAINS: (
        "These chains have joined their ids: nothing needs repair. But a link that is lost or late splits a user. "
        "Alias every id to the user's first id instead."
    ),
    FindingKind.LEGACY_ORDER: (
        "In Legacy, an alias applies to later events only. The events from before the call stay a separate person. "
        "Send the alias at sign-up, and no event under the new id before it has been accepted. If the alias is the "
        "anonymous id, the ids are swapped: distinct_id is the older one."
    ),
    FindingKind.EVENTS_LEFT_BEHIND: (
        "These events count for another person than the user they were meant for. Another finding says why the call "
        "did not join them."
    ),
}
_JOIN: Final[Mapping[IdMerge, str]] = {
    IdMerge.LEGACY: "A Legacy project cannot join what exists: import the events again under one id.",
    IdMerge.ORIGINAL: (
        "To join what exists, write two ids of the user on each line of a CSV file for mixpanel-async identity plan. A "
        "merge cannot be undone."
    ),
    IdMerge.SIMPLIFIED: (
        "A Simplified project never joins two users. Send anonymous events with $device_id instead of a plain "
        "distinct_id, and import events of a wrong user again under the right one."
    ),
}
# Kinds for which it matters how ids that exist are joined.
_NEEDS_JOIN: Final = frozenset(
    {
        FindingKind.ID_VARIANTS, FindingKind.MIXED_ID_KINDS, FindingKind.SPLIT_BY_EMAIL, FindingKind.SPLIT_BY_USER_ID,
        FindingKind.EVENTS_LEFT_BEHIND,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One instance of a finding.

    Args:
        ids: the ids concerned, the main one first.
        detail: particulars of this instance; may be empty.
        events: number of events concerned, or 0 if that is not known.
    """

    ids: tuple[str, ...]
    detail: str = ""
    events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Problem of one kind, with the number of its cases.

    Args:
        kind: kind of the problem.
        id_merge: ID merge system of the project.
        count: number of cases, at least 1.
        cases: the first cases, as many as the audit keeps.
        reason: reason of refused and ignored calls, otherwise None.
    """

    kind: FindingKind
    id_merge: IdMerge
    count: int
    cases: tuple[Case, ...]
    reason: Reason | None = None

    @property
    def title(self) -> str:
        return TITLES[self.kind]

    @property
    def advice(self) -> str:
        """Advice in one or more sentences."""
        if self.reason is not None:
            return ADVICE.get(self.reason, "")
        join = f" {_JOIN[self.id_merge]}" if self.kind in _NEEDS_JOIN else ""
        return _ADVICE[self.kind] + join

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain values, for JSON."""
        return {
            "kind": self.kind.value,
            "reason": None if self.reason is None else self.reason.value,
            "count": self.count,
            "title": self.title,
            "advice": self.advice,
            "cases": [{"ids": list(one.ids), "detail": one.detail, "events": one.events} for one in self.cases],
        }


class CaseList:
    """Cases of one finding: counts all, and keeps the first ones.

    Args:
        kind: kind of the finding.
        id_merge: ID merge system of the project.
        limit: maximum number of cases kept.
        reason: reason of refused and ignored calls, otherwise None.
    """

    def __init__(self, kind: FindingKind, id_merge: IdMerge, limit: int, reason: Reason | None = None) -> None:
        self._kind = kind
        self._id_merge = id_merge
        self._limit = limit
        self._reason = reason
        self._count = 0
        self._cases: list[Case] = []

    def add(self, *ids: str, detail: str = "", events: int = 0) -> None:
        """Add a case."""
        self._count += 1
        if len(self._cases) < self._limit:
            self._cases.append(Case(ids=ids, detail=detail, events=events))

    def finding(self) -> Finding | None:
        """Return the finding, or None without cases."""
        if not self._count:
            return None
        return Finding(
            kind=self._kind,
            id_merge=self._id_merge,
            count=self._count,
            cases=tuple(self._cases),
            reason=self._reason,
        )
