"""Pytest plugin: an emulated Mixpanel for each test, and a client connected to it without a socket.

    async def test_sign_up(mixpanel_client, mixpanel_emulator):
        await sign_up(mixpanel_client, "user-1")
        await mixpanel_client.flush()
        assert_tracked(mixpanel_emulator, "Signed up", distinct_id="user-1")

The wheel installs this file as the top-level module `mixpanel_async_pytest`. Pytest imports the plugins of every
installed distribution at the start of every run. As a top-level module, the plugin is imported without the client,
whose import would take a tenth of a second and hide the package's module level from coverage tools. For the same
reason, only pytest is imported at module level.

The client starts in the event loop that first uses it, and no fixture here is asynchronous. The plugin therefore works
with pytest-asyncio, with anyio, with any other async plugin and without one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from mixpanel_async import AsyncMixpanel
    from mixpanel_async.emulator import Emulator
    from mixpanel_async.types import ClientArguments

# Options of the client that the marker accepts, besides those that the emulator has as well.
_CLIENT_OPTIONS: Final = ("enabled", "invalid")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "mixpanel_id_merge",
        "ID merge of the emulated Mixpanel projects and their clients: simplified (default), original or legacy",
        default="",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "mixpanel(id_merge=..., ...): options of mixpanel_emulator and mixpanel_client: id_merge, token, "
        "service_account and other options of Emulator, and invalid and enabled of the client",
    )


def _marker_options(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the emulator and those of the client."""
    from mixpanel_async import IdMerge, MixpanelException, ServiceAccountCredentials  # noqa: PLC0415
    from mixpanel_async.emulator import Emulator  # noqa: PLC0415

    options: dict[str, Any] = {}
    # `iter_markers` yields the closest marker first. It must win.
    for marker in reversed(list(request.node.iter_markers("mixpanel"))):
        if marker.args:
            raise _fail("@pytest.mark.mixpanel takes only keyword arguments, such as id_merge='original'")
        options.update(marker.kwargs)
    for_emulator = [*inspect.signature(Emulator).parameters]
    unknown = sorted({*options} - {*for_emulator, *_CLIENT_OPTIONS})
    if unknown:
        known = ", ".join(sorted({*for_emulator, *_CLIENT_OPTIONS}))
        raise _fail(f"@pytest.mark.mixpanel has no argument {', '.join(unknown)}; it has {known}")
    client_options: dict[str, Any] = {name: options.pop(name) for name in _CLIENT_OPTIONS if name in options}
    # Only an explicit choice restricts the client: without one, it accepts the identity calls of every system.
    chosen = options.pop("id_merge", None) or request.config.getini("mixpanel_id_merge")
    if chosen:
        try:
            options["id_merge"] = client_options["id_merge"] = IdMerge(chosen)
        except ValueError:
            raise _fail(f"id_merge must be 'simplified', 'original' or 'legacy', not {chosen!r}") from None
    if (account := options.get("service_account")) is not None:
        try:
            client_options["credentials"] = ServiceAccountCredentials(*account)
        except (TypeError, MixpanelException) as error:
            raise _fail(f"service_account must be user name, secret and project id: {error}") from None
    return options, client_options


def _fail(message: str) -> BaseException:
    # No traceback: it would show the plugin, not the mistake in the options.
    return pytest.fail.Exception(message, pytrace=False)


