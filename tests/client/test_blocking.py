"""Blocking methods: a client in a background thread."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from forked_python import run as run_forked

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BatchPolicy,
    BlockingBound,
    BlockingMixpanel,
    BoundMixpanel,
    ClientClosedError,
    IdMerge,
    MixpanelException,
    Overflow,
    RetryPolicy,
    SqliteSpool,
    ValidationError,
)
from mixpanel_async.emulator import Emulator

LINGERING = BatchPolicy(linger=3600.0)
ANON_ID = "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"


@contextmanager
def emulated(**options: Any) -> Iterator[tuple[Emulator, AsyncMixpanel]]:
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as server:
        mp = AsyncMixpanel("token", api_host=server.url, id_merge=IdMerge.ORIGINAL, **options)
        yield emulator, mp
    stats = mp.stats()
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mixpanel client"]


@pytest.mark.parametrize(
    ("blocking", "original", "without"),
    [
        (BlockingMixpanel, AsyncMixpanel, {"aclose"}),
        (BlockingBound, BoundMixpanel, set()),
    ],
)
def test_every_coroutine_method_has_a_blocking_form(blocking: type, original: type, without: set[str]) -> None:
    def coroutines(kind: type) -> dict[str, Callable[..., Any]]:
        return {
            name: method
            for name, method in inspect.getmembers(kind, inspect.iscoroutinefunction)
            if not name.startswith("_") and name not in without
        }

    for name, method in coroutines(original).items():
        form = getattr(blocking, name)
        assert not inspect.iscoroutinefunction(form), name
        expected = [*inspect.signature(method).parameters.values()]
        if name != "start":
            assert [*inspect.signature(form).parameters.values()] == expected, name
    assert not coroutines(blocking)


def test_blocking_methods_do_what_the_coroutine_methods_do() -> None:
    with emulated() as (emulator, client):
        with client.in_thread() as mp:
            mp.track("user", "Event", {"a": 1})
            mp.people_set("user", {"plan": "pro"})
            mp.people_increment("user", {"n": 1})
            mp.group_set("company", "acme", {"size": 5})
            mp.track_immediate("user", "Now")
            mp.alias("new", "user")
            mp.identify("user", ANON_ID)
            visitor = mp.bind(device_id=mp.new_device_id())
            visitor.track("Page viewed")
            visitor.sign_in("user-2", is_new=True)
            visitor.people_set({"plan": "free"})
            assert mp.flush(5).pending == 0
            assert mp.run(client.flush) == mp.flush()
            assert len(client_threads()) == 1
        assert client_threads() == []
        assert {event["event"] for event in emulator.events()} >= {"Event", "Now", "Page viewed", "Signed up"}
        assert (emulator.profile("user") or {})["n"] == 1
        assert (emulator.profile("user-2") or {})["plan"] == "free"
        assert emulator.cluster("user") >= {"user", "new", ANON_ID}
        assert mp.close() == mp.close()
        with pytest.raises(ClientClosedError):
            mp.track("user", "Event")


def test_errors_reach_the_caller() -> None:
    with emulated(identity_retry=RetryPolicy(attempts=1)) as (emulator, client), client.in_thread() as mp:
        with pytest.raises(ValidationError, match="insert_id"):
            mp.track("user", "Event", {"$insert_id": "?"})
        emulator.fail_next(400)
        with pytest.raises(ApiError):
            mp.alias("new", "user")


@pytest.mark.parametrize("kind", ["plain", "spool", "wait"])
def test_records_of_many_threads_arrive(kind: str, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "spool": {"spool": SqliteSpool(tmp_path / "spool.db")},
        "wait": {"overflow": Overflow.WAIT, "batching": BatchPolicy(max_pending_events=20, linger=0.01)},
    }
    with emulated(**kinds[kind]) as (emulator, client):
        with client.in_thread() as mp:

            def work(thread: int) -> None:
                for number in range(50):
                    mp.track("user", "Event", {"number": thread * 50 + number})
                    mp.people_increment("user", {"n": 1})

            threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(event["properties"]["number"] for event in emulator.events("Event")) == list(range(200))
        assert (emulator.profile("user") or {})["n"] == 200


def test_record_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.db")
    with emulated(batching=LINGERING, spool=spool) as (_, client), client.in_thread() as mp:
        mp.track("user", "Event")
        assert len([*SqliteSpool(tmp_path / "spool.db").records()]) == 1


def test_large_burst_without_an_event_loop_does_not_wait() -> None:
    with emulated() as (emulator, client), client.in_thread() as mp:
        for number in range(3_000):
            mp.track("user", "Event", {"number": number, "text": "x" * 200})
        mp.flush()
        assert len(emulator.events("Event")) == 3_000


def test_blocking_method_in_an_event_loop() -> None:
    with emulated() as (emulator, client), client.in_thread() as mp:

        async def elsewhere() -> None:
            mp.track("user", "Elsewhere")
            await client.track("user", "Awaited")

        async def inside() -> None:
            mp.alias("new", "user")

        anyio.run(elsewhere)
        with pytest.raises(MixpanelException, match="await the method"):
            mp.run(inside)
        mp.flush()
        assert {event["event"] for event in emulator.events()} == {"Elsewhere", "Awaited"}


async def exit_program() -> None:
    raise SystemExit(3)


async def interrupt() -> None:
    raise KeyboardInterrupt


async def cancel_all_tasks() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


async def stop_loop() -> None:
    asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)


@pytest.mark.parametrize("function", [exit_program, interrupt, cancel_all_tasks, stop_loop])
def test_client_survives_a_function_that_ends_its_event_loop(function: Callable[[], Any]) -> None:
    with emulated() as (emulator, client):
        mp = client.start_in_thread()
        try:
            mp.run(function)
        except (KeyboardInterrupt, SystemExit, MixpanelException) as error:
            raised: type[BaseException] | None = type(error)
        else:
            raised = None
        if function in {exit_program, interrupt}:
            assert raised is (SystemExit if function is exit_program else KeyboardInterrupt)
        else:
            # The function may end first.
            assert raised in {None, MixpanelException}
            for thread in client_threads():
                thread.join(10)
        mp.track("user", "Event")
        mp.flush()
        assert len(emulator.events("Event")) == 1
        mp.close()


def test_thread_without_file_descriptors_raises_an_error_and_starts_later() -> None:
    code = """
        import os, resource, sys
        from mixpanel_async import AsyncMixpanel, MixpanelException
        mp = AsyncMixpanel("token", api_host=sys.argv[1]).in_thread()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        files = []
        try:
            while True:
                files.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        mp.track("user", "Event")
        try:
            mp.flush()
        except MixpanelException as error:
            print(error)
        for file in files:
            os.close(file)
        assert mp.close().delivered == 1
    """
    emulator = Emulator()
    with emulator.serve() as server:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), server.url],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot be started: OSError" in done.stdout
    assert len(emulator.events("Event")) == 1


def test_call_while_the_interpreter_ends_raises_an_error_of_the_package() -> None:
    code = """
        import builtins
        from mixpanel_async import AsyncMixpanel, MixpanelException
        mp = AsyncMixpanel("token", api_host="http://127.0.0.1:9").start_in_thread()
        class Late:
            def __del__(self):
                try:
                    mp.track("user", "Event")
                except error:
                    print("refused")
        error = MixpanelException
        builtins.late = Late()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_disabled_client_starts_no_thread() -> None:
    mp = AsyncMixpanel("", enabled=False).start_in_thread()
    mp.track("user", "Event")
    assert mp.flush().pending == 0
    assert client_threads() == []
    mp.alias("new", "user")
    mp.bind(device_id=ANON_ID).sign_in("user")
    assert mp.close().pending == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_its_own_thread() -> None:
    with emulated(batching=LINGERING) as (emulator, client):
        mp = client.start_in_thread()
        mp.track("user", "Parent")
        child = os.fork()
        if not child:
            status = 1
            try:
                mp.track("user", "Child")
                mp.alias("new", "user")
                mp.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        mp.close()
        assert sorted(event["event"] for event in emulator.events()) == ["$create_alias", "Child", "Parent"]


