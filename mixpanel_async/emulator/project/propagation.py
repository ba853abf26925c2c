"""Delay until reports apply a new mapping between ids.

Mixpanel accepts a mapping at once, shows it on the profile within a minute, and applies it in reports up to 24 hours
later (its pages on identity management, read 2026-08-21). An app that reads its own events back must tolerate this.

Pure: the clock is passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mixpanel_async.identity.systems import Identities, Link


class DelayedIdentities:
    """Identities as reports see them.

    Args:
        live: current identities of the project.
        new_identities: creates empty identities of the same system.
        delay: seconds from the arrival of a link until reports apply it, at least 0.
        now: clock that returns seconds since the epoch.
    """

    def __init__(
        self, live: Identities, new_identities: Callable[[], Identities], delay: float, now: Callable[[], float]
    ) -> None:
        self._visible = new_identities() if delay > 0 else live
        self._delay = delay
        self._now = now
        self._pending: deque[tuple[float, Link]] = deque()

    def add(self, at: float, link: Link) -> None:
        """Add a link that the project accepted at this time."""
        if self._delay > 0:
            self._pending.append((at, link))

    def identities(self) -> Identities:
        """Return the identities that reports see now. Links become visible in order of arrival."""
        visible_until = self._now() - self._delay
        while self._pending and self._pending[0][0] <= visible_until:
            self._visible.restore_link(self._pending.popleft()[1])
        return self._visible
