"""Clients in tests that replace the clock with freezegun or time-machine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta, timezone
from typing import Any, Final

import anyio.lowlevel
import freezegun
import pytest
import time_machine

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_tracked

pytestmark = pytest.mark.sample(every=2)

Freeze = Callable[[datetime], AbstractContextManager[Any]]

FREEZES: Final[dict[str, Freeze]] = {
    "freezegun": freezegun.freeze_time,
    "freezegun tick": lambda time: freezegun.freeze_time(time, tick=True),
    "freezegun real_asyncio": lambda time: freezegun.freeze_time(time, real_asyncio=True),
    "time_machine": lambda time: time_machine.travel(time, tick=False),
    "time_machine tick": lambda time: time_machine.travel(time, tick=True),
}
LONG_AGO: Final = datetime(2021, 5, 5, 12, tzinfo=timezone.utc)
RETRY_IDENTITY: Final = RetryPolicy(attempts=3, initial=0.01, maximum=0.02, total_timeout=15.0)
RETRY: Final = RetryPolicy(initial=0.01, maximum=0.02)


@pytest.fixture(params=[*FREEZES.values()], ids=[*FREEZES])
def freeze(request: pytest.FixtureRequest) -> Freeze:
    result: Freeze = request.param
    return result


def times_of(emulator: Emulator) -> dict[str, datetime]:
    return {
        event["event"]: datetime.fromtimestamp(event["properties"]["time"] / 1000, timezone.utc)
        for event in emulator.events()
    }


def is_close(first: datetime, second: datetime) -> bool:
    return abs(first - second) < timedelta(seconds=5)


async def arrival(emulator: Emulator, name: str) -> None:
    """Wait until an event has arrived. Not with timers, which freezegun stops."""
    while not emulator.events(name):
        await anyio.lowlevel.checkpoint()


def test_client_made_outside_uses_the_frozen_clock(freeze: Freeze) -> None:
    emulator = Emulator()

    async def main() -> None:
        async with AsyncMixpanel("token", api_host=server.url) as mp:
            await mp.track("user", "Before")
            await mp.flush()
            with freeze(LONG_AGO):
                await mp.track("user", "Inside", {"plan": "free"})
                await mp.people_set("user", {"seen": datetime.now(timezone.utc)})
                await mp.flush()
            await mp.track("user", "After", {"plan": "free"})

    with emulator.serve() as server:
        asyncio.run(main())
    times = times_of(emulator)
    assert {name: is_close(at, LONG_AGO) for name, at in times.items()} == {
        "Before": False,
        "Inside": True,
        "After": False,
    }
    assert is_close(times["After"], datetime.now(timezone.utc))
    assert str((emulator.profile("user") or {})["seen"]).startswith("2021-05-05T12:00:0")


def test_client_made_inside_works_outside(freeze: Freeze) -> None:
    emulator = Emulator()

    async def main() -> None:
        with freeze(LONG_AGO):
            mp = AsyncMixpanel("token", api_host=server.url, batching=BatchPolicy(linger=0.1))
            await mp.track("user", "Inside")
            await mp.flush()
        await mp.track("user", "After", {"plan": "free"})
        await arrival(emulator, "After")
        await mp.aclose()

    with emulator.serve() as server:
        asyncio.run(main())
    assert is_close(times_of(emulator)["Inside"], LONG_AGO)
    assert is_close(times_of(emulator)["After"], datetime.now(timezone.utc))


@pytest.mark.parametrize("leaves", [False, True])
def test_batches_leave_by_time(freeze: Freeze, *, leaves: bool) -> None:
    """The linger ends while the clock is frozen, and also if it began then."""
    emulator, now = Emulator(), datetime.now(timezone.utc) - timedelta(hours=1)

    async def main() -> None:
        mp = AsyncMixpanel("token", api_host=server.url, batching=BatchPolicy(linger=0.3))
        await mp.start()
        with freeze(now):
            await mp.track("user", "Inside")
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            if not leaves:
                await arrival(emulator, "Inside")
        await mp.track("user", "After", {"plan": "free"})
        await arrival(emulator, "After")
        await mp.aclose()

    with emulator.serve() as server:
        asyncio.run(main())
    assert is_close(times_of(emulator)["Inside"], now)


def test_retries_go_on(freeze: Freeze) -> None:
    emulator, now = Emulator(), datetime.now(timezone.utc) - timedelta(hours=1)
    emulator.fail_next(503, times=3)

    async def main() -> None:
        async with AsyncMixpanel("token", api_host=server.url, retry=RETRY, identity_retry=RETRY_IDENTITY) as mp:
            with freeze(LONG_AGO):
                await mp.track("user", "Inside")
                assert (await mp.flush()).pending == 0
                emulator.fail_next(503, times=2)
                await mp.alias("new", "user")
            with freeze(now):
                emulator.fail_next(503, times=1_000)
                await mp.track("user", "Late")
                assert (await mp.flush(0.2)).pending == 1
                emulator.stop_faults()

    with emulator.serve() as server:
        asyncio.run(main())
    assert emulator.requests()[-1].status == 200
    assert is_close(times_of(emulator)["Late"], now)


@pytest.mark.anyio
async def test_in_process_emulator_without_a_socket(freeze: Freeze) -> None:
    emulator = Emulator()
    async with emulator.client(retry=RETRY) as mp:
        with freeze(LONG_AGO):
            emulator.fail_next(503, times=2)
            await mp.track("user", "Inside", {"at": datetime.now(), "day": date.today()})
            await mp.flush()
    event = emulator.events("Inside")[0]["properties"]
    assert (event["at"][:10], event["day"]) == ("2021-05-05", "2021-05-05")
    assert is_close(times_of(emulator)["Inside"], LONG_AGO)


def test_record_of_no_event_loop(freeze: Freeze) -> None:
    emulator = Emulator()
    mp = emulator.client()
    with freeze(LONG_AGO):
        mp.track_nowait("user", "Inside")
        asyncio.run(mp.flush())
    asyncio.run(mp.aclose())
    assert is_close(times_of(emulator)["Inside"], LONG_AGO)


@pytest.mark.parametrize("library", ["freezegun", "time_machine tick"])
def test_frozen_time_before_the_last_response_is_not_corrected(library: str) -> None:
    """A clock that was set back below the server's time is corrected. A frozen one is not."""
    emulator, yesterday = Emulator(), datetime.now(timezone.utc) - timedelta(days=1)

    async def main() -> None:
        async with AsyncMixpanel("token", api_host=server.url) as mp:
            await mp.track("user", "Before")
            await mp.flush()
            with FREEZES[library](yesterday):
                await mp.track("user", "Inside")
                await mp.flush()

    with emulator.serve() as server:
        asyncio.run(main())
    assert is_close(times_of(emulator)["Inside"], yesterday)


