"""Clients on machines and behind servers with wrong clocks. Trio's mock clock makes the waiting take no time."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import anyio
import httpx
import pytest
import trio
import trio.testing
from simulated import client_in

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, ServiceAccountCredentials, SqliteSpool
from mixpanel_async._runtime.environment import Environment, real_environment

START = 1_790_000_000.0
HOUR = 3_600.0
DAY = 86_400.0
CORRECTED = "new events get the time of Mixpanel's clock"
TOO_MUCH = "too much to correct"
CONTRADICTION = "contradict each other"
# Attempts every hour: thousands of them in days of outage take time.
RARELY = RetryPolicy(initial=HOUR, maximum=HOUR)
REJECTED = {"code": 400, "error": "some data points in the request failed validation", "status": "Bad Request"}
OK = {"status": 1, "error": None}


class World:
    """True time, a machine with an error of its clock, and a server.

    Attributes:
        error: seconds that the machine's clock is ahead.
        asleep: seconds for which the machine was suspended, so that its monotonic clock stood still.
        status: of the responses.
        rejects_future: events more than an hour ahead are rejected, as by `/import`.
        headers: returns the headers of a response.
        during_request: is called before a response.
        sent: true time and decoded record of each record that the server received.
    """

    def __init__(self, clock: trio.testing.MockClock) -> None:
        # Not `trio.current_time`: the statistics are read after the end of the loop, too.
        self._clock = clock
        self.error = self.asleep = 0.0
        self.status = 200
        self.body: Any = OK
        self.requests = 0
        self.rejects_future = False
        self.headers: Callable[[], Mapping[str, str]] = lambda: {"Date": formatdate(self.true(), usegmt=True)}
        self.during_request: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.received: list[tuple[float, dict[str, Any]]] = []

    def true(self) -> float:
        return START + self._clock.current_time() + self.asleep

    def environment(self) -> Environment:
        return replace(
            real_environment(),
            wall_time=lambda: self.true() + self.error,
            monotonic=self._clock.current_time,
            random=lambda: 0.5,
        )

    def suspend(self, seconds: float) -> None:
        self.asleep += seconds

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        headers = self.headers()
        await self.during_request()
        if self.rejects_future:
            events = httpx.Response(200, headers=request.headers, content=request.content).json()
            if any(event["properties"]["time"] / 1000 > self.true() + HOUR for event in events):
                return httpx.Response(400, json=REJECTED, headers=headers)
        if self.status == 200:
            records = httpx.Response(200, headers=request.headers, content=request.content).json()
            self.received.extend((self.true(), record) for record in records)
        return httpx.Response(self.status, json=self.body, headers=headers)

    def client(self, **options: Any) -> AsyncMixpanel:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        return client_in(self.environment(), "t", http_client=http, timeout=60.0, **options)

    async def use(self, mp: AsyncMixpanel, times: int = 12, pause: float = 2.0) -> list[float]:
        """Track and deliver events. Return by how much the time of each is wrong."""
        errors = []
        for _ in range(times):
            await trio.sleep(pause)
            at = self.true()
            await mp.track("u", "e")
            await mp.flush(120.0)
            if self.received:
                errors.append(self.received[-1][1]["properties"]["time"] / 1000 - at)
        return errors


def run(body: Callable[[World], Awaitable[None]]) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(body, World(clock), clock=clock)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("side", [1, -1], ids=["ahead", "behind"])
@pytest.mark.parametrize("size", [30.0, 120.0, 2 * HOUR, 25 * HOUR, *(days * DAY for days in range(2, 11))])
def test_d12_wrong_clock_is_corrected_and_reported_once(
    side: int, size: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        world.error = side * size
        async with world.client() as mp:
            errors = await world.use(mp)
            assert errors[:4] == pytest.approx([side * size] * 4, abs=0.01)
            assert all(abs(error) <= 3.0 for error in errors[4:])
            before = world.true()
            await mp.people_set("u", {"a": 1})
            await mp.track_immediate("u", "direct")
            await mp.flush()
            records = [record for _, record in world.received]
            stamps = [record["$time"] for record in records if "$time" in record]
            stamps += [record["properties"]["time"] / 1000 for record in records if record.get("event") == "direct"]
            assert len(stamps) == 2
            assert all(abs(stamp - before) <= 3.0 for stamp in stamps)
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert CORRECTED in record.getMessage()
        assert ("ahead of" if side > 0 else "behind") in record.getMessage()
        data = record.mixpanel  # type: ignore[attr-defined]
        assert (data["event"], data["state"]) == ("clock_wrong", "corrected")
        assert abs(data["seconds"] - side * size) <= 3.0

    run(body)


def test_rejected_events_of_a_fast_clock_teach_the_correction() -> None:
    async def body(world: World) -> None:
        world.error, world.rejects_future = DAY, True
        async with world.client() as mp:
            await world.use(mp, 10)
            stats = mp.stats()
        assert (stats.losses, stats.delivered) == ({"rejected": 4}, 6)

    run(body)


@pytest.mark.parametrize("error", [-10 * DAY, -2 * HOUR, 0.0, 2 * HOUR, 10 * DAY])
def test_wrong_clock_does_not_change_the_wait_for_a_date(error: float) -> None:
    async def body(world: World) -> None:
        world.error = error
        async with world.client(retry=RetryPolicy(initial=0.01, maximum=0.01)) as mp:
            world.status = 503
            dates = {"Date": 0.0, "Retry-After": 100.0}
            world.headers = lambda: {
                name: formatdate(world.true() + seconds, usegmt=True) for name, seconds in dates.items()
            }
            await mp.track("u", "e")
            await mp.flush(0.1)
            started = world.true()
            world.status = 200
            result = await mp.flush(1_000.0)
            assert result.delivered == 1
            # One second is the resolution of the header; a quarter is jitter.
            assert 98.0 <= world.received[0][0] - started <= 127.0

    run(body)


@pytest.mark.parametrize("hours", [*range(-240, 241, 24), -13, -5, -1, 1, 5, 13])
@pytest.mark.parametrize("useless", ["alternating", "standing still", "none"])
def test_correction_of_any_size_survives_useless_answers_or_ends(
    hours: int, useless: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a correction, other answers must not make new events worse than the local clock is."""

    async def body(world: World) -> None:
        world.error = hours * HOUR
        async with world.client() as mp:
            errors = await world.use(mp)
            assert abs(errors[-1]) <= 3.0
            if useless == "alternating":
                alternating(world)
            elif useless == "standing still":
                constant(formatdate(world.true(), usegmt=True))(world)
            else:
                without_date(world)
            for error in await world.use(mp, 60):
                assert abs(error) <= 3.0 or error == pytest.approx(world.error, abs=0.01)
            assert mp.stats().dropped == mp.stats().failed == 0
        # One for the correction, and one for the contradiction.
        assert len(warnings(caplog)) <= 2

    run(body)


