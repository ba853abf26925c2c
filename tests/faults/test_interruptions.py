"""Errors that a signal handler raises inside the client, such as the soft time limit of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import itertools
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpx
import pytest

import mixpanel_async
from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow, QueueFullError, RetryPolicy, SqliteSpool
from mixpanel_async._delivery.waiting import SharedWaiter
from mixpanel_async._runtime.event_loop import current_loop
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=3)

PACKAGE = str(Path(mixpanel_async.__file__).parent)
# After these, Python runs the handlers of signals.
CHECKED = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "POP_JUMP_BACKWARD")


class TimeLimitError(Exception):
    """Error of a signal handler."""


class Interruption:
    """Raises an error at the n-th point inside the package at which a signal handler can run in this thread.

    Args:
        at: number of the point.
    """

    def __init__(self, at: int) -> None:
        self.left = at

    @property
    def has_happened(self) -> bool:
        return self.left <= 0

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        last = ""

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal last
            if event == "opcode":
                name = dis.opname[code.co_code[frame.f_lasti]]
                # A real handler runs before the call returns, which a `return` inside `try` is no part of.
                if last.startswith(CHECKED) and name != "RETURN_VALUE":
                    self.left -= 1
                    if self.left == 0:
                        raise TimeLimitError
                last = name
            return trace

        return trace


class Server:
    """Accepts every request, and counts the records by their number. Equal events count once, as in Mixpanel."""

    def __init__(self) -> None:
        self.received: Counter[int] = Counter()
        self._ids: set[str] = set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = httpx.Response(200, headers=request.headers, content=request.content).content
        for record in json.loads(body):
            if "$add" in record:
                self.received[record["$add"]["n"]] += 1
            elif record["properties"]["$insert_id"] not in self._ids:
                self._ids.add(record["properties"]["$insert_id"])
                self.received[record["properties"]["n"]] += 1
        return httpx.Response(200, json={"status": 1, "error": None})


async def track_plain(mp: AsyncMixpanel, number: int) -> None:
    await mp.track("user", "Event", {"n": number})


async def track_unusual(mp: AsyncMixpanel, number: int) -> None:
    await mp.track("user", "Event", {"n": number, "when": object(), "more": {"a": (1, 2)}}, ip="0")


async def track_nowait(mp: AsyncMixpanel, number: int) -> None:
    mp.track_nowait("user", "Event", {"n": number})


async def people_increment(mp: AsyncMixpanel, number: int) -> None:
    await mp.people_increment("user", {"n": number})


async def track_and_flush(mp: AsyncMixpanel, number: int) -> None:
    await mp.track("user", "Event", {"n": number})
    await mp.flush()


async def track_and_read(mp: AsyncMixpanel, number: int) -> None:
    await mp.track("user", "Event", {"n": number})
    mp.stats()


CALLS: dict[str, Callable[[AsyncMixpanel, int], Awaitable[None]]] = {
    one.__name__: one
    for one in (track_plain, track_unusual, track_nowait, people_increment, track_and_flush, track_and_read)
}
POLICIES: dict[str, dict[str, Any]] = {
    "room": {"batching": BatchPolicy(linger=3600.0)},
    "small batches": {"batching": BatchPolicy(linger=3600.0, max_events=3)},
    "drop oldest": {"batching": BatchPolicy(linger=3600.0, max_pending_events=4), "overflow": Overflow.DROP_OLDEST},
    "raise": {"batching": BatchPolicy(linger=3600.0, max_pending_events=4), "overflow": Overflow.RAISE},
    "invalid drop": {"batching": BatchPolicy(linger=3600.0), "invalid": "drop"},
}


def check_sums(mp: AsyncMixpanel) -> None:
    stats = mp.stats()
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending, stats
    assert sum(stats.losses.values()) == stats.failed + stats.dropped + stats.uncertain


async def interrupt_everywhere(
    mp: AsyncMixpanel, server: Server, call: Callable[..., Any], *, step: int, waits: bool = False
) -> None:
    """Interrupt a call at each point, and check the sums after each.

    Args:
        mp: client.
        server: server of the client.
        call: the call.
        step: distance between the points.
        waits: whether each call waits for the disk.
    """
    at, number, complete = 1, 0, []
    while True:
        number += 1
        with contextlib.suppress(QueueFullError):
            await track_plain(mp, -number)
        interruption = Interruption(at)
        with anyio.fail_after(5), contextlib.suppress(TimeLimitError, QueueFullError), interruption:
            await call(mp, number)
            complete.append(number)
            # While the caller waits, it may hit a background task. Otherwise it reaches the caller, and as it is.
            assert not interruption.has_happened or call is track_and_flush or waits
        check_sums(mp)
        if not interruption.has_happened:
            break
        if number % 20 == 0:
            await mp.flush()
        at += step
    with anyio.fail_after(10):
        await mp.flush()
        await mp.flush()
    check_sums(mp)
    stats = mp.stats()
    assert stats.pending == 0
    assert stats.delivered <= len(server.received) <= stats.delivered + stats.uncertain
    assert set(server.received.values()) == {1}
    lost = [one for one in complete if not server.received[one]]
    assert len(lost) <= stats.dropped + stats.uncertain
    # Requests are interrupted, too, if each call waits.
    assert stats.uncertain <= (0.25 if waits else 0.05) * stats.accepted


# The interrupted code has created the coroutine and not awaited it yet.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("call", CALLS)
def test_interrupted_call_leaves_right_sums(call: str, policy: str) -> None:
    server = Server()

    async def main() -> None:
        http_client = httpx.AsyncClient(transport=httpx.MockTransport(server))
        retry = RetryPolicy(initial=0.001, maximum=0.001)
        serializer = (lambda _: "text") if call == "track_unusual" else None
        mp = AsyncMixpanel("token", http_client=http_client, retry=retry, serializer=serializer, **POLICIES[policy])
        async with http_client, mp:
            await interrupt_everywhere(mp, server, CALLS[call], step=1)

    asyncio.run(main())
    gc.collect()


# With a spool, every record must also reach the disk, and its row must leave it.
SPOOL_CALLS = [call for call in CALLS if call != "track_unusual"]
SPOOL_POLICIES = {
    **{name: POLICIES[name] for name in ("room", "small batches")},
    # Later records are only on disk.
    "small memory": {"batching": BatchPolicy(linger=3600.0, max_pending_events=4)},
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("policy", SPOOL_POLICIES)
@pytest.mark.parametrize("call", SPOOL_CALLS)
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
def test_interrupted_call_with_spool_leaves_right_sums(call: str, policy: str, step: int, tmp_path: Path) -> None:
    server = Server()
    spool = SqliteSpool(tmp_path / "spool.sqlite3")

    async def main() -> None:
        http_client = httpx.AsyncClient(transport=httpx.MockTransport(server))
        retry = RetryPolicy(initial=0.001, maximum=0.001)
        mp = AsyncMixpanel("token", http_client=http_client, retry=retry, spool=spool, **SPOOL_POLICIES[policy])
        async with http_client, mp:
            await interrupt_everywhere(mp, server, CALLS[call], step=step, waits=True)
        # If the end of a request was interrupted, the next client sends its rows again.
        http_client = httpx.AsyncClient(transport=httpx.MockTransport(server))
        async with http_client, AsyncMixpanel("token", http_client=http_client, spool=spool) as mp:
            await mp.flush()
            check_sums(mp)
        assert set(server.received.values()) == {1}

    asyncio.run(main())
    gc.collect()
    with contextlib.closing(sqlite3.connect(spool.file)) as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (0,)


async def wake_callers(interruption: Interruption) -> None:
    """Interrupt the call that wakes all callers of a commit, and wait for them."""
    loop = current_loop()
    assert loop is not None
    waiter = SharedWaiter(loop, anyio.current_time() + 3600.0, loop.new_signal())
    is_committed = False

    async def wait() -> None:
        while not is_committed:
            await (waiter.signal.wait() if waiter.is_watched else waiter.watch())

    callers = [asyncio.create_task(wait()) for _ in range(5)]
    await asyncio.sleep(0)
    is_committed = True
    with contextlib.suppress(TimeLimitError), interruption:
        waiter.signal.notify()
    await asyncio.wait_for(asyncio.gather(*callers), 5.0)


def test_callers_continue_after_their_wake_up_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpanel_async._delivery.waiting._CHECK_EVERY", 0.01)
    for at in itertools.count(1):
        interruption = Interruption(at)
        asyncio.run(wake_callers(interruption))
        if not interruption.has_happened:
            break
    assert at > 5


async def start(mp: AsyncMixpanel, _: int) -> None:
    await mp.start()


async def aclose(mp: AsyncMixpanel, _: int) -> None:
    await mp.aclose()


FIRST_CALLS = {one.__name__: one for one in (start, track_plain, track_nowait, people_increment, aclose)}


async def interrupt_first_call(call: str, at: int, server: Server, spool: SqliteSpool | None) -> bool:
    """Interrupt the first call of a client, and use the client. Return whether the point was reached."""
    retry, policy = RetryPolicy(initial=0.001, maximum=0.001), BatchPolicy(linger=0.01)
    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as http_client:
        mp = AsyncMixpanel("token", http_client=http_client, retry=retry, batching=policy, spool=spool)
        if call == "aclose":
            await track_plain(mp, 1)
        # A finalizer that is interrupted cannot raise.
        gc.disable()
        interruption = Interruption(at)
        with anyio.fail_after(5), contextlib.suppress(TimeLimitError), interruption:
            await FIRST_CALLS[call](mp, 0)
        gc.enable()
        with anyio.fail_after(5):
            if call != "aclose":
                await track_plain(mp, 1)
                assert (await mp.flush()).pending == 0
            await mp.aclose()
    check_sums(mp)
    assert (mp.stats().pending, mp.stats().failed, mp.stats().dropped) == (0, 0, 0)
    assert server.received[1] or mp.stats().uncertain
    assert set(server.received.values()) <= {1}
    return interruption.has_happened


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("has_spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("call", FIRST_CALLS)
@pytest.mark.parametrize("step", [31, pytest.param(1, marks=pytest.mark.long)])
def test_client_works_after_its_first_call_was_interrupted(
    call: str, has_spool: bool, step: int, tmp_path: Path
) -> None:
    # The start of a client has the fewest points and the most steps that may be left half done.
    step, at, is_hit = 4 if (call, step) == ("start", 31) else step, 1, True
    while is_hit:
        spool = SqliteSpool(tmp_path / f"{at}.sqlite3") if has_spool else None
        is_hit = asyncio.run(interrupt_first_call(call, at, Server(), spool))
        at += step
    gc.collect()


PROGRAM = """
import json, random, signal, sys, time
from mixpanel_async import AsyncMixpanel, BatchPolicy

