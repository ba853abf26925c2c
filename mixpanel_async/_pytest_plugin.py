"""The pytest plugin: an emulated Mixpanel for each test, and a client wired to it, without a socket.

    async def test_sign_up(mixpanel_client, mixpanel_emulator):
        await sign_up(mixpanel_client, "user-1")
        await mixpanel_client.flush()
        assert_tracked(mixpanel_emulator, "Signed up", distinct_id="user-1")

It is installed beside the package, not in it: pytest imports the plugins of every installed distribution at the start
of every run, and by this name it can do so without importing the client, which would cost a tenth of a second and hide
the package's module level from coverage tools. For the same reason nothing but pytest is imported above functions.

The client is an ordinary one that starts in whatever event loop first uses it, and no fixture here is asynchronous.
So it does not matter which plugin runs the test: pytest-asyncio, anyio, another, or none.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from mixpanel_async import AsyncMixpanel
    from mixpanel_async.emulator import Emulator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "mixpanel_id_merge",
        "how the emulated Mixpanel projects join ids into people: simplified, original or legacy",
        default="simplified",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "mixpanel(id_merge, token, ...): options of the Emulator behind mixpanel_emulator and mixpanel_client",
    )


@pytest.fixture
def mixpanel_emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """An empty Mixpanel project, for this test alone.

    How it joins ids is told by the ini option `mixpanel_id_merge`, and any option of `Emulator` by
    `@pytest.mark.mixpanel(id_merge="original", token="...")` on the test, its class or its module.
    """
    from mixpanel_async import IdMerge  # noqa: PLC0415
    from mixpanel_async.emulator import Emulator  # noqa: PLC0415

    options: dict[str, Any] = {"id_merge": request.config.getini("mixpanel_id_merge")}
    # The closest comes first, and is to win.
    for marker in reversed(list(request.node.iter_markers("mixpanel"))):
        options.update(marker.kwargs)
    try:
        emulator = Emulator(**{**options, "id_merge": IdMerge(options["id_merge"])})
    except (TypeError, ValueError) as error:
        # These words alone: a traceback would lead into the plugin.
        words = f"mixpanel_emulator cannot be made from {options}: {error}"
        raise pytest.fail.Exception(words, pytrace=False) from None
    with emulator:
        yield emulator


@pytest.fixture
def mixpanel_client_options() -> dict[str, Any]:
    """Options of `mixpanel_client`, such as `credentials` or `before_send`. Override this fixture to set them."""
    return {}


@pytest.fixture
def mixpanel_client(_mixpanel_ending: _ClientCloser) -> AsyncMixpanel:
    """An `AsyncMixpanel` that talks to `mixpanel_emulator` in-process.

    `await mixpanel_client.flush()` before looking at what arrived. What is still queued when the test function ends is
    delivered then, and the client is closed after the fixtures that use it.

    It waits only moments between tries, and gives up after 2 seconds in which nothing could be delivered, so that
    a test with planned failures does not take as long as they would.
    """
    return _mixpanel_ending.client


@pytest.fixture
def _mixpanel_client_closer(
    mixpanel_emulator: Emulator, mixpanel_client_options: dict[str, Any]
) -> Iterator[_ClientCloser]:
    from mixpanel_async import RetryPolicy  # noqa: PLC0415

    options = {
        "retry": RetryPolicy(initial=0.02, maximum=0.1),
        "identity_retry": RetryPolicy(attempts=3, initial=0.02, maximum=0.1, total_timeout=15.0),
        "shutdown_timeout": 2.0,
        **mixpanel_client_options,
    }
    ending = _ClientCloser(mixpanel_emulator.client(**options))
    yield ending
    ending.close()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Let a coroutine test end with a flush, in its own event loop, whoever runs that."""
    ending = getattr(item, "funcargs", {}).get("_mixpanel_ending")
    test = getattr(item, "obj", None)
    if ending is None or not inspect.iscoroutinefunction(test):
        yield
        return

    @functools.wraps(test)
    async def test_and_flush(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            await ending.flush()

    item.obj = test_and_flush  # type: ignore[attr-defined]
    try:
        yield
    finally:
        item.obj = test  # type: ignore[attr-defined]


class _ClientCloser:
    """How a client is brought to its end, in the event loop that it lives in.

    Args:
        client: the client.
    """

    def __init__(self, client: AsyncMixpanel) -> None:
        self.client = client
        self._loop: AbstractEventLoop | None = None

    async def flush(self) -> None:
        """Deliver what the test function left in the queue."""
        import asyncio  # noqa: PLC0415

        from mixpanel_async import ClientClosedError  # noqa: PLC0415

        # In trio there is none.
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        if self.client.stats().pending:
            # The application under test may have used it in a loop of its own.
            with contextlib.suppress(ClientClosedError):
                await self.client.flush()

    def close(self) -> None:
        """Close the client, when no fixture uses it any more."""
        import asyncio  # noqa: PLC0415

        from mixpanel_async import ClientClosedError  # noqa: PLC0415

        loop = self._loop
        is_asleep = loop is not None and not loop.is_closed() and not loop.is_running()
        # A client whose loop has ended can be closed in another. Unlike `asyncio.run`, this leaves the thread's current
        # loop alone.
        home = loop if loop is not None and is_asleep else asyncio.new_event_loop()
        try:
            # Its loop may be of a wider scope and neither ended nor ours to run. It has been flushed there, and a
            # client that is dropped with an empty queue needs no closing.
            with contextlib.suppress(ClientClosedError):
                home.run_until_complete(self.client.aclose())
        finally:
            if home is not loop:
                home.close()
