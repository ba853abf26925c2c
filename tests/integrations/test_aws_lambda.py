"""AWS Lambda: each invocation delivers before its handler returns, also after a frozen environment."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from forked_python import popen

from mixpanel_async import AsyncMixpanel, BatchPolicy, ConfigurationError, RetryPolicy
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.aws_lambda import MixpanelIntegration

PROGRAM = Path(__file__).with_name("lambda_program.py")
INVOCATIONS = 12
HANDLERS = ["plain", "coroutine"]
USER: ContextVar[str] = ContextVar("user")


class Context:
    """Context of an invocation.

    Args:
        milliseconds: time that the invocation has left.
    """

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def api_host(emulator: Emulator) -> Iterator[str]:
    with emulator.serve() as server:
        yield server.url


def integration(api_host: str, flush_timeout: float = 5.0, **options: Any) -> MixpanelIntegration:
    def make() -> AsyncMixpanel:
        return AsyncMixpanel("token", api_host=api_host, batching=BatchPolicy(linger=3600.0), **options)

    return MixpanelIntegration(make, flush_timeout=flush_timeout)


def handler_of(mixpanel: MixpanelIntegration, kind: str) -> Callable[[Any, Any], Any]:
    """Return a handler that tracks, and raises what it gets if that is an error."""
    if kind == "plain":

        @mixpanel.handler
        def plain(event: Any, context: Any) -> Any:
            """Docstring of the handler."""
            mixpanel.blocking.track("user", "Invoked", {"number": str(event)})
            if isinstance(event, Exception):
                raise event
            return event

        return plain

    @mixpanel.handler
    async def coroutine(event: Any, context: Any) -> Any:
        """Docstring of the handler."""
        await mixpanel.client.track("user", "Invoked", {"number": str(event)})
        if isinstance(event, Exception):
            raise event
        return event

    return coroutine


class Function:
    """Process of `lambda_program.py`.

    Args:
        handler: name of its handler.
        api_host: origin of the emulator.
        more: more variables of the environment.
    """

    def __init__(self, handler: str, api_host: str, **more: str) -> None:
        self.process = popen(
            [sys.executable, "-W", "error", str(PROGRAM), handler],
            env={**os.environ, "MIXPANEL_TOKEN": "token", "MIXPANEL_API_HOST": api_host, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            modules=(),
        )

    def invoke(self, event: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{event}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == f"{event}\n", self.process.communicate()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def function(request: pytest.FixtureRequest, api_host: str) -> Iterator[Function]:
    function = Function(request.param, api_host)
    yield function
    function.kill()


@pytest.mark.parametrize("function", HANDLERS, indirect=True)
def test_all_is_delivered_when_an_invocation_returns(function: Function, emulator: Emulator) -> None:
    emulator.latency = 0.03
    for number in range(INVOCATIONS):
        function.invoke(number)
        function.freeze()
        assert len(emulator.events("Invoked")) == number + 1
        assert (emulator.profile("user") or {})["invocations"] == number + 1
        function.thaw()


@pytest.mark.parametrize("handler", HANDLERS)
def test_connections_that_the_server_closed_meanwhile_are_replaced(handler: str) -> None:
    emulator = Emulator()
    port = 0
    function: Function | None = None
    for number in range(3):
        # The end of the server closes the idle connections of the frozen process.
        with emulator.serve(port=port) as server:
            port = int(server.url.rpartition(":")[2])
            function = function or Function(handler, server.url)
            function.thaw()
            function.invoke(number)
            function.freeze()
    assert function is not None
    function.kill()
    assert [event["properties"]["number"] for event in emulator.events("Invoked")] == [0, 1, 2]
    assert (emulator.profile("user") or {})["invocations"] == 3


@pytest.mark.parametrize("handler", HANDLERS)
def test_request_in_flight_while_frozen_is_applied_once(handler: str, emulator: Emulator, api_host: str) -> None:
    function = Function(handler, api_host, FLUSH_TIMEOUT="0.1")
    emulator.latency = 0.4
    function.invoke(0)
    function.freeze()
    emulator.latency = 0.0
    deadline = time.monotonic() + 10.0
    while (emulator.profile("user") or {}).get("invocations") != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    function.thaw()
    for number in (1, 2):
        function.invoke(number)
    function.process.communicate(timeout=10)
    assert sorted(event["properties"]["number"] for event in emulator.events("Invoked")) == [0, 1, 2]
    assert (emulator.profile("user") or {})["invocations"] == 3


@pytest.mark.parametrize("handler", HANDLERS)
def test_end_of_the_process_is_silent(handler: str, api_host: str) -> None:
    function = Function(handler, api_host)
    function.invoke(1)
    assert function.process.communicate(timeout=10) == ("", "")
    assert function.process.returncode == 0


@pytest.mark.parametrize("kind", HANDLERS)
def test_result_and_name_of_the_handler_are_unchanged(kind: str, api_host: str, emulator: Emulator) -> None:
    mixpanel = integration(api_host)
    handler = handler_of(mixpanel, kind)
    assert (handler.__name__, handler.__doc__) == (kind, "Docstring of the handler.")
    assert not inspect.iscoroutinefunction(handler)
    assert handler({"a": 1}, None) == {"a": 1}
    assert len(emulator.events("Invoked")) == 1
    mixpanel.blocking.close()


@pytest.mark.parametrize("kind", HANDLERS)
def test_error_of_the_handler_is_raised_after_delivery(kind: str, api_host: str, emulator: Emulator) -> None:
    mixpanel = integration(api_host)
    error = ValueError("of the handler")
    with pytest.raises(ValueError, match="of the handler") as raised:
        handler_of(mixpanel, kind)(error, None)
    assert raised.value is error
    assert len(emulator.events("Invoked")) == 1
    mixpanel.blocking.close()


@pytest.mark.parametrize("kind", HANDLERS)
def test_failed_delivery_does_not_fail_the_handler(
    kind: str, api_host: str, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    mixpanel = integration(api_host, flush_timeout=0.2, retry=RetryPolicy(initial=0.05, maximum=0.05))
    handler = handler_of(mixpanel, kind)
    emulator.fail_next(503, times=1_000_000)

    def logged() -> list[str]:
        return [
            one.getMessage()
            for one in caplog.records
            if getattr(one, "mixpanel", {}).get("event") == "flush_incomplete"
        ]

    assert (handler(1, None), handler(2, None)) == (1, 2)
    (line,) = logged()
    assert line.startswith(
        "1 record was not delivered at the end of an invocation; it waits in the queue; last error: "
    )
    emulator.stop_faults()
    assert handler(3, None) == 3
    assert len(emulator.events("Invoked")) == 3
    # The next failure is another episode.
    emulator.fail_next(503, times=1_000_000)
    handler(4, None)
    assert len(logged()) == 2
    emulator.stop_faults()
    mixpanel.blocking.close()


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize(("left", "expected"), [(400, 0.2), (0, 0.0), (-5, 0.0), (900_000, 0.6)])
def test_delivery_leaves_time_for_the_invocation(
    kind: str, left: int, expected: float, api_host: str, emulator: Emulator
) -> None:
    emulator.latency = 3.0
    mixpanel = integration(api_host, flush_timeout=0.6, shutdown_timeout=0.0)
    handler = handler_of(mixpanel, kind)
    began = time.monotonic()
    handler(1, Context(left))
    assert expected <= time.monotonic() - began < expected + 1.0
    emulator.latency = 0.0
    mixpanel.blocking.close()


@pytest.mark.parametrize("handler", HANDLERS)
def test_invocations_share_one_connection(handler: str) -> None:
    accepted: list[socket.socket] = []
    answer = b'{"error": "", "status": 1}'
    response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(answer),
        answer,
    )

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                accepted.append(connection)
                threading.Thread(target=answer_all, args=(connection,), daemon=True).start()

    def answer_all(connection: socket.socket) -> None:
        received = b""
        with connection:
            while data := connection.recv(65536):
                received += data
                head, separator, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if separator and length and len(body) >= int(length[1]):
                    received = b""
                    connection.sendall(response)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        mixpanel = integration(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for number in range(5):
            handler_of(mixpanel, handler)(number, None)
        assert mixpanel.client.stats().delivered == 5
        mixpanel.blocking.close()
        listener.shutdown(socket.SHUT_RDWR)
    assert len(accepted) == 1


def test_coroutine_handler_keeps_its_event_loop_and_context(api_host: str) -> None:
    mixpanel = integration(api_host)
    seen: list[tuple[asyncio.AbstractEventLoop, str]] = []

    @mixpanel.handler
    async def handler(event: object, context: object) -> None:
        seen.append((asyncio.get_running_loop(), USER.get()))

    for user in ("ada", "maya"):
        USER.set(user)
        handler(None, None)
    (first, one), (second, two) = seen
    assert first is second
    assert (one, two) == ("ada", "maya")
    mixpanel.blocking.close()


def test_invocation_that_tracks_nothing_sends_nothing(api_host: str, emulator: Emulator) -> None:
    mixpanel = integration(api_host)

    @mixpanel.handler
    def handler(event: int, context: object) -> int:
        return event

    assert handler(1, None) == 1
    assert not emulator.requests()
    mixpanel.blocking.close()


@pytest.mark.parametrize("kind", HANDLERS)
def test_replacement_is_used_inside_the_block(kind: str, emulator: Emulator) -> None:
    mixpanel = integration("http://127.0.0.1:9")
    client = emulator.client()
    with mixpanel.using(client):
        handler_of(mixpanel, kind)(1, None)
        assert mixpanel.client is client
        mixpanel.blocking.close()
    assert len(emulator.events("Invoked")) == 1
    mixpanel.blocking.close()


@pytest.mark.parametrize("kind", HANDLERS)
def test_disabled_client_starts_no_thread(kind: str) -> None:
    mixpanel = MixpanelIntegration(AsyncMixpanel("", enabled=False))
    before = threading.active_count()
    handler = handler_of(mixpanel, kind)
    assert handler(3, None) == 3
    if kind == "plain":
        assert threading.active_count() == before
    mixpanel.blocking.close()


def test_client_that_cannot_be_created_fails_in_the_init_phase() -> None:
    with pytest.raises(ConfigurationError, match="MIXPANEL_TOKEN"):
        MixpanelIntegration()


@pytest.mark.parametrize("timeout", [0, -1, 901, True, "1"])
def test_invalid_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"flush_timeout must be between 0\.001 and 900 seconds"):
        MixpanelIntegration(flush_timeout=timeout)


def test_invalid_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="client must be an AsyncMixpanel or a function"):
        MixpanelIntegration("token")  # type: ignore[arg-type]