class TimeLimit(Exception): pass
def on_alarm(number, frame): raise TimeLimit

signal.signal(signal.SIGALRM, on_alarm)
random.seed(int(sys.argv[2]))
mp = AsyncMixpanel("token", api_host=sys.argv[1], batching=BatchPolicy(linger=0.05, max_events=20))
returned, hits, others, number = [], 0, [], 0
with mp.in_thread() as blocking:
    calls = [
        lambda n: mp.track_nowait("user", "Event", {"n": n, "list": [1, 2, {"a": n}]}),
        lambda n: blocking.track("user", "Event", {"n": n}),
        lambda n: (mp.stats(), mp.track_nowait("user", "Event", {"n": n}, ip="0")),
    ]
    end = time.monotonic() + 3
    while time.monotonic() < end:
        number += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-4))
            random.choice(calls)(number)
            signal.setitimer(signal.ITIMER_REAL, 0)
            returned.append(number)
        except TimeLimit:
            hits += 1
        except Exception as error:
            others.append(repr(error))
    signal.setitimer(signal.ITIMER_REAL, 0)
    blocking.flush()
stats = mp.stats()
print(json.dumps({
    "hits": hits, "others": others, "returned": returned, "pending": stats.pending, "uncertain": stats.uncertain,
    "delivered": stats.delivered,
    "rest": stats.accepted - stats.delivered - stats.failed - stats.dropped - stats.uncertain - stats.pending,
}))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_time_limits_of_a_worker_reach_it_and_lose_nothing(seed: int) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        program = [sys.executable, "-c", PROGRAM, server.url, str(seed)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=25, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        received = {event["properties"]["n"] for event in emulator.events("Event")}
    assert result["hits"] > 100
    assert (result["others"], result["rest"], result["pending"]) == ([], 0, 0)
    assert len(set(result["returned"]) - received) <= result["uncertain"]
    assert result["delivered"] <= len(received) <= result["delivered"] + result["uncertain"]
