"""What every test stands on: both event loops, a scrubbed environment, and the conservation law."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import pytest

from mixpanel_async import AsyncMixpanel


@pytest.fixture(params=[("asyncio", {"debug": True}), ("trio", {})], ids=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no setting of the machine's own may reach a test."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("MIXPANEL_", "SSL_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def conservation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At the end of every test each client accounts for each record that it accepted."""
    # The queues and not the clients, so that a test can see a client dropped.
    queues: list[Any] = []
    make = AsyncMixpanel.__init__

    @functools.wraps(make)
    def make_and_note(self: AsyncMixpanel, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        queues.append(self._queue)

    monkeypatch.setattr(AsyncMixpanel, "__init__", make_and_note)
    yield
    for queue in queues:
        stats = queue.stats()
        assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending
        assert sum(stats.losses.values()) == stats.failed + stats.dropped + stats.uncertain
        assert stats.pending >= 0
        assert (stats.pending == 0) == (stats.pending_bytes == 0)