@pytest.mark.parametrize("error", [3.0, -3.0, 0.0])
def test_small_error_is_not_corrected(error: float, caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: World) -> None:
        world.error = error
        async with world.client() as mp:
            assert await world.use(mp, 50) == pytest.approx([error] * 50, abs=0.01)
        assert warnings(caplog) == []

    run(body)


def constant(date: str) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        world.headers = lambda: {"Date": date}

    return set_up


def running(error: float, **more: str) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        world.headers = lambda: {"Date": formatdate(world.true() + error, usegmt=True), **more}

    return set_up


def alternating(world: World) -> None:
    world.headers = lambda: {"Date": formatdate(world.true() + world.requests % 2 * 2 * HOUR, usegmt=True)}


def without_date(world: World) -> None:
    world.headers = dict


def refusing(world: World) -> None:
    running(-2 * HOUR)(world)
    world.status = 503


def portal(world: World) -> None:
    running(-2 * HOUR)(world)
    world.status, world.body = 203, "please log in"


def slow(seconds: float) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        # Stopped by a signal: both clocks run on.
        world.during_request = partial(trio.sleep, seconds)

    return set_up


def suspending(world: World) -> None:
    async def suspend() -> None:
        world.suspend(2 * HOUR)

    world.during_request = suspend


USELESS: dict[str, tuple[Callable[[World], None], str | None]] = {
    "date 2 h old for ever": (constant(formatdate(START - 2 * HOUR, usegmt=True)), CONTRADICTION),
    "date of the start for ever": (constant(formatdate(START, usegmt=True)), CONTRADICTION),
    "date in 1970": (constant("Thu, 01 Jan 1970 00:00:00 GMT"), CONTRADICTION),
    "date in 2100": (constant("Fri, 01 Jan 2100 00:00:00 GMT"), CONTRADICTION),
    "server in 1970": (running(-START), TOO_MUCH),
    "server 30 d ahead": (running(30 * DAY), TOO_MUCH),
    "server 30 d behind": (running(-30 * DAY), TOO_MUCH),
    "Age: 3600": (running(-HOUR, Age="3600"), None),
    "Warning: 110": (running(-HOUR, Warning='110 - "Response is Stale"'), None),
    "servers that disagree": (alternating, CONTRADICTION),
    "no date": (without_date, None),
    "empty date": (constant(""), None),
    "garbage": (constant("yesterday"), None),
    "unavailable": (refusing, "HTTP 503"),
    "portal": (portal, "HTTP 203"),
    "answers after 5 s": (slow(5.0), None),
    "stopped for 50 s": (slow(50.0), None),
    "suspended for 2 h": (suspending, None),
}