def test_dropped_client_ends_its_thread() -> None:
    with emulated() as (emulator, client):
        mp = client.start_in_thread()
        mp.track("user", "Event")
        mp.flush()
        thread = client_threads()[0]
        del mp
        thread.join(10)
        assert not thread.is_alive()
        assert len(emulator.events("Event")) == 1


# Programs that end in different ways. Each exits in time and has delivered its events.
PROGRAMS = {
    "end of the block": ("with client.in_thread() as mp: work(mp)", 0),
    "no close": ("work(client.start_in_thread())", 0),
    "exception in the block": ("with client.in_thread() as mp:\n    work(mp)\n    raise ValueError", 1),
    "exception without a block": ("work(client.start_in_thread())\nraise ValueError", 1),
    "exit in the block": ("with client.in_thread() as mp:\n    work(mp)\n    sys.exit(3)", 3),
    "interrupt in the block": (
        "with client.in_thread() as mp:\n    work(mp)\n    signal.raise_signal(signal.SIGINT)",
        -2,
    ),
    "interrupt while waiting": (
        """
        mp = client.start_in_thread()
        work(mp)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        mp.run(asyncio.sleep, 3600)
        """,
        -2,
    ),
    "exit in another thread": (
        """
        def other():
            work(client.start_in_thread())
            sys.exit(1)
        threading.Thread(target=other).start()
        """,
        0,
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_ends_and_has_delivered(program: str) -> None:
    code, status = PROGRAMS[program]
    head = """
        import asyncio, os, signal, sys, threading
        from mixpanel_async import AsyncMixpanel, BatchPolicy
        client = AsyncMixpanel("token", api_host=sys.argv[1], batching=BatchPolicy(linger=3600.0))
        def work(mp):
            for n in range(20): mp.track("u", "E", {"n": n})
    """
    emulator = Emulator()
    with emulator.serve() as server:
        done = run_forked(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), server.url],
            capture_output=True, text=True, timeout=20, modules=(),
        )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "mixpanel" not in done.stderr.replace("mixpanel_async/", "").lower()
    assert sorted(event["properties"]["n"] for event in emulator.events("E")) == list(range(20))


