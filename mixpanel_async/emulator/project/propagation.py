"""What reports know of identities: less than the project does, for a while.

A true Mixpanel takes a mapping at once, shows it on the profile within a minute and in reports up to 24 hours later
(its pages on identity management, read 2026-08-21). An app that reads its own events back must not rely on less.

Pure: it reads the clock that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .identity import Identities, Link


class DelayedIdentities:
    """Identities as reports see them.

    Args:
        live: what the project knows.
        empty: makes identities of the same system that know nothing.
        delay: seconds from a link's arrival until reports know it, 0 or more.
        now: the clock, in seconds.
    """

    def __init__(
        self, live: Identities, new_identities: Callable[[], Identities], delay: float, now: Callable[[], float]
    ) -> None:
        self._visible = new_identities() if delay > 0 else live
        self._delay = delay
        self._now = now
        self._pending: deque[tuple[float, Link]] = deque()

    def add(self, at: float, link: Link) -> None:
        """A link that the project took at this time."""
        if self._delay > 0:
            self._pending.append((at, link))

    def identities(self) -> Identities:
        """What reports know now. In order: a link is not known before those that came earlier."""
        settled = self._now() - self._delay
        while self._pending and self._pending[0][0] <= settled:
            self._visible.restore_link(self._pending.popleft()[1])
        return self._visible
