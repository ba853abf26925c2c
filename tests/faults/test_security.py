"""Part G of the fault catalogue and the security checklist: leaks of secrets. Test names start with the row id."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import io
import logging
import pickle
import signal
import socket
import ssl
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
import trustme

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    Delivery,
    DropReason,
    IdMerge,
    LostRecord,
    MixpanelException,
    Overflow,
    RetryPolicy,
    ServiceAccountCredentials,
    SqliteSpool,
    TransportError,
)
from mixpanel_async.emulator import KINDS, Emulator, Server

TOKEN = "canaryT0ken+/5e5d0b6f3a"
PROJECT_SECRET = "canaryPr0ject+/91c7b2e4d8"
ACCOUNT_SECRET = "canaryAcc0unt+/7f3a9d2c6b"
ANON = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"


def _spellings(secret: str) -> set[str]:
    half = len(secret) // 2
    wrapped = (secret, f"{secret}:", f"account:{secret}", f"{secret[:half]}")
    encoded = {base64.b64encode(text.encode()).decode().rstrip("=") for text in wrapped}
    # The last characters of the encoded form depend on the following bytes.
    return {secret[:half], secret[half:], quote(secret, safe=""), *(text[:-2] for text in encoded)}


TESTS = Path(__file__).parent.parent
CANARIES = {spelling for secret in (TOKEN, PROJECT_SECRET, ACCOUNT_SECRET) for spelling in _spellings(secret)}


def _echo(request: httpx.Request) -> str:
    body = request.content
    if request.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    auth = request.headers.get("Authorization", "")
    plain = base64.b64decode(auth.removeprefix("Basic ")).decode() if auth else ""
    secrets = " ".join((TOKEN, quote(TOKEN, safe=""), auth, plain.strip(":"), plain.removeprefix("account:")))
    return f"no good: {secrets} {body.decode()[:50]}"


def _refusal(status: int) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        words = _echo(request)
        failed = [{"index": 0, "field": words, "message": words, "$insert_id": words}]
        body: dict[str, Any] = {"error": words, "status": 0, "code": status}
        if status == 400:
            body["failed_records"] = failed
        return httpx.Response(status, json=body, headers={"Retry-After": "0"})

    return answer


def _raises(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


RESPONSES: dict[str, Callable[[httpx.Request], httpx.Response] | str] = {
    **{f"HTTP {status}": _refusal(status) for status in (200, 302, 400, 401, 403, 404, 406, 413, 422, 429, 500, 503)},
    **{f"socket {kind}": kind for kind in KINDS},
    "raises": _raises(RuntimeError("the transport broke")),
    "connect error": _raises(httpx.ConnectError("refused")),
    "read time-out": _raises(httpx.ReadTimeout("slow")),
    "pool time-out": _raises(httpx.PoolTimeout("full")),
    "protocol error": _raises(httpx.RemoteProtocolError(f"illegal header line: {TOKEN} {ACCOUNT_SECRET}")),
    "garbage": lambda request: httpx.Response(200, text=_echo(request)),
    "page": lambda request: httpx.Response(200, html=f"<p>{TOKEN}</p>"),
    "large": lambda request: httpx.Response(200, content=TOKEN.encode() * 60_000),
}


class Observer:
    """Collects all output of the client: logs, warnings, errors, callbacks, reprs and files."""

    def __init__(self) -> None:
        self.text = io.StringIO()

    def note(self, *things: object) -> None:
        for thing in things:
            self.text.write(f"{thing!r} {thing}\n")

    def caught(self, error: BaseException) -> None:
        """Note an error like an error tracker: with local variables of all frames, causes and contexts."""
        seen: set[int] = set()
        chain: list[BaseException | None] = [error]
        while chain:
            one = chain.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            # Skip the frames of the tests, whose local variables hold the secrets.
            trace = one.__traceback__
            while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(TESTS):
                trace = trace.tb_next
            shown = traceback.TracebackException(type(one), one, trace, capture_locals=True)
            self.text.write("".join(shown.format()))
            self.note(vars(one), one.args)
            chain += [one.__cause__, one.__context__]
            # Errors of this package can be pickled.
            if isinstance(one, MixpanelException):
                self.note(pickle.loads(pickle.dumps(one)))

    def check(self) -> None:
        text = self.text.getvalue()
        hits = {canary for canary in CANARIES if canary in text}
        assert not hits, [text[max(0, text.index(hit) - 300) : text.index(hit) + 60] for hit in hits]


@pytest.fixture
def observer(capfd: pytest.CaptureFixture[str]) -> Iterator[Observer]:
    """Collect all logs at DEBUG, warnings, output and notes. At the end, check that they contain no secret."""
    observer = Observer()
    root = logging.getLogger()
    handler = logging.StreamHandler(observer.text)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)r"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield observer
        observer.note(*(str(warning.message) for warning in caught))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    output = capfd.readouterr()
    observer.text.write(output.out + output.err)
    observer.check()


async def _use(mp: AsyncMixpanel, observer: Observer) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: mp.track("user", "Event", {"text": "x" * 2_000}),
        lambda: mp.track_immediate("user", "Event"),
        lambda: mp.import_data(None, "user", "Event", 1_700_000_000, api_secret=PROJECT_SECRET),
        lambda: mp.people_set("user", {"a": 1}),
        lambda: mp.people_increment("user", {"a": 1}),
        lambda: mp.group_set("company", "acme", {"a": 1}),
        lambda: mp.alias("new", "old"),
        lambda: mp.identify("user", ANON),
        lambda: mp.merge(distinct_id1="a", distinct_id2="b", api_secret=PROJECT_SECRET),
        lambda: mp.flush(timeout=0.05),
    ]
    for call in calls:
        try:
            observer.note(await call())
        except MixpanelException as error:  # noqa: PERF203  each may fail
            observer.caught(error)
    observer.note(mp, mp.stats(), mp.bind(distinct_id="user"), vars(mp))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("signed", ["token", "account"])
@pytest.mark.parametrize("name", RESPONSES)
async def test_g1_no_secret_leaks_for_any_server_response(
    name: str, signed: str, observer: Observer, tmp_path: Path
) -> None:
    server = RESPONSES[name]

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        observer.note(records, reason)

    async def on_delivered(delivery: Delivery) -> None:
        observer.note(delivery)

    with_spool = len(name) % 3 == 0
    options: dict[str, Any] = {
        "credentials": ServiceAccountCredentials("account", ACCOUNT_SECRET, "12345") if signed == "account" else None,
        "retry": RetryPolicy(attempts=2, initial=0.0, maximum=0.0),
        "identity_retry": RetryPolicy(attempts=2, initial=0.0, maximum=0.0),
        "timeout": 0.03,
        "shutdown_timeout": 0.05,
        "on_drop": on_drop,
        "on_delivered": on_delivered,
        "spool": SqliteSpool(tmp_path / "spool") if with_spool else None,
    }
    async with _client(server, options) as mp:
        await _use(mp, observer)
        if with_spool:
            for file in list(tmp_path.iterdir()):  # noqa: ASYNC240  a few files
                observer.text.write(file.read_bytes().decode("latin-1"))


@asynccontextmanager
async def _client(server: Any, options: dict[str, Any]) -> AsyncIterator[AsyncMixpanel]:
    if isinstance(server, str):
        emulator = Emulator(IdMerge.ORIGINAL)
        emulator.break_next(server, times=1_000, seconds=0.01)  # type: ignore[arg-type]
        async with emulator.serve() as running, AsyncMixpanel(TOKEN, api_host=running.url, **options) as mp:
            yield mp
        return
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(server)) as http_client,
        AsyncMixpanel(TOKEN, http_client=http_client, **options) as mp,
    ):
        yield mp


class Unserializable:
    def __repr__(self) -> str:
        return "odd"


INVALID_CALLS: dict[str, Callable[[AsyncMixpanel], Any]] = {
    "property": lambda mp: mp.track("user", "Event", {"a": Unserializable()}),
    "surrogate": lambda mp: mp.track("user", "Event", {"a": "\ud800"}),
    "key": lambda mp: mp.track("user", "Event", {1: 1}),  # type: ignore[dict-item]
    "time": lambda mp: mp.track("user", "Event", time=float("nan")),
    "insert id": lambda mp: mp.track("user", "Event", insert_id="!"),
    "name": lambda mp: mp.track("user", ""),
    "size": lambda mp: mp.track("user", "Event", {"a": "x" * 1_000_000}),
    "meta": lambda mp: mp.track("user", "Event", None, {"event": 1}),
    "nowait": lambda mp: mp.track_nowait("user", "Event", {"a": Unserializable()}),
    "immediate": lambda mp: mp.track_immediate("user", "Event", {"a": Unserializable()}),
    "import": lambda mp: mp.import_data(None, "user", "Event", None, api_secret=PROJECT_SECRET),  # type: ignore[arg-type]
    "import property": lambda mp: mp.import_data(
        None, "u", "E", 1.7e9, {"a": Unserializable()}, api_secret=PROJECT_SECRET
    ),
    "import secret": lambda mp: mp.import_data(None, "u", "E", 1.7e9, api_secret=PROJECT_SECRET + "\n:"),
    "merge secret": lambda mp: mp.merge(distinct_id1="a", distinct_id2="b", api_secret=PROJECT_SECRET + ":"),
    "merge ids": lambda mp: mp.merge(distinct_id1="a", distinct_id2="a", api_secret=PROJECT_SECRET),
    "merge surrogate": lambda mp: mp.merge(None, "a\ud800", "b", None, PROJECT_SECRET),
    "merge meta": lambda mp: mp.merge(None, "a", "b", {"a": Unserializable()}, PROJECT_SECRET),
    "alias": lambda mp: mp.alias("", "old"),
    "alias surrogate": lambda mp: mp.alias("\ud800", "old"),
    "identify": lambda mp: mp.identify("user", "x"),
    "people": lambda mp: mp.people_set("user", {"a": Unserializable()}),
    "people id": lambda mp: mp.people_set("", {"a": 1}),
    "update": lambda mp: mp.people_update({"$distinct_id": "user"}),
    "group": lambda mp: mp.group_set("company", "", {"a": 1}),
    "flush": lambda mp: mp.flush(-1),
}


@pytest.mark.loops_in_turn
@pytest.mark.anyio
@pytest.mark.parametrize("name", INVALID_CALLS)
async def test_g1_traceback_of_a_refused_call_contains_no_secret(name: str, observer: Observer) -> None:
    async with Emulator(IdMerge.ORIGINAL).client(TOKEN) as mp:
        with pytest.raises(MixpanelException) as caught:
            await INVALID_CALLS[name](mp)
    observer.caught(caught.value)


@pytest.mark.anyio
async def test_g1_traceback_of_a_call_to_a_full_or_closed_client_contains_no_secret(observer: Observer) -> None:
    full = BatchPolicy(max_pending_events=1, linger=3600.0, wait_timeout=0.01)
    for overflow in (Overflow.RAISE, Overflow.WAIT):
        emulator = Emulator()
        emulator.fail_next(503, times=1_000, retry_after=300)
        mp = emulator.client(TOKEN, batching=full, overflow=overflow, shutdown_timeout=0.1)
        await mp.track("user", "Event")
        with pytest.raises(MixpanelException) as caught:
            await mp.track("user", "Event")
        observer.caught(caught.value)
        with pytest.raises(MixpanelException) as caught:
            await mp.people_set("user", {"a": 1})
        observer.caught(caught.value)
        with pytest.raises(MixpanelException) as caught:
            mp.track_nowait("user", "Event")
        observer.caught(caught.value)
        await mp.aclose()
        for name in ("property", "nowait", "alias", "people", "merge ids"):
            with pytest.raises(MixpanelException) as caught:
                await INVALID_CALLS[name](mp)
            observer.caught(caught.value)
        with pytest.raises(MixpanelException) as caught:
            await mp.track("user", "Event")
        observer.caught(caught.value)
        with pytest.raises(MixpanelException) as caught:
            await mp.alias("new", "old")
        observer.caught(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"region": "xx"},
        {"api_host": "http://evil.test"},
        {"api_host": f"https://{TOKEN}@evil.test"},
        {"timeout": -1},
        {"retry": None},
        {"on_drop": 5},
        {"before_send": 5},
        {"spool": 5},
        {"super_properties": {"a": Unserializable()}},
        {"credentials": ACCOUNT_SECRET},
    ],
    ids=lambda options: next(iter(options)),
)
def test_g1_traceback_of_a_refused_option_contains_no_secret(options: dict[str, Any], observer: Observer) -> None:
    with pytest.raises(MixpanelException) as caught:
        AsyncMixpanel(TOKEN, **options)
    if options not in ({"credentials": ACCOUNT_SECRET}, {"api_host": f"https://{TOKEN}@evil.test"}):
        observer.caught(caught.value)
    observer.note(str(caught.value))
    environment = {"MIXPANEL_TOKEN": TOKEN, "MIXPANEL_SERVICE_ACCOUNT_SECRET": ACCOUNT_SECRET}
    with pytest.raises(MixpanelException) as caught:
        AsyncMixpanel.from_env(environment)
    observer.caught(caught.value)
    environment = {"MIXPANEL_TOKEN": TOKEN, "MIXPANEL_REGION": "xx"}
    with pytest.raises(MixpanelException) as caught:
        AsyncMixpanel.from_env(environment)
    observer.caught(caught.value)


def test_g1_warning_of_an_unclosed_client_contains_no_secret(observer: Observer) -> None:
    async def main() -> None:
        mp = Emulator().client(TOKEN, batching=BatchPolicy(linger=3600.0))
        await mp.track("user", "Event")

    anyio.run(main)


# TLS


class TlsServer:
    """TLS server with a given certificate. Records every decrypted byte."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.context)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received = b""
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            plain.settimeout(5)
            try:
                with self.context.wrap_socket(plain, server_side=True) as connection:
                    while not self.received.endswith(b"]"):
                        self.received += connection.recv(65_536)
                    answer = b'{"status":1,"error":null}'
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
                    )
            except OSError:
                plain.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


