"""The engine in memory behaves as every engine does, on asyncio and on trio."""

from __future__ import annotations

from typing import Any

import pytest
from conformance import WRONG_OPTIONS, Conformance

from mixpanel_async import ConfigurationError
from mixpanel_async.outbox import MemoryOutbox

pytestmark = pytest.mark.anyio


class MemoryEngine:
    def __init__(self) -> None:
        self._now = 1_000_000.0

    def outbox(self, **options: Any) -> MemoryOutbox:
        return MemoryOutbox(clock=lambda: self._now, **options)

    async def pass_lease_time(self) -> None:
        self._now += 15.001


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


class TestMemoryOutbox(Conformance):
    pass


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS)
def test_wrong_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        MemoryOutbox(**options)


@pytest.mark.parametrize("kinds", ["events", [], ["events", "dogs"]])
def test_wrong_kinds_are_refused(kinds: Any) -> None:
    with pytest.raises(ConfigurationError, match="kinds"):
        MemoryOutbox().inbox("token", "w", kinds=kinds)
