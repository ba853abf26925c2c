"""Hostile clients of the emulator: others are still answered, and its memory stays bounded."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import repeat
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import pytest

from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=4)

TOKEN: Final = "t"
EVENTS: Final = 40_000
# Many times what a well-behaved client waits, and less than a hostile one blocked it before there were limits.
PATIENCE: Final = 5.0
MAX_GROWTH: Final = 500_000_000
# The memory of a process is read from /proc.
HAS_PROC: Final = sys.platform == "linux"
COMMAND: Final = (sys.executable, "-c", "from mixpanel_async.cli import main; main()", "emulator")
EXPORT: Final = "GET /api/2.0/export?from_date=2020-01-01&to_date=2100-01-01"
BASIC: Final = "Authorization: Basic dDo="


class Served(NamedTuple):
    """Emulator in a process of its own.

    Args:
        port: port on 127.0.0.1.
        pid: process id.
        memory: resident bytes before the attacks.
    """

    port: int
    pid: int
    memory: int

    def resident(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8") if HAS_PROC else "VmRSS: 0"
        found = re.search(r"VmRSS:\s*(\d+)", text)
        assert found is not None
        return int(found[1]) * 1024


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode() + body


def event(number: int) -> dict[str, object]:
    properties = {"token": TOKEN, "distinct_id": f"u{number % 500}", "time": int(time.time()), "pad": "x" * 200}
    return {"event": "Viewed", "properties": {**properties, "$insert_id": str(number)}}


def client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=(TOKEN, ""), timeout=PATIENCE, trust_env=False)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    # Few sockets, so that thousands of connections are too many for it.
    limited = ("sh", "-c", 'ulimit -n 400; exec "$@"', "sh", *COMMAND) if HAS_PROC else COMMAND
    with subprocess.Popen(limited, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        one = Served(int(found[1]), process.pid, 0)
        try:
            with client(one.port) as http:
                for start in range(0, EVENTS, 2_000):
                    batch = [event(number) for number in range(start, start + 2_000)]
                    assert http.post("/import", json=batch, timeout=60.0).status_code == 200
            yield one._replace(memory=one.resident())
        finally:
            process.terminate()


class Hostile(NamedTuple):
    """Kind of hostile client.

    Args:
        number: number of connections.
        first: what each sends first.
        more: what each sends again and again afterwards; empty to send nothing.
        shuts: whether each closes its sending side after the first data.
        resets: whether each resets its connection after the first data, and connects again.
    """

    number: int
    first: bytes
    more: bytes = b""
    shuts: bool = False
    resets: bool = False


def post(length: str, body: bytes = b"") -> bytes:
    return request("POST /track", length, body=body)


GIGABYTE: Final = "Content-Length: 1000000000"
CHUNKED: Final = "Transfer-Encoding: chunked"
TRACK: Final = request("POST /track", "Content-Length: 2", body=b"[]")
HOSTILE: Final[dict[str, Hostile]] = {
    "reads no events": Hostile(60, request("GET /_emulator/events")),
    "reads no events of a person": Hostile(60, request("GET /_emulator/events?distinct_id=u1&limit=100000")),
    "reads no pipelined statistics": Hostile(60, request("GET /_emulator/stats") * 50),
    "reads no clusters": Hostile(60, request("GET /_emulator/clusters") * 20),
    "reads no export": Hostile(60, request(EXPORT, BASIC)),
    "reads no compressed export": Hostile(60, request(EXPORT, BASIC, "Accept-Encoding: gzip")),
    "reads no stream": Hostile(60, request("GET /_emulator/stream")),
    "reads no profiles": Hostile(60, request("GET /api/2.0/engage?page_size=10000", BASIC) * 20),
    "reads no pages": Hostile(50, request("GET /") * 1_000),
    "reads no results": Hostile(50, TRACK * 1_000),
    "sends requests and reads nothing": Hostile(20, TRACK, TRACK * 1_000),
    "declares 1 GB": Hostile(30, post(GIGABYTE)),
    "sends 1 GB": Hostile(20, post(GIGABYTE), bytes(65_536)),
    "sends 1 GB to no endpoint": Hostile(20, request("POST /nowhere", GIGABYTE), bytes(65_536)),
    "sends 1 GB to a page": Hostile(20, request("GET /", GIGABYTE), bytes(65_536)),
    "sends chunks without end": Hostile(20, post(CHUNKED), b"10000\r\n" + bytes(65_536) + b"\r\n"),
    "sends tiny chunks without end": Hostile(20, post(CHUNKED), b"1\r\nx\r\n" * 10_000),
    "never ends a large body": Hostile(20, post("Content-Length: 30000000", b" " * 29_000_000)),
    "never ends a small body": Hostile(250, post("Content-Length: 2", b"[")),
    "never ends a head": Hostile(250, b"POST /track HTTP/1.1\r\nX-"),
    "sends a head without end": Hostile(20, b"POST /track HTTP/1.1\r\nX-Long: ", b"x" * 65_536),
    "sends headers without end": Hostile(20, b"POST /track HTTP/1.1\r\n", b"X-Many: x\r\n" * 1_000),
    "sends no HTTP": Hostile(20, bytes(100_000), bytes(65_536)),
    "upgrades to WebSocket": Hostile(
        20, request("GET /_emulator/stream", "Upgrade: websocket", "Connection: Upgrade"), bytes(65_536)
    ),
    "expects 100-continue": Hostile(30, post(GIGABYTE).replace(b"\r\n", b"\r\nExpect: 100-continue\r\n", 1)),
    "half-closes after a request": Hostile(100, TRACK, shuts=True),
    "half-closes within a body": Hostile(100, post("Content-Length: 100", b"["), shuts=True),
    "half-closes an export": Hostile(60, request(EXPORT, BASIC), shuts=True),
    "resets": Hostile(100, request(EXPORT, BASIC), resets=True),
    "is idle": Hostile(600, b""),
}


class Attack:
    """Connections of hostile clients, which send from one thread."""

    def __init__(self, port: int, kind: Hostile) -> None:
        self._port = port
        self._kind = kind
        self._stop = threading.Event()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> None:
        for _ in range(self._kind.number):
            # The emulator may be busy with others, or refuse this one.
            with suppress(OSError):
                one = socket.create_connection(("127.0.0.1", self._port), timeout=0.5)
                self._sockets.append(one)
                self._begin(one)
                one.setblocking(False)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    def _begin(self, one: socket.socket) -> None:
        one.settimeout(0.5)
        one.sendall(self._kind.first)
        if self._kind.shuts:
            one.shutdown(socket.SHUT_WR)
        if self._kind.resets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.close()

    def _send(self) -> None:
        while self._kind.more and not self._stop.is_set():
            sent = 0
            for one in self._sockets:
                with suppress(OSError):
                    sent += one.send(self._kind.more)
            self._stop.wait(0.0 if sent else 0.01)


@pytest.mark.parametrize("name", HOSTILE)
def test_others_are_answered_and_memory_is_bounded(served: Served, name: str) -> None:
    peak = 0
    with client(served.port) as http, Attack(served.port, HOSTILE[name]):
        end = time.monotonic() + 0.7
        answers = 0
        while time.monotonic() < end or answers < 10:
            assert http.post("/track", json=[event(-1)]).text == "1"
            answers += 1
            peak = max(peak, served.resident())
        assert http.get("/").status_code == 200
        assert http.get("/_emulator/flags", timeout=20.0).json() == []
    assert peak - served.memory < MAX_GROWTH


def read_all(one: socket.socket) -> bytes:
    received = b""
    while data := one.recv(65_536):
        received += data
    return received


REFUSED: Final[dict[str, tuple[bytes, bytes, int]]] = {
    "declared": (post(GIGABYTE), b"", 413),
    "declared and begun": (post(GIGABYTE, b"[" * 1_000), b"", 413),
    "sent": (post(GIGABYTE), bytes(1_000_000), 413),
    "expected": (request("POST /import", GIGABYTE, "Expect: 100-continue"), b"", 413),
    "chunked": (post(CHUNKED), b"f4240\r\n" + bytes(1_000_000) + b"\r\n", 413),
    "to a query": (request("POST /api/2.0/engage", BASIC, GIGABYTE), bytes(1_000_000), 413),
    "to a control": (request("POST /_emulator/reset", GIGABYTE), bytes(1_000_000), 400),
    "to no endpoint": (request("POST /nowhere", GIGABYTE), bytes(1_000_000), 404),
    "with a wrong method": (request("PUT /track", GIGABYTE), bytes(1_000_000), 405),
    "head": (b"POST /track HTTP/1.1\r\nX-Long: ", b"x" * 1_000_000, 400),
    "no HTTP": (b"\0" * 100, bytes(1_000_000), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_body_is_answered_before_it_ends(name: str) -> None:
    first, more, status = REFUSED[name]
    with Emulator().serve() as server, socket.create_connection(("127.0.0.1", port_of(server.url)), 10.0) as one:
        one.sendall(first)
        # More than fits into the buffers of both sockets, so the emulator must read on after its response.
        for data in repeat(more, 60 if more else 0):
            one.sendall(data)
        answer = read_all_after(one)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()


def read_all_after(one: socket.socket) -> bytes:
    """Read the response and the end of the connection, which comes although the request does not end."""
    with suppress(ConnectionResetError):
        return read_all(one)
    pytest.fail("the connection was reset, and its response may be lost")


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_closed(one: socket.socket) -> bool:
    """Return whether the server has closed a connection, without waiting and without reading from it."""
    one.setblocking(False)
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def connections_of(url: str) -> int:
    """Return the number of established connections whose server side is this port."""
    port = f":{port_of(url):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in {"01", "08"} for row in rows)


@pytest.mark.skipif(not HAS_PROC, reason="reads /proc")
@pytest.mark.parametrize(
    "hostile",
    [
        request("GET /_emulator/events"),
        request("GET /_emulator/events") * 3,
        request("GET /_emulator/events", "Connection: close"),
        request(EXPORT, BASIC),
    ],
    ids=["asks", "pipelines", "asks to close", "exports"],
)
def test_client_that_does_not_read_is_disconnected(hostile: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpanel_async.emulator.http.connections.WRITE_SECONDS", 0.5, raising=False)
    emulator = Emulator()
    with emulator.serve() as server, ExitStack() as stack:
        with client(port_of(server.url)) as http:
            for start in range(0, 40_000, 2_000):
                assert http.post("/import", json=[event(number) for number in range(start, start + 2_000)]).is_success
        until(lambda: connections_of(server.url) == 0)
        one = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server.url))))
        one.sendall(hostile)
        until(lambda: connections_of(server.url) == 1)
        until(lambda: connections_of(server.url) == 0)


def test_connections_above_the_maximum_close_idle_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpanel_async.emulator.http.server._MAX_CONNECTIONS", 5)
    emulator = Emulator()
    emulator.break_next("hang")
    with emulator.serve() as server, ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server.url)), 10.0))

        busy = connect()
        busy.sendall(TRACK)
        until(lambda: len(emulator.requests()) == 1)
        idle = [connect() for _ in range(10)]
        until(lambda: sum(map(is_closed, idle)) == 6)
        assert not is_closed(busy)
        # The most recent one is not closed.
        idle[-1].setblocking(True)
        idle[-1].sendall(TRACK)
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 200")
