"""Fixtures for all tests: both event loops, a clean environment, and a check of the accounting."""

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
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove proxies and settings of the machine from the environment."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("MIXPANEL_", "SSL_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def check_accounting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check at the end of a test that each client accounts for every accepted record."""
    # Keep queues rather than clients, because some tests check that a client is garbage-collected.
    queues: list[Any] = []
    init = AsyncMixpanel.__init__

    @functools.wraps(init)
    def init_and_collect(self: AsyncMixpanel, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        queues.append(self._queue)

    monkeypatch.setattr(AsyncMixpanel, "__init__", init_and_collect)
    yield
    for queue in queues:
        stats = queue.stats()
        assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending
        assert sum(stats.losses.values()) == stats.failed + stats.dropped + stats.uncertain
        assert stats.pending >= 0
        assert (stats.pending == 0) == (stats.pending_bytes == 0)
