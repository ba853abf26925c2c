"""What an adversary tried: cut-off loops, re-entrant calls, forks, slow callbacks, busy threads, hostile values."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import pickle
import signal
import sys
import threading
import tracemalloc
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    DropReason,
    IdMerge,
    LostRecord,
    Overflow,
    QueueFullError,
    RateLimitError,
    RetryPolicy,
    TransportError,
    ValidationError,
)
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async.emulator import Emulator

AT_ONCE = RetryPolicy(initial=0.0, maximum=0.0)
LINGERING = BatchPolicy(linger=3600.0)


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("kind", ["track", "people", "immediate"])
def test_a_loop_that_ends_at_any_step_leaves_no_lease_behind(ticks: int, kind: str) -> None:
    emulator = Emulator()
    mp = emulator.client(retry=AT_ONCE, batching=BatchPolicy(linger=0.0))

    async def send(number: int) -> None:
        if kind == "track":
            await mp.track("user", "Event", {"number": number})
        elif kind == "people":
            await mp.people_set("user", {"number": number})
        else:
            await mp.track_immediate("user", "Event", {"number": number})

    async def first() -> None:
        task = asyncio.ensure_future(send(0))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()

    async def second() -> None:
        for number in range(1, 4):
            await send(number)
        await mp.aclose()

    asyncio.run(first())
    asyncio.run(second())
    stats = mp.stats()
    assert (stats.pending, stats.in_flight) == (0, 0)
    assert stats.delivered >= 3
    if kind == "people":
        assert (emulator.profile("user") or {})["number"] == 3


@pytest.mark.parametrize("ticks", range(6))
def test_a_loop_that_is_dropped_without_being_cancelled_leaves_no_lease_behind(ticks: int) -> None:
    emulator = Emulator()
    mp = emulator.client(retry=AT_ONCE, batching=BatchPolicy(linger=0.0))

    async def first() -> None:
        await mp.people_set("user", {"number": 0})
        for _ in range(ticks):
            await asyncio.sleep(0)

    async def second() -> None:
        await mp.people_set("user", {"number": 1})
        await mp.aclose()

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(first())
    tasks = asyncio.all_tasks(loop)
    asyncio.run(second())
    assert mp.stats().delivered == 2
    assert (emulator.profile("user") or {})["number"] == 1
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    assert mp.stats().delivered == 2


def test_a_loop_whose_every_task_is_cancelled_can_still_be_closed_in() -> None:
    emulator = Emulator()

    async def main() -> None:
        mp = emulator.client(batching=BatchPolicy(linger=0.0), retry=AT_ONCE)
        await mp.people_set("user", {"a": 1})
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await mp.people_set("user", {"b": 1})
        assert (await mp.aclose()).pending == 0
        assert mp.stats().delivered == 2

    asyncio.run(main())
    assert emulator.profile("user") is not None


with_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no interval timers here")


@contextlib.contextmanager
def alarms(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have this called whenever a timer that the block sets runs out."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@with_timers
def test_a_signal_handler_that_tracks_corrupts_nothing() -> None:
    emulator = Emulator()
    mp = emulator.client()
    handled = 0

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        with contextlib.suppress(ClientClosedError):
            mp.track_nowait("signal", "Signal")

    async def main() -> None:
        async with mp:
            for _ in range(30_000):
                await mp.track("user", "Event")

    with alarms(handler):
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        asyncio.run(main())
    stats = mp.stats()
    assert handled
    assert stats.pending == 0
    # A signal that arrives within one of the client's own requests while it closes is counted instead of refused.
    assert stats.delivered == stats.accepted - stats.losses.get("closed", 0) == len(emulator.events())
    assert set(stats.losses) <= {"closed"}


@with_timers
@pytest.mark.parametrize("is_closing", [True, False])
def test_signals_upon_signals_are_all_counted(*, is_closing: bool) -> None:
    """They come faster than they are handled, within a request, where a closed client counts what it cannot take."""
    emulator = Emulator()
    handled = depth = 0

    def more() -> None:
        if handled < 500:
            signal.setitimer(signal.ITIMER_REAL, 0.00002)

    def handler(number: int, frame: object) -> None:
        nonlocal handled, depth
        handled += 1
        depth += 1
        if depth < 4:
            more()
        mp.track_nowait("signal", "Signal")
        depth -= 1
        if depth == 3:
            more()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while handled < 500:
            more()
        await emulator.app(scope, receive, send)

    mp = AsyncMixpanel(
        "token",
        http_client=asgi_client(app),
        batching=BatchPolicy(linger=3600.0),
        before_send=lambda message: message if is_closing or message["event"] != "Signal" else None,
    )

    async def main() -> None:
        await mp.track("user", "Event")
        if not is_closing:
            await mp.flush()
        await mp.aclose()

    with alarms(handler):
        asyncio.run(main())
    stats = mp.stats()
    assert (handled, stats.accepted, stats.delivered) == (500, 501, 1)
    assert stats.losses == {"closed" if is_closing else "before_send": 500}


@with_timers
def test_statistics_that_a_signal_interrupts_add_up() -> None:
    emulator = Emulator()
    mp = emulator.client(
        batching=BatchPolicy(linger=3600.0),
        before_send=lambda message: None if message["properties"]["number"] % 2 else message,
    )
    handled = 0

    def more() -> None:
        if handled < 1_000:
            signal.setitimer(signal.ITIMER_REAL, 0.00005)

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        mp.track_nowait("signal", "Signal", {"number": handled})
        more()

    async def main() -> None:
        more()
        tracked = 0
        while handled < 1_000:
            before = handled
            await mp.track("user", "Event", {"number": 2})
            tracked += 1
            stats = mp.stats()
            assert stats.accepted == stats.dropped + stats.pending
            assert stats.losses.get("before_send", 0) == stats.dropped
            assert tracked + before <= stats.accepted <= tracked + handled
        await mp.aclose()

    with alarms(handler):
        asyncio.run(main())


@pytest.mark.anyio
async def test_what_a_hook_tracks_while_the_client_closes_breaks_off_no_request() -> None:
    emulator = Emulator()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        mp.track_nowait("hook", "Of the hook")
        await emulator.app(scope, receive, send)

    mp = AsyncMixpanel(
        "token",
        http_client=asgi_client(app),
        batching=BatchPolicy(linger=3600.0),
        before_send=lambda message: None if message["event"] == "Of the hook" else message,
    )
    await mp.track("user", "Event")
    assert (await mp.aclose()).delivered == 1
    assert mp.stats().losses == {"before_send": 1}


@pytest.mark.anyio
async def test_a_log_handler_that_tracks_does_not_recurse(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    mp = emulator.client(batching=BatchPolicy(max_pending_events=1, linger=3600.0))

    class Tracking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(ClientClosedError):
                mp.track_nowait("log", "Logged")

    handler = Tracking()
    logger = logging.getLogger("mixpanel_async")
    logger.addHandler(handler)
    try:
        for _ in range(10):
            mp.track_nowait("user", "Event")
        await mp.aclose()
    finally:
        logger.removeHandler(handler)
    await mp.aclose()
    assert mp.stats().losses["queue_full"] >= 9


@pytest.mark.anyio
async def test_closing_wakes_those_who_flush_and_those_who_wait_for_room() -> None:
    emulator = Emulator()
    emulator.fail_next(503, retry_after=300)
    policy = BatchPolicy(max_pending_events=1, linger=0.0, wait_timeout=3600.0)
    mp = emulator.client(batching=policy, overflow=Overflow.WAIT, shutdown_timeout=0.05)
    refused: list[type[Exception]] = []

    async def wait_for_room() -> None:
        try:
            await mp.track("user", "Second")
        except ClientClosedError as error:
            refused.append(type(error))

    await mp.track("user", "First")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.flush, 3600.0)
            tasks.start_soon(wait_for_room)
            while not mp.stats().retries and not emulator.requests():
                await anyio.lowlevel.checkpoint()
            await mp.aclose()
    assert refused == [ClientClosedError]


@pytest.mark.anyio
async def test_flushing_again_and_again_in_an_outage_costs_nothing() -> None:
    emulator = Emulator()
    emulator.fail_next(503, retry_after=300)
    async with emulator.client(shutdown_timeout=0.05) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        for _ in range(2_000):
            await mp.track("user", "Event")
            await mp.flush(timeout=0)
        batches = [batch for lane in mp._queue._buffer.active for batch in lane.batches()]
        assert len(batches) <= 3
        assert not [batch for batch in batches if batch.barriers]


@pytest.mark.anyio
@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
async def test_flushing_again_and_again_lets_others_run_and_heaps_up_nothing(is_closed: bool) -> None:
    emulator = Emulator()
    emulator.fail_next(503, retry_after=300)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with emulator.client(shutdown_timeout=0.05) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        if is_closed:
            await mp.aclose()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            tracemalloc.start()
            try:
                for _ in range(500):
                    await mp.flush(timeout=5)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            tasks.cancel_scope.cancel()
    assert turns >= 499
    assert held <= 128 * 1024


@pytest.mark.anyio
async def test_losses_that_wait_for_a_slow_callback_are_bounded_and_all_told() -> None:
    told = 0
    calls = 0
    release = threading.Event()

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        nonlocal told, calls
        release.wait(10)
        told += len(records)
        calls += 1

    mp = Emulator().client(batching=BatchPolicy(max_pending_events=1, linger=3600.0), on_drop=on_drop)
    await mp.track("user", "Kept")
    for _ in range(300):
        mp.track_nowait("user", "Lost", {"text": "x" * 200_000})
    kept = sum(len(item) for entry in mp._queue.callbacks._pending for item in getattr(entry, "items", ()))
    assert kept <= 16 * 1024 * 1024
    release.set()
    await mp.aclose()
    assert told == 300
    assert calls <= 5


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError])
@pytest.mark.anyio
async def test_a_callback_that_raises_anything_stops_nothing(error: type[BaseException]) -> None:
    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        raise error

    emulator = Emulator()
    emulator.fail_next(400, body=b'{"error":"no"}')
    async with emulator.client(on_drop=on_drop) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        await mp.track("user", "Event")
        assert (await mp.flush()).delivered == 1


def test_a_close_that_was_cut_short_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    emulator.latency = 3600.0

    async def main() -> None:
        mp = emulator.client(timeout=3600.0, shutdown_timeout=3600.0)
        await mp.track("user", "Event")
        with anyio.move_on_after(0.05):
            closing = asyncio.ensure_future(mp.aclose())
            await asyncio.shield(closing)
        closing.cancel()

    with pytest.warns(ResourceWarning, match="1 records"):
        asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_records_alone() -> None:
    emulator = Emulator()

    async def main(mp: AsyncMixpanel, name: str) -> None:
        await mp.track("user", name)
        await mp.aclose()

    with emulator.serve() as server:
        mp = AsyncMixpanel("token", api_host=server.url, batching=LINGERING)

        async def begin() -> None:
            await mp.people_increment("user", {"visits": 1})

        asyncio.run(begin())
        child = os.fork()
        if not child:
            status = 1
            try:
                asyncio.run(main(mp, "Child"))
                status = 0 if mp.stats().delivered == mp.stats().accepted == 1 else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        asyncio.run(main(mp, "Parent"))
    assert os.waitstatus_to_exitcode(status) == 0
    assert (emulator.profile("user") or {})["visits"] == 1
    assert {event["event"] for event in emulator.events()} == {"Child", "Parent"}


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_while_it_backs_off_sends_nothing_more() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(503, times=5)
    slow = RetryPolicy(attempts=5, initial=0.2, maximum=0.2)
    async with emulator.client(identity_retry=slow) as mp, anyio.create_task_group() as tasks:
        tasks.start_soon(mp.alias, "new", "old")
        while not emulator.requests():
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(emulator.requests()) == 1


@pytest.mark.anyio
async def test_an_application_that_keeps_every_thread_busy_does_not_stop_delivery() -> None:
    emulator = Emulator()
    release = threading.Event()

    def hold() -> None:
        release.wait()

    anyio.to_thread.current_default_thread_limiter().total_tokens = 2
    with emulator.serve() as server:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(anyio.to_thread.run_sync, hold)
            async with AsyncMixpanel("token", api_host=server.url) as mp:
                await mp.alias("new", "old")
                for _ in range(100):
                    await mp.track("user", "Event", {"text": "x" * 20_000})
                assert (await mp.flush()).delivered == 100
            release.set()


@pytest.mark.anyio
async def test_one_bad_update_costs_one_update() -> None:
    emulator = Emulator()

    def answer(request: httpx.Request) -> httpx.Response:
        bad = b'"bad"' in request.content
        return httpx.Response(200, json={"status": 0, "error": "no"} if bad else {"status": 1, "error": None})

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with emulator.client(http_client=http_client, batching=LINGERING) as mp:
        for number in range(20):
            await mp.people_increment("user", {"bad" if number == 7 else "good": 1})
        result = await mp.flush()
    assert (result.delivered, result.losses) == (19, {"rejected": 1})


@pytest.mark.anyio
async def test_what_is_not_http_is_not_repeated_in_an_error() -> None:
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


@pytest.mark.anyio
async def test_an_awaited_call_under_way_is_waited_for_by_close() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.latency = 0.05
    mp = emulator.client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mp.alias, "new", "old")
        while not emulator.requests():
            await anyio.lowlevel.checkpoint()
        await mp.aclose()
    assert emulator.cluster("new") == {"new", "old"}


@pytest.mark.parametrize("timeout", [float("nan"), -1, "1", True])
@pytest.mark.anyio
async def test_a_time_that_is_none_is_refused_by_flush(timeout: Any) -> None:
    async with Emulator().client() as mp:
        with pytest.raises(ValidationError, match="timeout"):
            await mp.flush(timeout)
        assert (await mp.flush(10**400)).pending == 0


class Hostile:
    """Looks like anything and fails at everything."""

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
async def test_hostile_arguments_are_refused_in_the_familys_own_words(name: str) -> None:
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
async def test_a_record_that_can_never_fit_is_not_waited_for() -> None:
    policy = BatchPolicy(max_pending_bytes=1_000, wait_timeout=3600.0)
    async with Emulator().client(batching=policy, overflow=Overflow.WAIT) as mp:
        with pytest.raises(QueueFullError), anyio.fail_after(5):
            await mp.track("user", "Event", {"text": "x" * 2_000})


@pytest.mark.anyio
async def test_a_closed_http_client_of_the_users_is_not_taken_for_a_lost_answer() -> None:
    http_client = httpx.AsyncClient()
    await http_client.aclose()
    mp = Emulator().client(http_client=http_client, shutdown_timeout=0.05)
    await mp.people_increment("user", {"visits": 1})
    await mp.aclose()
    assert mp.stats().losses == {"closed": 1}


def test_trio_that_another_thread_is_importing_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    half = types.ModuleType("trio")
    monkeypatch.setitem(sys.modules, "trio", half)
    monkeypatch.setitem(sys.modules, "trio.lowlevel", types.ModuleType("trio.lowlevel"))

    async def main() -> None:
        async with emulator.client() as mp:
            await mp.track("user", "Event")

    asyncio.run(main())
    assert len(emulator.events("Event")) == 1
