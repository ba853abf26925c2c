"""Row G17: errors name the cause in plain words, and never a URL, a credential or a payload."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import resource
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from misbehaving import (
    AUTHORITY,
    OTHER_AUTHORITY,
    Peer,
    answer,
    cut,
    hang,
    reset,
    serving,
    socks_refuse,
    socks_wants_credentials,
    wrong_certificate,
)

from mixpanel_async import AsyncMixpanel, RetryPolicy, TransportError

pytestmark = pytest.mark.sample(every=3)

CANARY = "canary-of-a-secret"
INTERNAL = re.compile(r"cancel scope|0x|7f[0-9a-f]{6}|\d\.\d{3}|Errno|_ssl\.c|://|All connection attempts|Cancelled")


def _status(status: int, reason: str = CANARY) -> Any:
    return answer(f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode())


class Cause(NamedTuple):
    """Cause of a failure.

    Args:
        misbehave: what the peer does.
        reason: pattern of the reason in the error.
        rest: pattern of what follows, with the own pool alone: the phase, or the variable.
        proxy: kind of the proxy; empty for none.
    """

    misbehave: Any
    reason: str
    rest: str = ""
    proxy: str = ""


TRUST = "; trusted certificates of SSL_CERT_FILE"
PROXY = "; proxy of ALL_PROXY"
LATE = r"no connection to [a-z.]+(:\d+)? within 0.5 s"
PEERS = {
    "untrusted certificate": Cause(
        wrong_certificate("localhost", authority=OTHER_AUTHORITY),
        r"no connection to localhost:\d+ \(ConnectError: certificate verify failed: unable to get local issuer",
        f" certificate{TRUST}",
    ),
    "certificate of another host": Cause(
        wrong_certificate("other.test", authority=AUTHORITY),
        "certificate verify failed: Hostname mismatch, certificate is not valid for 'localhost'",
        TRUST,
    ),
    "no TLS": Cause(answer(b"HTTP/1.1 400 Bad\r\n\r\n"), "ConnectError: TLS failed: (wrong version|record layer)"),
    "handshake cut": Cause(cut, "ConnectError: the TLS connection was closed"),
    "handshake reset": Cause(reset, "ConnectError: Connection reset by peer"),
    "handshake hangs": Cause(hang, LATE, r" \(in the TLS handshake\)"),
    "proxy hangs": Cause(hang, LATE, rf" \(waiting for the proxy{PROXY}\)", "http"),
    "proxy cuts": Cause(cut, "the connection ended early, or the response was not HTTP", PROXY, "http"),
    "proxy wants credentials": Cause(
        _status(407), "the proxy refused the tunnel with status 407, so it wants other credentials", PROXY, "http"
    ),
    "proxy refuses": Cause(_status(403), "the proxy refused the tunnel with status 403", PROXY, "http"),
    "SOCKS proxy refuses": Cause(
        socks_refuse, "ProxyError: Proxy Server could not connect: Connection refused.", PROXY, "socks5"
    ),
    "SOCKS proxy wants credentials": Cause(
        socks_wants_credentials, "ProxyError: Requested NO AUTH.* but got NO ACCEPTABLE METHODS", f".{PROXY}", "socks5"
    ),
}


def _client(origin: str, **options: Any) -> AsyncMixpanel:
    return AsyncMixpanel(
        "token",
        api_host=origin,
        allow_http=True,
        **{
            "identity_retry": RetryPolicy(attempts=1, total_timeout=0.5),
            "timeout": 10.0,
            "shutdown_timeout": 0.1,
            **options,
        },
    )


async def _error(mp: AsyncMixpanel) -> str:
    async with mp:
        with pytest.raises(TransportError) as caught:
            await mp.alias(f"new-{CANARY}", "old")
    text = str(caught.value)
    assert INTERNAL.search(text) is None, text
    assert CANARY not in f"{text} {caught.value!r} {mp.stats()}"
    return text


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    bundle = tmp_path / CANARY
    AUTHORITY.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    return str(bundle)


def _addresses(cause: Cause, port: int) -> tuple[str, str | None]:
    """Return the origin and the URL of the proxy."""
    if not cause.proxy:
        return f"https://localhost:{port}", None
    login = "" if cause.proxy == "socks5" else f"user:{CANARY}@"
    return "https://mixpanel.test", f"{cause.proxy}://{login}localhost:{port}"


@pytest.mark.anyio
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.usefixtures("trusted")
async def test_g17_failure_of_a_peer_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = PEERS[name]
    async with serving(Peer(cause.misbehave, limit=1_000)) as peer:
        origin, proxy = _addresses(cause, peer.port)
        if proxy:
            monkeypatch.setenv("ALL_PROXY", proxy)
        text = await _error(_client(origin))
        assert re.search(cause.reason + cause.rest, text), text


@pytest.mark.anyio
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_g17_failure_of_a_peer_is_named_with_a_users_client(name: str, trusted: str) -> None:
    cause = PEERS[name]
    async with serving(Peer(cause.misbehave, limit=1_000)) as peer:
        origin, proxy = _addresses(cause, peer.port)
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=trusted), proxy=proxy) as http_client:
            text = await _error(_client(origin, http_client=http_client))
        assert re.search(cause.reason, text), text
    gc.collect()


@contextlib.contextmanager
def _no_descriptors() -> Any:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.anyio
@pytest.mark.parametrize("is_open", [True, False], ids=["pool_open", "pool_not_open"])
@pytest.mark.usefixtures("trusted")
async def test_g17_missing_file_descriptor_is_named(is_open: bool) -> None:
    mp = _client("https://127.0.0.1:1")
    if is_open:
        await mp.start()
    with _no_descriptors(), pytest.raises(TransportError) as caught:
        await mp.alias("new", "old")
    await mp.aclose()
    assert "Too many open files" in str(caught.value)
    assert INTERNAL.search(str(caught.value)) is None


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_g17_reason_of_the_system_is_named(number: int, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = anyio.connect_tcp

    async def fail(*args: Any, **options: Any) -> Any:
        """Fail as anyio does, which hides the reason in the cause."""
        if number == errno.ECONNREFUSED:
            return await connect(*args, **options)
        raise OSError("All connection attempts failed") from OSError(number, f"[Errno {number}] call failed")

    monkeypatch.setattr(anyio, "connect_tcp", fail)
    assert f"(ConnectError: {os.strerror(number)})" in await _error(_client(f"http://{host}:1"))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["unknown", "hangs"])
async def test_g17_name_that_cannot_be_resolved_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_released = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        if kind == "hangs":
            is_released.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    text = await _error(_client("https://mixpanel.test"))
    is_released.set()
    expected = {
        "unknown": "(ConnectError: the name cannot be resolved: Name or service not known)",
        "hangs": "no connection to mixpanel.test within 0.5 s (looking up the name)",
    }
    assert expected[kind] in text


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_g17_missing_package_is_named_with_the_variable(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:{CANARY}@127.0.0.1:1")
    text = await _error(_client("https://mixpanel.test"))
    assert "ALL_PROXY names a SOCKS proxy, which needs a package: pip install 'httpx[socks]'" in text


@pytest.mark.anyio
async def test_g17_module_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mixpanel_async._http.connection", None)
    text = await _error(_client("http://127.0.0.1:1"))
    assert "ModuleNotFoundError: the package mixpanel_async._http.connection cannot be imported" in text


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [0.0421, 0.26, 0.5, 1.04, 1.2])
@pytest.mark.parametrize("is_own", [True, False], ids=["own_pool", "user_client"])
async def test_g17_time_limit_is_rounded(limit: float, is_own: bool) -> None:
    """The time that is left of a call is a little shorter than its limit."""
    async with serving(Peer(hang, limit=1_000)) as peer, httpx.AsyncClient() as http_client:
        mp = _client(
            f"http://127.0.0.1:{peer.port}",
            http_client=None if is_own else http_client,
            identity_retry=RetryPolicy(attempts=1, total_timeout=limit),
        )
        text = await _error(mp)
    # On a busy machine, the connection may take all the time.
    shown = re.search(r"no (?:complete response|connection to \S+) within ([0-9.]+) s", text)
    assert shown, text
    assert len(shown[1]) <= 4
    assert abs(float(shown[1]) - limit) <= limit * 0.2


@pytest.mark.anyio
@pytest.mark.parametrize(
    "raised",
    [
        httpx.ConnectError(f"cannot reach https://user:{CANARY}@mixpanel.test/track?distinct_id={CANARY}"),
        httpx.ReadError(f"cut: /track?token={CANARY}"),
        httpx.RemoteProtocolError(f"illegal line {CANARY}"),
        httpx.ProxyError(f"407 {CANARY}"),
        RuntimeError(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_g17_text_of_a_users_client_shows_no_url(raised: Exception) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise raised

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as http_client:
        await _error(_client("https://mixpanel.test", http_client=http_client))
