"""Hostile and invalid arguments, and errors that must not repeat them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BatchPolicy,
    Overflow,
    QueueFullError,
    RateLimitError,
    RetryPolicy,
    TransportError,
    ValidationError,
)
from mixpanel_async.emulator import Emulator


@pytest.mark.anyio
async def test_error_does_not_repeat_a_response_that_is_not_http() -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"Authorization Basic canary\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        origin = f"http://127.0.0.1:{port}"
        async with AsyncMixpanel("token", api_host=origin, identity_retry=RetryPolicy(attempts=1)) as mp:
            with pytest.raises(TransportError, match="not HTTP") as caught:
                await mp.alias("new", "old")
        tasks.cancel_scope.cancel()
    assert "canary" not in f"{caught.value!r} {caught.value} {mp.stats()}"


@pytest.mark.parametrize(
    "error",
    [
        TransportError("m", endpoint="/track", attempts=2, uncertain=True),
        RateLimitError("m", endpoint="/track", attempts=2, status=429, retry_after=3.0),
        ApiError("m", endpoint="/track", attempts=2, status=500),
        QueueFullError(1, 2),
        ValidationError("a.b", "is odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling_and_copying(error: Exception) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("timeout", [float("nan"), -1, "1", True])
@pytest.mark.anyio
async def test_flush_rejects_an_invalid_timeout(timeout: Any) -> None:
    async with Emulator().client() as mp:
        with pytest.raises(ValidationError, match="timeout"):
            await mp.flush(timeout)
        assert (await mp.flush(10**400)).pending == 0


class Hostile:
    """Object that claims every attribute and raises on every access."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("canary")

    def __bool__(self) -> bool:
        raise RuntimeError("canary")

    def __iter__(self) -> Any:
        raise RuntimeError("canary")


HOSTILE: dict[str, Callable[[], Any]] = {
    "hostile": Hostile,
    "mocked text": lambda: Mock(spec=str),
    "mocked mapping": lambda: Mock(spec=dict),
    "list": lambda: [Hostile()],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.anyio
async def test_hostile_arguments_raise_validation_errors(name: str) -> None:
    value = HOSTILE[name]()
    emulator = Emulator()
    async with emulator.client() as mp:
        bound = mp.bind(distinct_id="user", properties={"a": 1}, ip="203.0.113.9")
        calls: list[Callable[[], Any]] = [
            lambda: mp.track(value, "Event"),
            lambda: mp.track("user", value),
            lambda: mp.track("user", "Event", {"a": Hostile()}),
            lambda: mp.track("user", "Event", None, value),
            lambda: mp.track("user", "Event", time=value),
            lambda: mp.people_unset("user", value),
            lambda: mp.people_set("user", {"a": Hostile()}),
            lambda: mp.people_track_charge("user", value),
            lambda: mp.group_update(value),
            lambda: mp.alias(value, "x"),
            lambda: bound.people_update(value),
        ]
        for call in calls:
            with pytest.raises(ValidationError) as caught:
                await call()
            assert "canary" not in str(caught.value)
    assert emulator.requests() == []


@pytest.mark.anyio
async def test_record_larger_than_the_queue_is_rejected_at_once() -> None:
    policy = BatchPolicy(max_pending_bytes=1_000, wait_timeout=3600.0)
    async with Emulator().client(batching=policy, overflow=Overflow.WAIT) as mp:
        with pytest.raises(QueueFullError), anyio.fail_after(5):
            await mp.track("user", "Event", {"text": "x" * 2_000})