@pytest.mark.parametrize(("set_up", "message"), USELESS.values(), ids=USELESS.keys())
def test_right_clock_is_not_changed(
    set_up: Callable[[World], None], message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        set_up(world)
        async with world.client() as mp:
            errors = await world.use(mp, 200 if world.status == 200 else 3)
            if world.status != 200:
                world.status, world.body = 200, OK
                without_date(world)
                errors = await world.use(mp, 3)
            assert errors == pytest.approx([0.0] * len(errors), abs=0.002)
            assert mp.stats().dropped == mp.stats().failed == 0
        texts = warnings(caplog)
        assert len(texts) == (message is not None)
        assert message is None or message in texts[0]

    run(body)


@pytest.mark.parametrize("set_up", [alternating, constant(formatdate(START - 2 * HOUR, usegmt=True))])
def test_wrong_clock_is_not_corrected_by_useless_dates(
    set_up: Callable[[World], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        world.error = DAY
        set_up(world)
        async with world.client() as mp:
            assert await world.use(mp, 200) == pytest.approx([DAY] * 200, abs=0.01)
        (text,) = warnings(caplog)
        assert CONTRADICTION in text

    run(body)


def test_time_of_the_caller_is_never_changed() -> None:
    async def body(world: World) -> None:
        world.error = 2 * HOUR
        async with world.client() as mp:
            await world.use(mp)
            await mp.track("u", "own", time=START - 100.5)
            await mp.track("u", "own", {"time": int(START) - 7})
            await mp.flush()
        times = [record["properties"]["time"] for _, record in world.received if record["event"] == "own"]
        assert times == [int(START * 1000) - 100_500, int(START - 7) * 1000]

    run(body)


def test_correction_does_not_change_events_that_wait() -> None:
    """`time` is part of the key by which Mixpanel recognises a repeated event."""

    async def body(world: World) -> None:
        world.error = 2 * HOUR
        async with world.client() as mp:
            world.status = 503
            await mp.track("u", "waiting", insert_id="a" * 32)
            at = world.true()
            await mp.flush(0.1)
            world.status = 200
            # Its own delivery and that of the others teach the correction.
            errors = await world.use(mp)
            assert abs(errors[-1]) <= 3.0
        (waiting,) = [record for _, record in world.received if record["event"] == "waiting"]
        assert waiting["properties"]["time"] / 1000 == pytest.approx(at + 2 * HOUR, abs=0.01)

    run(body)


def test_correction_ends_with_the_error(caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: World) -> None:
        world.error = 2 * HOUR
        async with world.client() as mp:
            await world.use(mp)
            await trio.sleep(10 * HOUR)
            # Set by a time service while the client is idle.
            world.error = 0.0
            assert await world.use(mp, 20) == pytest.approx([0.0] * 20, abs=0.002)
            world.error = -HOUR
            errors = await world.use(mp, 20)
            assert abs(errors[-1]) <= 3.0
        assert ["ahead of" in text for text in warnings(caplog)] == [True, False]

    run(body)


@pytest.mark.parametrize("is_known", [True, False], ids=["after answers", "before the first answer"])
@pytest.mark.parametrize("is_before_the_event", [True, False], ids=["then event", "event then"])
@pytest.mark.parametrize("days", [-10, -6, -1, 1, 6, 10, 30])
def test_clock_set_during_an_outage_drops_nothing(days: int, is_before_the_event: bool, is_known: bool) -> None:
    async def body(world: World) -> None:
        async with world.client() as mp:
            if is_known:
                await world.use(mp, 5)
            world.status = 503
            if is_before_the_event:
                world.error = days * DAY
            await mp.track("u", "waiting")
            await mp.flush(0.1)
            await trio.sleep(HOUR)
            if not is_before_the_event:
                world.error = days * DAY
            await trio.sleep(HOUR)
            world.status = 200
            result = await mp.flush(120.0)
            assert (result.delivered, result.losses) == (1, {})

    run(body)


@pytest.mark.parametrize("error", [0.0, 2 * DAY, -2 * DAY])
def test_d9_event_that_waited_six_days_is_dropped(error: float) -> None:
    async def body(world: World) -> None:
        world.error = error
        async with world.client(retry=RARELY) as mp:
            world.status = 503
            await mp.track("u", "old")
            await mp.flush(0.1)
            await trio.sleep(6 * DAY)
            world.status = 200
            await mp.flush(120.0)
            assert (mp.stats().delivered, mp.stats().losses) == (0, {"too_old": 1})

    run(body)


def test_d9_known_server_time_decides_after_a_wrong_clock() -> None:
    """The machine is two days ahead, so Mixpanel sees an event of its clock as younger than it is."""

    async def body(world: World) -> None:
        async with world.client(retry=RARELY) as mp:
            await world.use(mp, 5)
            world.error = 2 * DAY
            world.status = 503
            await mp.track("u", "ahead")
            await mp.flush(0.1)
            await trio.sleep(5.5 * DAY)
            world.status = 200
            result = await mp.flush(2 * HOUR)
            assert (result.delivered, result.losses) == (1, {})

    run(body)


class Handler(BaseHTTPRequestHandler):
    """Server of the standard library, which sends its `Date`. Keeps the events in its server."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        events = httpx.Response(200, headers=dict(self.headers), content=body).json()
        RECEIVED.put([event["properties"]["time"] / 1000 for event in events])
        self.send_response(200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"1")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


RECEIVED: SimpleQueue[list[float]] = SimpleQueue()


@pytest.fixture
def server_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.anyio
async def test_slow_clock_is_corrected_by_responses_of_a_real_server(server_url: str) -> None:
    slow = replace(real_environment(), wall_time=lambda: time.time() - 2 * HOUR)
    errors: list[float] = []
    async with client_in(slow, "t", api_host=server_url) as mp:
        with anyio.fail_after(20.0):
            while not errors or abs(errors[-1]) > 10.0:
                # The model compares the server's time over some seconds.
                await anyio.sleep(0.2)
                now = time.time()
                await mp.track("u", "e")
                assert (await mp.flush()).delivered == 1
                errors.append(RECEIVED.get_nowait()[0] - now)
    assert len(errors) > 4
    assert all(abs(error + 2 * HOUR) <= 2.0 for error in errors[:-1])
    assert abs(errors[-1]) <= 3.0


# Records on disk: trio's mock clock does not wait for the thread of the spool, so these use the real one.


def disk_client(path: Path, *, error: float, up: bool, sent: list[Any], **options: Any) -> AsyncMixpanel:
    def answer(request: httpx.Request) -> httpx.Response:
        if not up:
            return httpx.Response(503)
        events = httpx.Response(200, headers=request.headers, content=request.content).json()
        sent.extend((request.url.path, event["event"]) for event in events)
        return httpx.Response(200, json=OK, headers={"Date": formatdate(usegmt=True)})

    return client_in(
        replace(real_environment(), wall_time=lambda: time.time() + error),
        "t",
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
        spool=SqliteSpool(path),
        shutdown_timeout=0.2 if not up else 10.0,
        batching=BatchPolicy(max_events=1, max_in_flight=1),
        **options,
    )


async def restart(path: Path, errors: tuple[float, float], **options: Any) -> tuple[list[Any], Mapping[str, int]]:
    """Keep three events on disk during an outage, and deliver them in a second process; with the clock errors."""
    sent: list[Any] = []
    async with disk_client(path, error=errors[0], up=False, sent=sent, **options) as mp:
        for name in ("a", "b", "c"):
            await mp.track("u", name)
    async with disk_client(path, error=errors[1], up=True, sent=sent, **options) as mp:
        result = await mp.flush()
    return sent, result.losses


@pytest.mark.anyio
@pytest.mark.parametrize("days", [-10, -2, 2, 6, 10, 30])
async def test_wrong_clock_after_a_restart_drops_nothing(tmp_path: Path, days: int) -> None:
    sent, losses = await restart(tmp_path / "spool.db", (0.0, days * DAY))
    assert [name for _, name in sent] == ["a", "b", "c"]
    assert losses == {}


@pytest.mark.anyio
async def test_old_events_on_disk_are_dropped_once_a_response_has_confirmed_the_clock(tmp_path: Path) -> None:
    sent, losses = await restart(tmp_path / "spool.db", (-6 * DAY, 0.0))
    assert [name for _, name in sent] == ["a"]
    assert losses == {"too_old": 2}


@pytest.mark.anyio
async def test_old_events_on_disk_go_to_import_with_credentials(tmp_path: Path) -> None:
    account = ServiceAccountCredentials("account", "secret", "1")
    sent, losses = await restart(tmp_path / "spool.db", (-6 * DAY, 0.0), credentials=account, events_endpoint="track")
    assert [(path, name) for path, name in sent] == [("/import", "a"), ("/import", "b"), ("/import", "c")]
    assert losses == {}