@pytest.mark.parametrize("library", ["freezegun", "time_machine tick"])
def test_frozen_time_teaches_nothing_about_the_clock(library: str, caplog: pytest.LogCaptureFixture) -> None:
    """After four seconds of consistent `Date` headers, a clock that is wrong is corrected. A frozen one is not."""
    emulator, tomorrow = Emulator(), datetime.now(timezone.utc) + timedelta(days=1)

    async def main() -> None:
        with FREEZES[library](tomorrow):
            async with AsyncMixpanel("token", api_host=server.url) as mp:
                for number in range(6):
                    await mp.track("user", f"Inside {number}")
                    await mp.flush()
                    # The event loop may have no clock.
                    threading.Event().wait(0.9)
                await mp.track("user", "Last")
                await mp.flush()

    with emulator.serve() as server:
        asyncio.run(main())
    assert "clock" not in caplog.text
    last = times_of(emulator)["Last"] - tomorrow
    assert abs(last) < timedelta(seconds=15)


def test_assertion_explains_an_event_that_left_after_the_freeze(freeze: Freeze) -> None:
    emulator = Emulator()

    async def main() -> None:
        async with emulator.client() as mp:
            with freeze(LONG_AGO):
                await mp.track("user", "Inside")

    asyncio.run(main())
    with pytest.raises(AssertionError, match=r"1 request arrived with no event; silently dropped: older than 5 days"):
        assert_tracked(emulator, "Inside")


IMPORTED_INSIDE: Final = """
import asyncio, sys, time
import freezegun, time_machine
freeze = {"freezegun": freezegun.freeze_time, "time_machine": time_machine.travel}[sys.argv[1]]

async def main():
    with freeze("2021-05-05 12:00"):
        from mixpanel_async import AsyncMixpanel, BatchPolicy
        from mixpanel_async.emulator import Emulator
        emulator = Emulator()
        server = emulator.serve()
        server.__enter__()
        mp = AsyncMixpanel("token", api_host=server.url, batching=BatchPolicy(linger=0.05))
        await mp.track("user", "Inside")
        await mp.flush()
    now = time.time()
    await mp.track("user", "After", {"a": 1})
    while not emulator.events("After"):
        await asyncio.sleep(0.01)
    await mp.aclose()
    server.__exit__(None, None, None)
    inside, after = [event["properties"]["time"] / 1000 for event in emulator.events()]
    print(int(inside) // 10, abs(after - now) < 5)

asyncio.run(main())
"""


@pytest.mark.parametrize("library", ["freezegun", "time_machine"])
def test_package_imported_inside(library: str) -> None:
    command = [sys.executable, "-W", "error", "-c", IMPORTED_INSIDE, library]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25)
    assert (done.stdout, done.stderr) == (f"{int(LONG_AGO.timestamp()) // 10} True\n", "")
