"""Polling of definitions: a failed or invalid response never removes definitions that are in use."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import pairwise
from typing import Any

import anyio
import httpx
import pytest
import trio
import trio.testing
from flags_server import TOKEN, Server, definitions, flag, local, until
from simulated import client_in

from mixpanel_async import (
    AsyncMixpanel,
    ConfigurationError,
    ServiceAccountCredentials,
    ValidationError,
)
from mixpanel_async._runtime.environment import Environment
from mixpanel_async.flags import FallbackReason, FlagsUpdate, LocalFlags, RemoteFlags, SelectedVariant

pytestmark = pytest.mark.anyio

USER = {"distinct_id": "user-1"}
SECRET = "account-secret"
BOMB = gzip.compress(b" " * 50_000_000, 1)


def enabled(mp: AsyncMixpanel, key: str = "f") -> bool:
    return mp.local_flags.is_enabled(key, USER, report_exposure=False)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines of this package. httpx logs every request at level INFO."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("mixpanel_async")]


async def hang(request: httpx.Request) -> httpx.Response:
    await anyio.sleep(60)
    raise AssertionError(request)


class Endless(httpx.AsyncByteStream):
    """Response body that never ends."""

    def __init__(self, chunk: bytes, pause: float) -> None:
        self._chunk = chunk
        self._pause = pause

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await anyio.sleep(self._pause)
        return self._chunk


async def endless(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Endless(b"[" * 65536, 0))


async def drip(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Endless(b" ", 0.005))


def packed(body: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(body))


async def bomb(request: httpx.Request) -> httpx.Response:
    return packed(BOMB)


async def half_packed(request: httpx.Request) -> httpx.Response:
    return packed(gzip.compress(definitions(flag("f")))[:-20])


BAD: dict[str, Any] = {
    "empty": b"",
    "garbage": b"\xff\xfe\x00garbage",
    "page": b"<!doctype html><title>Sign in</title>",
    "null": b"null",
    "number": b"1",
    "list": b"[]",
    "object": b"{}",
    "flags are an object": b'{"flags": {}}',
    "flags are null": b'{"flags": null}',
    "flags are numbers": b'{"flags": [1]}',
    "a flag without a key": definitions(flag("f"), {"id": 1}),
    "every flag is malformed": b'{"flags": [{"key": "f"}]}',
    "cut": definitions(flag("f"))[:-5],
    "deep": b'{"flags": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep flag": b'{"flags": [{"key": "f", "ruleset": ' + b"[" * 2_000 + b"]" * 2_000 + b"}]}",
    "long number": b'{"flags": [' + b"9" * 10_000 + b"]}",
    "too large": b'{"flags": []}' + b" " * 3_000_000,
    "endless": endless,
    "drip": drip,
    "bomb": bomb,
    "half packed": half_packed,
    "401": 401,
    "403": 403,
    "404": 404,
    "429": 429,
    "500": 500,
    "503": 503,
    "204": httpx.Response(204),
    "304 unasked": httpx.Response(304),
    "redirect": httpx.Response(302, headers={"Location": "https://evil.test/flags/definitions"}),
    "no connection": httpx.ConnectError("refused"),
    "broken": httpx.ReadError("reset"),
    "not http": httpx.RemoteProtocolError(f"sent: {TOKEN}"),
    "time-out": httpx.ReadTimeout("slow"),
    "hang": hang,
    "a bug": RuntimeError(f"with {TOKEN}"),
}


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
async def test_failed_poll_keeps_current_definitions(reply: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    account = ServiceAccountCredentials("account", SECRET, "12345")
    server = Server()
    options = LocalFlags(poll_interval=0.01, timeout=0.2, max_bytes=1_000_000)
    async with local(server, [flag("f")], local_flags=options, credentials=account) as mp:
        server.says = reply
        is_slow = reply in {hang, drip}
        is_refused = reply in {401, 403, 404}
        await until(lambda: mp.stats().flags.failures >= (1 if is_slow or is_refused else 3))  # type: ignore[union-attr]
        assert enabled(mp)
        assert mp.local_flags.ready
        stats = mp.stats().flags
        assert stats is not None
        assert (stats.definitions, stats.updates) == (1, 1)
        assert stats.last_error is not None
        lines = logged(caplog)
        assert len(lines) == 1
        assert lines[0].startswith("flags: definitions could not be fetched (")
        assert lines[0].endswith("; the previous ones stay in use")
        texts = [caplog.text, stats.last_error, repr(mp), repr(mp.local_flags), repr(mp.stats())]
        for text in texts:
            for secret in (TOKEN, SECRET, "?", base64.b64encode(f"account:{SECRET}".encode()).decode()):
                assert secret not in text
        if not is_refused:
            server.says = definitions(flag("f"), flag("g"))
            await until(lambda: enabled(mp, "g"))
            await until(lambda: len(logged(caplog)) == 2)
            assert logged(caplog)[1] == "flags: definitions are up to date again"


@pytest.mark.parametrize(
    "reply",
    [500, 401, b"garbage", hang, httpx.ConnectError("refused")],
    ids=["500", "401", "garbage", "hang", "refused"],
)
async def test_ready_is_false_until_definitions_arrive(reply: Any) -> None:
    server = Server(reply)
    options = LocalFlags(poll_interval=0.01, timeout=0.05)
    async with AsyncMixpanel(TOKEN, http_client=server.client, local_flags=options) as mp:
        assert await mp.local_flags.wait_ready(0.1) is False
        assert not mp.local_flags.ready
        assert not mp.local_flags.are_flags_ready()
        found = mp.local_flags.get_variant("f", SelectedVariant("fb"), USER)
        assert found == SelectedVariant("fb").as_fallback(FallbackReason.flag_not_found())
        if reply != 401:
            server.says = definitions(flag("f"))
            assert await mp.local_flags.wait_ready(5) is True
            assert mp.local_flags.are_flags_ready()
            assert enabled(mp)


async def test_empty_list_removes_all_flags() -> None:
    server = Server()
    async with local(server, [flag("f")]) as mp:
        server.says = b'{"flags": []}'
        await until(lambda: not enabled(mp))
        assert mp.local_flags.ready
        assert mp.local_flags.get_all_variants(USER) == {}


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", None, True])
async def test_wait_ready_rejects_invalid_timeouts(timeout: Any) -> None:
    async with local(Server(), []) as mp:
        with pytest.raises(ValidationError, match="timeout"):
            await mp.local_flags.wait_ready(timeout)


@pytest.mark.parametrize("account", [None, ServiceAccountCredentials("account", SECRET, "12345")])
async def test_request_equals_that_of_the_official_sdk(account: ServiceAccountCredentials | None) -> None:
    server = Server()
    async with local(server, [], region="eu", credentials=account):
        request = server.requests[0]
        assert (request.method, request.url.host, request.url.path) == (
            "GET",
            "api-eu.mixpanel.com",
            "/flags/definitions",
        )
        query = dict(request.url.params)
        assert query.pop("lib_version")
        own = {"mp_lib": "python-async", "token": TOKEN}
        assert query == (own if account is None else own | {"project_id": "12345"})
        user = f"{TOKEN}:" if account is None else f"account:{SECRET}"
        assert request.headers["authorization"] == "Basic " + base64.b64encode(user.encode()).decode()
        version, trace, span, sampled = request.headers["traceparent"].split("-")
        assert (version, len(trace), len(span), sampled) == ("00", 32, 16, "01")
        assert int(trace, 16)
        assert int(span, 16)
        assert request.content == b""
        await server.asked()
        assert server.requests[1].headers["traceparent"] != request.headers["traceparent"]


async def test_etag_is_sent_back_and_304_accepted() -> None:
    server = Server()
    seen: list[str | None] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("if-none-match"))
        if seen[-1] == '"1"':
            return httpx.Response(304)
        return httpx.Response(200, content=definitions(flag("f")), headers={"ETag": '"1"'})

    server.says = answer
    async with local(server) as mp:
        await server.asked(3)
        assert enabled(mp)
        stats = mp.stats().flags
        assert stats is not None
        assert (stats.updates, stats.failures) == (1, 0)
        assert seen[:3] == [None, '"1"', '"1"']
        assert stats.age is not None
        assert stats.age < 5


@pytest.mark.parametrize("etag", ["\x7f", "x" * 5_000, "é"])
async def test_unusable_etag_is_not_sent_back(etag: str) -> None:
    headers = [(b"ETag", etag.encode())]
    server = Server(httpx.Response(200, headers=headers, content=definitions(flag("f"))))
    async with local(server) as mp:
        await server.asked(2)
        assert "if-none-match" not in server.requests[-1].headers
        assert mp.stats().flags.failures == 0  # type: ignore[union-attr]


async def test_compressed_response_is_accepted() -> None:
    server = Server()

    async def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "gzip"
        return packed(gzip.compress(definitions(flag("f"))))

    server.says = answer
    async with local(server) as mp:
        assert enabled(mp)


async def test_large_response_is_accepted() -> None:
    flags = [flag(f"flag-{number}", experiment_id="e" * 200) for number in range(2_000)]
    async with local(Server(), flags) as mp:
        assert len(mp.local_flags.get_all_variants(USER)) == 2_000


async def test_listeners_receive_changes_and_failures(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(500)
    updates: list[FlagsUpdate] = []

    def fails(update: FlagsUpdate) -> None:
        raise ValueError(update)

    mp = AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01))
    # Before the client starts, because the first response may arrive immediately.
    mp.local_flags.subscribe(fails)
    end = mp.local_flags.subscribe(updates.append)
    async with mp:
        await until(lambda: len(updates) == 1)
        server.says = definitions(flag("a"), flag("b"))
        await until(lambda: len(updates) == 3)
        server.says = definitions(flag("a"), flag("c"))
        await until(lambda: len(updates) == 4)
        server.says = 503
        await until(lambda: len(updates) == 5)
        server.says = definitions(flag("a"), flag("c"))
        await until(lambda: len(updates) == 6)
        end()
        end()
        server.says = definitions()
        await until(lambda: not enabled(mp, "a"))
    kinds = [(update.kind, sorted(update.keys), update.message) for update in updates]
    assert kinds == [
        ("failed", [], "HTTP 500"),
        ("ready", ["a", "b"], ""),
        ("recovered", [], ""),
        ("changed", ["b", "c"], ""),
        ("failed", [], "HTTP 503"),
        ("recovered", [], ""),
    ]
    assert "flags: a listener raised ValueError" in caplog.text


async def test_polling_without_interval_ends_after_first_success() -> None:
    server = Server(500)
    options = LocalFlags(poll_interval=None)
    async with AsyncMixpanel(TOKEN, http_client=server.client, local_flags=options) as mp:
        await until(lambda: mp.stats().flags.failures >= 2)  # type: ignore[union-attr]
        server.says = definitions(flag("f"))
        assert await mp.local_flags.wait_ready(5)
        polls = len(server.requests)
        for _ in range(20):
            assert enabled(mp)
            await anyio.lowlevel.checkpoint()
        assert await mp.local_flags.wait_ready()
        assert len(server.requests) == polls


@pytest.fixture
def no_leaks() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()


@pytest.mark.usefixtures("no_leaks")
async def test_close_ends_polling_but_not_evaluation() -> None:
    server = Server()
    async with local(server, [flag("f")]) as mp:
        pass
    polls = len(server.requests)
    for _ in range(5):
        assert enabled(mp)
        await anyio.sleep(0.01)
    assert len(server.requests) == polls
    assert mp.local_flags.get_variant("f", SelectedVariant(0), USER).variant_value is True
    assert mp.stats().flags.exposures_lost == 1  # type: ignore[union-attr]
    assert await mp.local_flags.wait_ready() is True


async def test_close_does_not_wait_for_a_hanging_fetch() -> None:
    server = Server(hang)
    waited: list[bool] = []
    mp = AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(), shutdown_timeout=20)

    async def wait() -> None:
        waited.append(await mp.local_flags.wait_ready(30))

    async with anyio.create_task_group() as tasks:
        await mp.start()
        tasks.start_soon(wait)
        await until(lambda: len(server.requests) == 1)
        started = time.monotonic()
        await mp.aclose()
        assert time.monotonic() - started < 10
    assert waited == [False]
    assert await mp.local_flags.wait_ready() is False


async def test_close_lets_a_short_fetch_finish() -> None:
    server = Server()
    release = anyio.Event()
    ended: list[bool] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        try:
            await release.wait()
            await anyio.sleep(0.01)
        except BaseException:
            ended.append(False)
            raise
        ended.append(True)
        return httpx.Response(200, content=b'{"flags": []}')

    server.says = answer
    async with AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags()) as mp:
        await until(lambda: len(server.requests) == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.aclose)
            await anyio.lowlevel.checkpoint()
            release.set()
    assert ended == [True]


async def test_two_clients_are_independent() -> None:
    async with local(Server(), [flag("a")]) as first, local(Server(), [flag("b")]) as second:
        assert (enabled(first, "a"), enabled(first, "b")) == (True, False)
        assert (enabled(second, "a"), enabled(second, "b")) == (False, True)


async def test_client_without_flag_options_has_no_providers() -> None:
    async with AsyncMixpanel(TOKEN, http_client=Server().client) as mp:
        with pytest.raises(ConfigurationError, match="local_flags"):
            _ = mp.local_flags
        with pytest.raises(ConfigurationError, match="remote_flags"):
            _ = mp.remote_flags
        assert mp.stats().flags is None


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (LocalFlags, {"poll_interval": 0}),
        (LocalFlags, {"poll_interval": math.nan}),
        (LocalFlags, {"poll_interval": "60"}),
        (LocalFlags, {"timeout": 0}),
        (LocalFlags, {"exposure_window": -1}),
        (LocalFlags, {"max_bytes": 1.5}),
        (LocalFlags, {"max_bytes": 1}),
        (RemoteFlags, {"timeout": -1}),
        (RemoteFlags, {"exposure_window": 1e9}),
        (RemoteFlags, {"max_bytes": 2**40}),
    ],
)
def test_options_out_of_bounds_are_rejected(make: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        make(**options)


def test_options_of_the_wrong_type_are_rejected() -> None:
    with pytest.raises(ConfigurationError, match="local_flags must be an instance of LocalFlags, not dict"):
        AsyncMixpanel(TOKEN, local_flags={})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="remote_flags"):
        AsyncMixpanel(TOKEN, remote_flags=LocalFlags())  # type: ignore[arg-type]


def test_missing_extra_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "json_logic", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[flags\]"'):
        AsyncMixpanel(TOKEN, local_flags=LocalFlags())
    AsyncMixpanel(TOKEN, remote_flags=RemoteFlags())
    monkeypatch.setitem(sys.modules, "json_logic", type(sys)("json_logic"))
    with pytest.raises(ImportError, match="panzi-json-logic"):
        AsyncMixpanel(TOKEN, local_flags=LocalFlags())


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_poll_interval_has_ten_percent_jitter(draw: float) -> None:
    at: list[float] = []

    async def answer(_: httpx.Request) -> httpx.Response:
        at.append(trio.current_time())
        return httpx.Response(200, content=definitions(flag("f")))

    async def main() -> None:
        runtime = Environment(
            wall_time=lambda: 1.7e9,
            monotonic=trio.current_time,
            random=lambda: draw,
            new_id=lambda: "0123456789abcdef" * 2,
        )
        server = Server(answer)
        async with client_in(runtime, TOKEN, http_client=server.client, local_flags=LocalFlags()) as mp:
            await trio.sleep(250)
            assert mp.local_flags.ready

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    apart = [later - earlier for earlier, later in pairwise(at)]
    assert len(at) in {4, 5}
    assert apart == pytest.approx([54 + 12 * draw] * len(apart))


@pytest.mark.parametrize(
    ("reply", "waits"),
    [
        (500, [1, 2, 4, 8, 16, 32, 60, 60]),
        (httpx.ConnectError("refused"), [1, 2, 4, 8, 16, 32, 60, 60]),
        (401, [60, 60]),
        (httpx.Response(503, headers={"Retry-After": "100"}), [100, 100]),
    ],
    ids=["500", "no connection", "401", "retry after"],
)
def test_failed_polls_back_off(reply: Any, waits: list[float]) -> None:
    at: list[float] = []

    async def answer(_: httpx.Request) -> httpx.Response:
        at.append(trio.current_time())
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply) if isinstance(reply, int) else httpx.Response(503, headers=reply.headers)

    async def main() -> None:
        runtime = Environment(
            wall_time=lambda: 1.7e9,
            monotonic=trio.current_time,
            random=lambda: 1.0,
            new_id=lambda: "0123456789abcdef" * 2,
        )
        async with client_in(runtime, TOKEN, http_client=Server(answer).client, local_flags=LocalFlags()):
            await trio.sleep(sum(waits) * 1.3)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    apart = [later - earlier for earlier, later in pairwise(at)]
    assert len(apart) >= len(waits)
    for found, least in zip(apart, waits, strict=False):
        assert least <= found <= least * 1.3


def run_in_separate_loops(*parts: Callable[[], Coroutine[Any, Any, None]]) -> None:
    for part in parts:
        asyncio.run(part())


def test_polling_continues_in_the_next_event_loop() -> None:
    server = Server(definitions(flag("f")))
    mp = AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01))

    async def first() -> None:
        # The evaluation alone starts the polling.
        assert not enabled(mp)
        await until(lambda: enabled(mp))

    async def second() -> None:
        assert enabled(mp)
        server.says = definitions(flag("g"))
        await until(lambda: enabled(mp, "g"))

    async def third() -> None:
        assert enabled(mp, "g")
        await server.asked(2)
        await mp.aclose()

    run_in_separate_loops(first, second, third)


def test_polling_continues_after_all_tasks_were_cancelled() -> None:
    server = Server()

    async def main() -> None:
        async with local(server, [flag("f")]) as mp:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.02)
            server.says = definitions(flag("g"))
            await until(lambda: enabled(mp, "g"))
            polls = len(server.requests)
            await server.asked(3)
            # Exactly one task polls.
            assert mp.stats().flags.polls >= polls + 3  # type: ignore[union-attr]
            names = [task.get_name() for task in asyncio.all_tasks()]
            assert names.count("mixpanel flags") == names.count("mixpanel sender") == 1

    asyncio.run(main())


def test_thread_without_event_loop_evaluates() -> None:
    server = Server(definitions(flag("f")))
    mp = AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01))
    assert not enabled(mp)

    async def main() -> None:
        async with mp:
            assert await mp.local_flags.wait_ready(5)
            found = await anyio.to_thread.run_sync(lambda: mp.local_flags.is_enabled("f", USER))
            assert found
            await mp.flush()
            assert [event["event"] for event in server.events] == ["$experiment_started"]

    asyncio.run(main())


def test_client_evaluates_in_a_second_event_loop() -> None:
    server = Server(definitions(flag("f")))

    async def main() -> None:
        async with local(server, [flag("f")]) as mp:

            async def elsewhere() -> bool:
                assert await mp.local_flags.wait_ready()
                return enabled(mp)

            assert await asyncio.to_thread(lambda: asyncio.run(elsewhere()))

    asyncio.run(main())


def test_dropped_client_stops_polling() -> None:
    server = Server(definitions(flag("f")))

    async def main() -> None:
        mp = AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01))
        assert await mp.local_flags.wait_ready(5)
        flags = mp.local_flags
        del mp
        gc.collect()
        await asyncio.sleep(0.05)
        polls = len(server.requests)
        await asyncio.sleep(0.05)
        assert len(server.requests) == polls
        assert flags.is_enabled("f", USER)
        assert await flags.wait_ready()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_evaluates_and_polls() -> None:
    server = Server(definitions(flag("f")))
    mp = AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01))

    async def parent() -> None:
        await mp.start()
        assert await mp.local_flags.wait_ready(5)

    async def child() -> None:
        assert enabled(mp)
        mp.track_nowait("user-1", "Forked")
        server.says = definitions(flag("g"))
        await until(lambda: enabled(mp, "g"))
        await mp.aclose()

    asyncio.run(parent())
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(child())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert enabled(mp)
    asyncio.run(mp.aclose())