AUTHORITY = trustme.CA()
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
CERTIFICATES: dict[str, Callable[[], trustme.LeafCert]] = {
    "good": lambda: AUTHORITY.issue_cert("localhost"),
    "unknown authority": lambda: trustme.CA().issue_cert("localhost"),
    "wrong host name": lambda: AUTHORITY.issue_cert("api.mixpanel.com"),
    "expired": lambda: AUTHORITY.issue_cert("localhost", not_after=LONG_AGO),
}


@pytest.mark.anyio
@pytest.mark.parametrize("certificate", CERTIFICATES)
async def test_g4_server_with_an_invalid_certificate_receives_nothing(
    certificate: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(str(bundle))
    # An operator configures a private certificate authority this way.
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    server = TlsServer(CERTIFICATES[certificate]())
    try:
        origin = f"https://localhost:{server.port}"
        async with AsyncMixpanel(TOKEN, api_host=origin, identity_retry=RetryPolicy(attempts=1), timeout=5.0) as mp:
            if certificate == "good":
                await mp.alias("new", "old")
                assert server.received.startswith(b"POST /track")
                return
            with pytest.raises(TransportError) as caught:
                await mp.alias("new", "old")
    finally:
        server.close()
    assert not caught.value.uncertain
    assert "certificate" in str(caught.value).lower() or "CERTIFICATE" in str(caught.value)
    assert server.received == b""


# Security checklist


@pytest.mark.anyio
async def test_s5_cookies_are_not_kept_and_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login stolen password stolen\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[dict[str, str]] = []
    emulator = Emulator(IdMerge.ORIGINAL)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})

        async def send_with_cookie(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", b"session=canary; Path=/")]
            await send(message)

        await emulator.app(scope, receive, send_with_cookie)

    async with (
        Server(app, "127.0.0.1", 0, allow_remote=False) as server,
        AsyncMixpanel("token", api_host=server.url) as mp,
    ):
        for number in range(3):
            await mp.alias(f"new-{number}", "old")
        await mp.merge(distinct_id1="a", distinct_id2="b")
    assert len(seen) == 4
    assert not [headers for headers in seen if "cookie" in headers]
    assert [headers.get("authorization") for headers in seen] == [
        None,
        None,
        None,
        "Basic " + base64.b64encode(b"token:").decode(),
    ]
    assert {headers["user-agent"] for headers in seen} == {seen[0]["user-agent"]}


def _endless(kind: str) -> Iterator[bytes]:
    if kind == "body":
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    if kind == "drip":
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        while True:
            yield b"x"
    if kind == "headers":
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"X-Header: " + b"x" * 60_000 + b"\r\n"
    packed = gzip.compress(b"\0" * 100_000_000, 9)
    yield b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed


# On trio, unfinished response generators of httpx cause a warning when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["body", "drip", "headers", "bomb"])
async def test_s10_endless_response_is_bounded_in_size_and_time(kind: str) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            try:
                for part in parts() if kind == "bomb" else _endless(kind):
                    await stream.send(part)
                    if kind == "drip":
                        await anyio.sleep(0.01)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    bomb = list(_endless("bomb")) if kind == "bomb" else []

    def parts() -> list[bytes]:
        return bomb

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    before = _rss()
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        origin = f"http://127.0.0.1:{port}"
        once = RetryPolicy(attempts=1)
        async with AsyncMixpanel("token", api_host=origin, timeout=1.0, identity_retry=once) as mp:
            with anyio.fail_after(10), pytest.raises(MixpanelException) as caught:
                await mp.alias("new", "old")
        tasks.cancel_scope.cancel()
    assert getattr(caught.value, "uncertain", True)
    assert _rss() - before < 64 * 1024 * 1024


def _rss() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.anyio
async def test_s13_running_client_registers_no_process_hooks() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers))
    emulator = Emulator()
    async with emulator.client() as mp:
        await mp.track("user", "Event")
        await mp.flush()
        assert handlers == {number: signal.getsignal(number) for number in handlers}
        assert hooks == (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers))
        assert logging.getLogger("mixpanel_async").level == logging.NOTSET