SIGNAL_PROGRAM = """
    import os, signal, sys, threading, time
    from mixpanel_async import AsyncMixpanel, BatchPolicy
    client = AsyncMixpanel("token", api_host=sys.argv[1], batching=BatchPolicy(linger=3600.0))
    mp = client.start_in_thread()
    def handler(*_):
        mp.close()
        sys.exit(0)
    signal.signal(signal.SIGTERM, handler)
    threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGTERM)).start()
    while True:
        mp.track("u", "E", {"n": 1})
        client.track_nowait("u", "E", {"n": 1})
"""


@pytest.mark.parametrize("delay", [0.1, 0.11, 0.12, 0.13])
def test_handler_that_closes_in_the_middle_of_a_call_ends(delay: float) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        done = run_forked(
            [sys.executable, "-c", textwrap.dedent(SIGNAL_PROGRAM), server.url, str(delay)],
            capture_output=True, text=True, timeout=25, modules=(),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "never awaited" not in done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("start", ["block", "start_in_thread"])
async def test_client_of_another_event_loop_stays_open(start: str) -> None:
    def view(mp: AsyncMixpanel) -> None:
        if start == "block":
            with mp.in_thread() as blocking:
                blocking.people_increment("user-1", {"visits": 1})
        else:
            blocking = mp.start_in_thread()
            blocking.people_increment("user-1", {"visits": 1})
            assert blocking.close().pending == 1
            assert blocking.close().pending == 1

    emulator = Emulator()
    async with emulator.client(batching=LINGERING) as mp:
        await anyio.to_thread.run_sync(view, mp)
        assert client_threads() == []
        await mp.track("user-1", "Page viewed")
        assert (await mp.flush()).delivered == 2
    assert (emulator.profile("user-1") or {}).get("visits") == 1
