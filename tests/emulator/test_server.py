"""Tests of the emulator on a socket: start, stop, and broken connections."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from emulator_wire import TOKEN

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator

EVENT = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}


def post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(url, trust_env=False, **{"json": [EVENT], **options})


def test_server_runs_without_event_loop() -> None:
    emulator = Emulator()
    threads = threading.active_count()
    with emulator.serve() as server:
        assert post(f"{server.url}/track").text == "1"
        assert post(f"{server.url}/nowhere").status_code == 404
        assert httpx.put(f"{server.url}/track", trust_env=False).status_code == 405
        url = server.url
    with pytest.raises(RuntimeError):
        _ = server.url
    with pytest.raises(httpx.ConnectError):
        post(f"{url}/track")
    assert threading.active_count() == threads
    assert len(emulator.events()) == 1


@pytest.mark.anyio
async def test_server_runs_with_either_event_loop() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.serve() as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        for _ in range(3):
            assert (await http.post("/track", json=[EVENT])).text == "1"
    assert len(emulator.events()) == 3


def test_start_and_close_can_be_called_directly() -> None:
    emulator = Emulator()
    server = emulator.serve()
    server.close()
    server.start()
    with pytest.raises(RuntimeError):
        server.start()
    first = server.url
    assert first.startswith("http://127.0.0.1:")
    server.close()
    server.close()
    with server:
        assert post(f"{server.url}/track").text == "1"


def test_port_in_use_raises() -> None:
    with Emulator().serve() as server:
        port = int(server.url.rpartition(":")[2])
        again = Emulator().serve(port=port)
        with pytest.raises(OSError, match="in use"):
            again.start()
        again.close()
        assert post(f"{server.url}/track").text == "1"


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_ipv6_loopback_is_supported() -> None:
    server = Emulator().serve("::1")
    try:
        server.start()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with_host = server.url
    try:
        assert with_host.startswith("http://[::1]:")
        assert post(f"{with_host}/track").text == "1"
    finally:
        server.close()


def test_non_loopback_address_requires_allow_remote() -> None:
    with Emulator().serve("0.0.0.0", allow_remote=True) as server:
        port = server.url.rpartition(":")[2]
        # The client accepts plain http only for a loopback address.
        assert server.url == f"http://127.0.0.1:{port}"
        assert post(f"{server.url}/track").text == "1"


@pytest.mark.parametrize("apply", [False, True])
def test_dropped_connection_closes_without_response(apply: bool) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.drop_connections(apply=apply)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            post(f"{server.url}/track")
        assert len(emulator.events()) == int(apply)
        assert post(f"{server.url}/track").text == "1"


def test_server_stops_at_once_during_latency(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    emulator.latency = 3600.0
    outcome: list[Exception] = []
    stored = threading.Event()

    def ask(url: str) -> None:
        try:
            post(f"{url}/track", timeout=None)
        except httpx.TransportError as error:
            outcome.append(error)

    with emulator.serve() as server:
        client = threading.Thread(target=ask, args=(server.url,))
        client.start()
        while not emulator.requests():
            stored.wait(0.001)
    client.join()
    assert len(outcome) == 1
    assert caplog.records == []


def test_server_changes_neither_signals_nor_logging(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(log.level, log.handlers, log.propagate) for log in loggers]
    with caplog.at_level(logging.DEBUG), Emulator().serve() as server:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        post(f"{server.url}/track")
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"this is no HTTP\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert [(log.level, log.handlers, log.propagate) for log in loggers] == before
    assert [record for record in caplog.records if record.name.startswith(("uvicorn", "mixpanel"))] == []
    assert capfd.readouterr().err == ""


def test_disconnect_during_body_is_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"POST /track HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n[")
        assert post(f"{server.url}/track").text == "1"
    assert len(emulator.requests()) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [0.0, -7_200.0, 864_000.0])
def test_every_response_has_the_date_of_the_emulator(error: float) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        response = post(f"{server.url}/_emulator/clock-error", json={"seconds": error})
        assert response.status_code == 200
        for path in ("/track", "/nowhere", "/_emulator/reset", "/api/2.0/engage", "/import"):
            response = post(f"{server.url}{path}")
            assert response.headers.get_list("date") == [response.headers["date"]]
            date = parsedate_to_datetime(response.headers["date"]).timestamp()
            assert date == pytest.approx(time.time() + error, abs=10.0)
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
            raw.sendall(b"this is no HTTP\r\n\r\n")
            assert b"\r\ndate: " in raw.recv(1000)


def test_clock_that_has_no_date_is_left_out() -> None:
    with Emulator(now=lambda: -1.0).serve() as server:
        assert "date" not in httpx.get(f"{server.url}/nowhere", trust_env=False).headers


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e10, -1e10])
def test_impossible_clock_error_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be"):
        Emulator().set_clock_error(seconds)


# Takes four seconds. `tests/delivery/test_wrong_clock.py` corrects clocks on both event loops.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_client_corrects_its_clock_by_the_emulator() -> None:
    emulator = Emulator()
    emulator.set_clock_error(7_200.0)
    async with emulator.serve() as server, AsyncMixpanel(TOKEN, api_host=server.url) as mp:
        with anyio.fail_after(20.0):
            while True:
                await anyio.sleep(0.2)
                await mp.track("u", "Viewed")
                await mp.flush()
                ahead = emulator.events()[-1]["properties"]["time"] / 1000 - time.time()
                if abs(ahead - 7_200.0) < 5.0:
                    break


def test_large_body_is_refused_with_readable_response() -> None:
    with Emulator().serve() as server:
        assert post(f"{server.url}/track", json=None, content=b" " * 40_000_000).status_code == 413


@pytest.mark.anyio
async def test_inspection_works_during_ingestion() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    seen: list[int] = []
    async with emulator.serve() as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:

        async def send() -> None:
            for _ in range(5):
                await http.post("/track", json=[EVENT] * 10)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(send)
            while not seen or seen[-1] < 150:
                seen.append(len(emulator.events()))
                await anyio.lowlevel.checkpoint()
    assert seen[-1] == 150
    assert seen == sorted(seen)
    assert all(count % 10 == 0 for count in seen)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_missing_extra_is_named_in_error(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "try: import mixpanel_async.emulator\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install ".[emulator]"' in done.stdout
