"""Hints for identity calls that joined no ids, written for developers who have not read Mixpanel's documentation.

Sources: Mixpanel's pages on identity management (https://docs.mixpanel.com/docs/tracking-methods/id-management, read
2026-08-21).
"""

from __future__ import annotations

from typing import Final

from mixpanel_async.identity.calls import IDENTIFY, MERGE, VERBS
from mixpanel_async.identity.results import ADVICE, DEVICE_TAKEN, Reason

_IF_ORIGINAL: Final = " If your production project uses Original ID Merge, start the emulator with --id-merge original."


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
        return ADVICE.get(Reason.of_code(reason))
    if name not in VERBS or description.startswith(DEVICE_TAKEN):
        return ADVICE[Reason.DEVICE_TAKEN]
    if name == MERGE and "/import" in description:
        return ADVICE[Reason.NEEDS_IMPORT]
    if name in {IDENTIFY, MERGE} and "Legacy" in description:
        return ADVICE[Reason.NOT_IN_LEGACY] + _IF_ORIGINAL
    return ADVICE[Reason.NOT_IN_SIMPLIFIED] + _IF_ORIGINAL
