"""What to do about an identity call that joined nobody, in words for somebody who has not read Mixpanel's pages.

Sources: Mixpanel's pages on identity management (https://docs.mixpanel.com/docs/tracking-methods/id-management, read
2026-08-21).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .identity import IDENTIFY, MERGE, VERBS

_BY_REASON: Final[Mapping[str, str]] = {
    "errSameIDs": (
        "Pass two different ids: the user's own id, and the id that the visitor had before. If the visitor was tracked "
        "under the user's id from the start, there is nothing to join and the call can go."
    ),
    "errAnonDistinctIdNonGUIDForm": (
        "Mixpanel merges an anonymous id only if it is a UUID version 4 with dashes, such as "
        "3f2b8c1e-9d4a-4b7e-8c1d-2a5e6f7b8c9d. Track visitors under str(uuid.uuid4()), or crypto.randomUUID() in the "
        "browser. To join an id of another form, use alias (once for each id) or merge, which take any."
    ),
    "errAnonDistinctIdAssignedAlready": (
        "The anonymous id is taken for good: a device keeps its first user. Make a new anonymous id when somebody logs "
        "out (reset() in the browser SDK), so that the next user does not inherit it. If both are truly one person, "
        "call merge with the two user ids."
    ),
    "errAliasAlreadyExists": (
        "An alias can be given once, and never again. Call alias a single time, at sign-up, and identify or plain "
        "events after that. If both are truly one person, call merge with the two ids (Original ID Merge only)."
    ),
    "errManyIDs": (
        "The person is full: Mixpanel allows 500 ids. This comes from a new anonymous id for every session or request. "
        "Keep the id in a cookie or on the device, and identify at log-in only."
    ),
}
_SIMPLIFIED: Final = (
    "This project uses Simplified ID Merge, where $identify, $create_alias and $merge do nothing. To join a device and "
    "a user, send any one event with both $device_id and $user_id. If your production project uses Original ID Merge, "
    "start the emulator with --id-merge original."
)
_LEGACY: Final = (
    "This project has no ID merge (Legacy), where only alias joins ids. Call alias once, at sign-up. If your "
    "production project uses Original ID Merge, start the emulator with --id-merge original."
)
_MERGE_NEEDS_IMPORT: Final = (
    "Send $merge to /import, with credentials: the project secret or a service account. On /track it is stored as an "
    "event and joins nobody."
)
_DEVICE_TAKEN: Final = (
    "A device keeps its first user. Make a new $device_id when somebody logs out (reset() in the browser SDK), so that "
    "the next user on it starts afresh. The event itself counts for its own $user_id."
)


def hint(name: str, outcome: str, reason: str | None, description: str) -> str | None:
    """What the outcome of an identity call means for the caller and what to do about it; None if all is well.

    Args:
        name: the identity verb, or the event that carried a device and a user.
        outcome: what came of it: `merged`, `unchanged`, `failed` or `ignored`.
        reason: Mixpanel's code, or None.
        description: the same in words.
    """
    if outcome in {"merged", "unchanged"}:
        return None
    if reason is not None:
        return _BY_REASON.get(reason)
    if name not in VERBS:
        return _DEVICE_TAKEN
    if name == MERGE and "/import" in description:
        return _MERGE_NEEDS_IMPORT
    if name in {IDENTIFY, MERGE} and "Legacy" in description:
        return _LEGACY
    return _SIMPLIFIED
