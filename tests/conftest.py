"""Fixtures for all tests: both event loops, a clean environment, and a check of the accounting."""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import os
import zlib
from asyncio import constants
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from redis_server import RedisServer

from mixpanel_async import AsyncMixpanel

# pytest-timeout prints the stacks of a test that hangs to the terminal, which a worker of pytest-xdist does not have.
# There, faulthandler prints them to the original standard error shortly before the worker ends.
IN_XDIST_WORKER: Final = "PYTEST_XDIST_WORKER" in os.environ
STDERR: Final = pytest.StashKey[int]()
SECONDS_BEFORE_TIMEOUT: Final = 0.5


def pytest_configure(config: pytest.Config) -> None:
    # In debug mode, asyncio notes the stack of each call, timer and task. Its ten frames took a third of the CPU time
    # of a test. With one, a coroutine that is never awaited still names the line that made it.
    pytest.MonkeyPatch().setattr(constants, "DEBUG_STACK_DEPTH", 1)
    if IN_XDIST_WORKER:
        config.stash[STDERR] = os.dup(2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that the short form of a test leaves out as `long`."""
    seen: dict[tuple[str, str], int] = {}
    for item in items:
        if item.get_closest_marker("loops_in_turn") is not None and not _is_turn_of_its_loop(item):
            item.add_marker(pytest.mark.long)
        if (mark := item.get_closest_marker("sample")) is not None:
            function = (str(item.path), getattr(item, "originalname", item.name))
            number = seen.get(function, 0)
            seen[function] = number + 1
            if number % mark.kwargs["every"]:
                item.add_marker(pytest.mark.long)


def _is_turn_of_its_loop(item: Any) -> bool:
    """Return whether the short form runs a case on this event loop. A checksum of the case chooses one of the two."""
    loop = item.callspec.params["anyio_backend"][0]
    case = item.name.replace(f"[{loop}", "[", 1).replace(f"-{loop}", "", 1)
    return bool(loop == ("asyncio", "trio")[zlib.crc32(case.encode()) % 2])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exempt the imported modules and the collected tests from garbage collection, which many tests start."""
    # Its first import looks for references to trio's random numbers, which it does not find once they are frozen.
    importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    if STDERR in item.config.stash and settings.timeout > SECONDS_BEFORE_TIMEOUT:
        seconds = settings.timeout - SECONDS_BEFORE_TIMEOUT
        faulthandler.dump_traceback_later(seconds, file=item.config.stash[STDERR])


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    if STDERR in item.config.stash:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=[("asyncio", {"debug": True}), ("trio", {})], ids=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove proxies, certificates and settings of the machine from the environment."""
    for name in list(os.environ):
        if name.upper().endswith(("_PROXY", "_CA_BUNDLE")) or name.startswith(("MIXPANEL_", "SSL")):
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


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """Return the server of this process, with an empty database. The test must not change its settings."""
    shared_redis_server.command("FLUSHALL")
    return shared_redis_server


@pytest.fixture
def new_redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Return a function that starts a server with options, for this test only."""
    with ExitStack() as stack:

        def start(*options: str) -> RedisServer:
            folder = tmp_path / f"redis-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            server = RedisServer(folder, *options)
            stack.callback(server.stop)
            server.start()
            return server

        yield start
