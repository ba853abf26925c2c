"""Pauses that Mixpanel asked one worker for, and that hold for all workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._model.records import RecordKind


class Pauses:
    """Pauses by endpoint, until the outbox has them.

    Args:
        paths: path of the endpoint of each kind, without its query.
        on_added: called when there is a pause to share.
    """

    def __init__(self, paths: Mapping[RecordKind, str], on_added: Callable[[], None]) -> None:
        self._paths = paths
        self._on_added = on_added
        self._seconds: dict[str, float] = {}

    def add(self, kind: RecordKind, seconds: float) -> None:
        """Note that requests of this kind have to pause."""
        path = self._paths[kind]
        self._seconds[path] = max(self._seconds.get(path, 0.0), seconds)
        self._on_added()

    def take(self) -> dict[str, float]:
        """Return the pauses since the last call, in seconds, by path of the endpoint."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def kinds_of(self, path: str) -> list[RecordKind]:
        """Return the kinds that are sent to an endpoint."""
        return [kind for kind, other in self._paths.items() if other == path]
