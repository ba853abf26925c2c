"""Results of identity calls: outcome, reason, explanation and advice. Pure.

The codes that start with `err` are Mixpanel's `$failure_reason` values, from its decision diagrams
(https://docs.mixpanel.com/docs/tracking-methods/id-management, read 2026-08-21). The others are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

Outcome = Literal["merged", "unchanged", "failed", "ignored"]


class Reason(Enum):
    """Reason why an identity call joined no ids. The values are the codes in reports."""

    SAME_IDS = "errSameIDs"
    """Both ids are the same."""
    NOT_ANONYMOUS = "errAnonDistinctIdNonGUIDForm"
    """The anonymous id of `$identify` has a form that Mixpanel does not join."""
    ALREADY_ASSIGNED = "errAnonDistinctIdAssignedAlready"
    """The anonymous id belongs to an identified user."""
    ALIAS_EXISTS = "errAliasAlreadyExists"
    """The alias was used before."""
    TOO_MANY_IDS = "errManyIDs"
    """The person would have more ids than Mixpanel allows."""
    ALREADY_ONE_PERSON = "alreadyOnePerson"
    """The ids were one person before the call."""
    NOT_IN_LEGACY = "notInLegacy"
    """The call has no effect in a Legacy project."""
    NOT_IN_SIMPLIFIED = "notInSimplified"
    """The call has no effect in a Simplified project."""
    NEEDS_IMPORT = "mergeNeedsImport"
    """`$merge` was sent to `/track`, which does not support it."""
    DEVICE_TAKEN = "deviceHasOtherUser"
    """Simplified: an earlier event linked the device to another user."""
    INVALID_ID = "invalidId"
    """An id is missing or is no text."""
    REFUSED = "refused"
    """Mixpanel refused the call with a code that this version does not know."""
    ORDINARY_EVENT = "ordinaryEvent"
    """The event is no identity call and links no device."""

    @classmethod
    def of_code(cls, code: str) -> Reason:
        """Return the reason with this code; `REFUSED` for one that this version does not know.

        Args:
            code: `$failure_reason` of an event.
        """
        return next((reason for reason in cls if reason.value == code), cls.REFUSED)


DEVICE_TAKEN: Final = "an earlier event linked the device to another user"

DESCRIPTIONS: Final[Mapping[Reason, str]] = {
    Reason.SAME_IDS: "both ids are the same",
    Reason.NOT_ANONYMOUS: "the anonymous id is not five groups of hexadecimal digits joined by dashes",
    Reason.ALREADY_ASSIGNED: "the anonymous id is already merged with an identified user",
    Reason.ALIAS_EXISTS: "this alias was used already",
    Reason.TOO_MANY_IDS: "the merged person would have more ids than Mixpanel allows",
}

ADVICE: Final[Mapping[Reason, str]] = {
    Reason.SAME_IDS: (
        "Pass two different ids: the user's id, and the id used before log-in. If the visitor was tracked under the "
        "user's id from the start, no ids need joining. Remove the call."
    ),
    Reason.NOT_ANONYMOUS: (
        "Mixpanel merges an anonymous id only if it is a UUID, such as 3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d, or an id "
        "of its browser SDK: five groups of hexadecimal digits joined by dashes, with or without $device: in front. "
        "Track visitors under str(uuid.uuid4()), or under the id of the SDK. If this is the id of another user, call "
        "reset() in the SDK at log-out, before the next identify(). To join an id in another form, use alias (once per "
        "id) or merge, which accept any id."
    ),
    Reason.ALREADY_ASSIGNED: (
        "The anonymous id already belongs to another user, permanently. Generate a new anonymous id at log-out (call "
        "reset() in the browser SDK), so that the next user does not inherit it. If both users are the same person, "
        "call merge with the two user ids."
    ),
    Reason.ALIAS_EXISTS: (
        "An alias can be assigned only once. Call alias once, at sign-up. After that, use identify or plain events. If "
        "both ids belong to the same person, call merge with the two ids (Original ID Merge only)."
    ),
    Reason.TOO_MANY_IDS: (
        "A person can have at most 500 ids. The usual cause is a new anonymous id for every session or request. Keep "
        "the anonymous id in a cookie or on the device, and call identify only at log-in."
    ),
    Reason.NOT_IN_LEGACY: (
        "This project has no ID merge (Legacy), so only alias joins ids. Call alias once, at sign-up."
    ),
    Reason.NOT_IN_SIMPLIFIED: (
        "This project uses Simplified ID Merge, where $identify, $create_alias and $merge have no effect. To join a "
        "device and a user, send any one event with both $device_id and $user_id, as the browser and mobile SDKs do "
        "after identify()."
    ),
    Reason.NEEDS_IMPORT: (
        "Send $merge to /import, with the project secret or a service account as credentials. On /track it is only "
        "stored as an event and joins no ids."
    ),
    Reason.DEVICE_TAKEN: (
        "A device keeps its first user. Generate a new $device_id at log-out (call reset() in the browser SDK), so "
        "that the next user gets a new one. The event itself counts for its own $user_id."
    ),
    Reason.INVALID_ID: "Send both ids as text that is not empty.",
    Reason.REFUSED: "Read $failure_description of the event in Mixpanel.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityResult:
    """Result of an identity call, or of a device link in Simplified.

    Args:
        outcome: `merged`, `unchanged` (accepted, but the ids were one person already), `failed` (refused by Mixpanel),
            or `ignored` (no effect in this system).
        reason: reason why no ids were joined, or None.
        description: the reason as a short sentence without its first capital, or an empty string.
        kept: canonical id after a merge, or None.
        absorbed: id that was canonical before the merge and no longer is, or None.
    """

    outcome: Outcome
    reason: Reason | None = None
    description: str = ""
    kept: str | None = None
    absorbed: str | None = None

    @property
    def joined(self) -> bool:
        """Whether the call joined ids that were two people before."""
        return self.outcome == "merged"

    @property
    def failure_code(self) -> str | None:
        """Mixpanel's `$failure_reason` of a refused call, or None."""
        code = None if self.reason is None else self.reason.value
        return code if code is not None and code.startswith("err") else None

    @property
    def advice(self) -> str:
        """Advice for a call that joined nothing, in one or more sentences; empty if nothing is wrong."""
        return "" if self.reason is None else ADVICE.get(self.reason, "")


UNCHANGED: Final = IdentityResult(outcome="unchanged", reason=Reason.ALREADY_ONE_PERSON, description="")
ORDINARY: Final = IdentityResult(
    outcome="ignored", reason=Reason.ORDINARY_EVENT, description="an ordinary event, which joins no ids"
)


_FAILED: Final = {
    reason: IdentityResult(outcome="failed", reason=reason, description=description)
    for reason, description in DESCRIPTIONS.items()
}


def failed_result(reason: Reason) -> IdentityResult:
    """Return the result of a call that Mixpanel refuses with one of its codes."""
    return _FAILED[reason]


def ignored_result(reason: Reason, description: str) -> IdentityResult:
    """Return the result of an identity call that has no effect in this project."""
    return IdentityResult(outcome="ignored", reason=reason, description=description)


def recorded_result(reason: Reason, description: str = "") -> IdentityResult:
    """Return the result of a call that Mixpanel has marked as refused.

    Args:
        reason: reason of the `$failure_reason`.
        description: value of `$failure_description`, for a reason that this version does not know.
    """
    if reason in DESCRIPTIONS:
        return failed_result(reason)
    return IdentityResult(outcome="failed", reason=reason, description=description or "Mixpanel refused the call")