@pytest.fixture
def mixpanel_emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Provide an empty Mixpanel project for one test.

    The ini option `mixpanel_id_merge` sets its ID merge. `@pytest.mark.mixpanel(id_merge="original", token="...")` on
    the test, its class or its module sets any option of `Emulator`. The closest marker wins.
    """
    from mixpanel_async.emulator import Emulator  # noqa: PLC0415

    options, _ = _marker_options(request)
    try:
        emulator = Emulator(**options)
    except (TypeError, ValueError) as error:
        raise _fail(f"mixpanel_emulator cannot be created with {options}: {error}") from None
    with emulator:
        yield emulator


@pytest.fixture
def mixpanel_client_options() -> ClientArguments:
    """Return options of `mixpanel_client`, such as `credentials`. Override this fixture to set them."""
    return {}


@pytest.fixture
def mixpanel_client(_mixpanel_client_closer: _ClientCloser) -> AsyncMixpanel:
    """Provide an `AsyncMixpanel` that talks to `mixpanel_emulator` in-process.

    Call `await mixpanel_client.flush()` before you check events. Records still queued at the end of the test function
    are delivered then. The client is closed after the fixtures that use it.

    The client gets the emulator's token, its service account and, if the marker or the ini option sets one, its ID
    merge, so that identity calls that the project would ignore raise `IdentityError`. The arguments `invalid` and
    `enabled` of the marker are options of the client. Options of `mixpanel_client_options` win.

    Retries wait at most 0.1 seconds, and closing gives up after 2 seconds without any delivery, so that tests with
    planned faults stay fast.
    """
    return _mixpanel_client_closer.client


@pytest.fixture
def _mixpanel_client_closer(
    request: pytest.FixtureRequest, mixpanel_emulator: Emulator, mixpanel_client_options: ClientArguments
) -> Iterator[_ClientCloser]:
    from mixpanel_async import ConfigurationError, RetryPolicy  # noqa: PLC0415

    options = {
        "retry": RetryPolicy(initial=0.02, maximum=0.1),
        "identity_retry": RetryPolicy(attempts=3, initial=0.02, maximum=0.1, total_timeout=15.0),
        "shutdown_timeout": 2.0,
        **_marker_options(request)[1],
        **mixpanel_client_options,
    }
    try:
        client = mixpanel_emulator.client(**options)
    except ConfigurationError as error:
        raise _fail(f"mixpanel_client cannot be created: {error}") from None
    closer = _ClientCloser(client)
    yield closer
    closer.close()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Flush the client at the end of a coroutine test, in the event loop of the test."""
    closer = getattr(item, "funcargs", {}).get("_mixpanel_client_closer")
    test = getattr(item, "obj", None)
    if closer is None or not inspect.iscoroutinefunction(test):
        yield
        return

    @functools.wraps(test)
    async def test_and_flush(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            await closer.flush()

    item.obj = test_and_flush  # type: ignore[attr-defined]
    try:
        yield
    finally:
        item.obj = test  # type: ignore[attr-defined]


class _ClientCloser:
    """Flushes and closes a client in the event loop that it runs in.

    Args:
        client: the client.
    """

    def __init__(self, client: AsyncMixpanel) -> None:
        self.client = client
        self._loop: AbstractEventLoop | None = None

    async def flush(self) -> None:
        """Deliver the records that the test function left in the queue."""
        import asyncio  # noqa: PLC0415

        from mixpanel_async import ClientClosedError  # noqa: PLC0415

        # Trio has no asyncio loop.
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        if self.client.stats().pending:
            # The application under test may have closed the client, or used it in another loop.
            with contextlib.suppress(ClientClosedError):
                await self.client.flush()

    def close(self) -> None:
        """Close the client after all fixtures that use it."""
        import asyncio  # noqa: PLC0415

        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            # A runner of wider scope, where the client has been flushed. Only its owner may run it.
            spawn = functools.partial(trio.lowlevel.spawn_system_task, self._close_in_loop)
            trio.lowlevel.current_trio_token().run_sync_soon(spawn)
            return
        test_loop = self._loop
        is_idle = test_loop is not None and not test_loop.is_closed() and not test_loop.is_running()
        # A client whose loop has ended can be closed in another one. Unlike `asyncio.run`, `run_until_complete` leaves
        # the current event loop of the thread alone.
        loop = test_loop if test_loop is not None and is_idle else asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._close_in_loop())
        finally:
            if loop is not test_loop:
                loop.close()

    async def _close_in_loop(self) -> None:
        from mixpanel_async import ClientClosedError  # noqa: PLC0415

        # The application under test may have closed the client.
        with contextlib.suppress(ClientClosedError):
            await self.client.aclose()
