"""The engine in Redis behaves as every engine does."""

from __future__ import annotations

from typing import Any

import pytest
from conformance import WRONG_OPTIONS, Conformance
from redis_server import RedisServer

from mixpanel_async import ConfigurationError
from mixpanel_async.outbox import RedisOutbox
from mixpanel_async.outbox.redis_inbox import RedisInbox
from mixpanel_async.outbox.redis_writer import RedisWriter

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"debug": True})


class TrackedOutbox:
    """Outbox whose connections are closed at the end of a test."""

    def __init__(self, outbox: RedisOutbox, opened: list[Any]) -> None:
        self._outbox = outbox
        self._opened = opened

    confirm = compress = False

    def writer(self, token: str, producer: str | None = None) -> RedisWriter:
        writer = self._outbox.writer(token, producer)
        self._opened.append(writer)
        return writer

    def inbox(self, token: str, worker: str, **options: Any) -> RedisInbox:
        inbox = self._outbox.inbox(token, worker, **options)
        self._opened.append(inbox)
        return inbox


class RedisEngine:
    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.opened: list[Any] = []

    def outbox(self, **options: Any) -> TrackedOutbox:
        return TrackedOutbox(RedisOutbox(self._server.url, **options), self.opened)

    async def pass_lease_time(self) -> None:
        script = """
            for _, one in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, one) end
            local leases = redis.call('HGETALL', KEYS[2])
            for i = 1, #leases, 2 do
              redis.call('HSET', KEYS[2], leases[i], '1|' .. string.match(leases[i + 1], '|(.*)$'))
            end
        """
        answer = self._server.command("EVAL", script, "2", "{mixpanel}:workers", "{mixpanel}:leases")
        assert answer == b"$-1\r\n"


@pytest.fixture
async def engine(redis_server: RedisServer) -> Any:
    engine = RedisEngine(redis_server)
    yield engine
    for one in engine.opened:
        await one.aclose()


class TestRedisOutbox(Conformance):
    pass


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS)
def test_wrong_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RedisOutbox("redis://localhost", **options)
