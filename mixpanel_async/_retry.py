"""How long to wait before another try."""

from __future__ import annotations

from typing import Final

from ._config import RetryPolicy

_MOST_DOUBLINGS: Final = 60
# Spread added to a wait that Mixpanel asked for, so that a fleet told "60" does not come back as one.
_SPREAD: Final = 0.25
PROBE_AFTER: Final = 60.0
"""Ceiling in seconds between probes while Mixpanel refuses the credentials or the path."""


def backoff(policy: RetryPolicy, failures: int, retry_after: float | None, draw: float) -> float:
    """Seconds until the next try, with full jitter.

    Args:
        policy: gives the ceiling.
        failures: tries that failed in a row, at least 1.
        retry_after: what Mixpanel asked for, which is never undercut.
        draw: an even draw from 0 to 1.
    """
    ceiling = min(policy.maximum, policy.initial * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
    own = ceiling * draw
    if retry_after is None:
        return own
    return max(own, retry_after) + draw * max(_SPREAD * retry_after, min(ceiling, 1.0))
