"""Hints for identity calls that joined no ids, written for developers who have not read Mixpanel's documentation.

Sources: Mixpanel's pages on identity management (https://docs.mixpanel.com/docs/tracking-methods/id-management, read
2026-08-21).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .identity import DEVICE_TAKEN, IDENTIFY, MERGE, VERBS

_BY_REASON: Final[Mapping[str, str]] = {
    "errSameIDs": (
        "Pass two different ids: the user's id, and the id used before log-in. If the visitor was tracked under the "
        "user's id from the start, no ids need joining. Remove the call."
    ),
    "errAnonDistinctIdNonGUIDForm": (
        "Mixpanel merges an anonymous id only if it is a UUID, such as 3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d, or an id "
        "of its browser SDK: five groups of hexadecimal digits joined by dashes, with or without $device: in front. "
        "Track visitors under str(uuid.uuid4()), or under the id of the SDK. If this is the id of another user, call "
        "reset() in the SDK at log-out, before the next identify(). To join an id in another form, use alias (once per "
        "id) or merge, which accept any id."
    ),
    "errAnonDistinctIdAssignedAlready": (
        "The anonymous id already belongs to another user, permanently. Generate a new anonymous id at log-out (call "
        "reset() in the browser SDK), so that the next user does not inherit it. If both users are the same person, "
        "call merge with the two user ids."
    ),
    "errAliasAlreadyExists": (
        "An alias can be assigned only once. Call alias once, at sign-up. After that, use identify or plain events. If "
        "both ids belong to the same person, call merge with the two ids (Original ID Merge only)."
    ),
    "errManyIDs": (
        "A person can have at most 500 ids. The usual cause is a new anonymous id for every session or request. Keep "
        "the anonymous id in a cookie or on the device, and call identify only at log-in."
    ),
}
_SIMPLIFIED: Final = (
    "This project uses Simplified ID Merge, where $identify, $create_alias and $merge have no effect. To join a device "
    "and a user, send any one event with both $device_id and $user_id, as the browser and mobile SDKs do after "
    "identify(). If your production project uses Original ID Merge, start the emulator with --id-merge original."
)
_LEGACY: Final = (
    "This project has no ID merge (Legacy), so only alias joins ids. Call alias once, at sign-up. If your "
    "production project uses Original ID Merge, start the emulator with --id-merge original."
)
_MERGE_NEEDS_IMPORT: Final = (
    "Send $merge to /import, with the project secret or a service account as credentials. On /track it is only stored "
    "as an event and joins no ids."
)
_DEVICE_HAS_OTHER_USER: Final = (
    "A device keeps its first user. Generate a new $device_id at log-out (call reset() in the browser SDK), so that "
    "the next user gets a new one. The event itself counts for its own $user_id."
)


def hint(name: str, outcome: str, reason: str | None, description: str) -> str | None:
    """Return advice on a failed or ignored identity call; None if the call succeeded.

    Args:
        name: name of the identity call, or of the event with a device and a user.
        outcome: `merged`, `unchanged`, `failed` or `ignored`.
        reason: Mixpanel's failure code, or None.
        description: explanation of the outcome.
    """
    if outcome in {"merged", "unchanged"}:
        return None
    if reason is not None:
        return _BY_REASON.get(reason)
    if name not in VERBS or description.startswith(DEVICE_TAKEN):
        return _DEVICE_HAS_OTHER_USER
    if name == MERGE and "/import" in description:
        return _MERGE_NEEDS_IMPORT
    if name in {IDENTIFY, MERGE} and "Legacy" in description:
        return _LEGACY
    return _SIMPLIFIED
