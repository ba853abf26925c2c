"""Proxy and certificate variables of the environment: which are used, and what happens if they are wrong."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.abc
import httpx
import pytest
import trustme
from anyio.streams.tls import TLSListener
from http_server import read_request, until

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, TransportError
from mixpanel_async.emulator import Emulator

CANARY = "canary-of-a-secret"
DISCONNECTED = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
ANSWER = b'{"status":1,"error":null}'
AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return paths by name. Each contains the canary, so that a message that shows one is found."""
    folder = tmp_path_factory.mktemp("certificates") / CANARY
    made = {
        name: folder / name for name in ("good", "other", "garbage", "empty", "key", "folder", "hashed", "other hashed")
    }
    for name in ("folder", "hashed", "other hashed"):
        made[name].mkdir(parents=True)
    AUTHORITY.cert_pem.write_to_path(made["good"])
    OTHER_AUTHORITY.cert_pem.write_to_path(made["other"])
    made["key"].write_bytes(AUTHORITY.private_key_pem.bytes())
    made["garbage"].write_bytes(b"-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")
    made["empty"].touch()
    shutil.copy(made["good"], made["hashed"] / f"{_subject_hash(made['good'])}.0")
    shutil.copy(made["other"], made["other hashed"] / f"{_subject_hash(made['other'])}.0")
    return {
        **{name: str(path) for name, path in made.items()},
        "missing": str(folder / "missing"),
        "below a file": str(made["good"] / "child"),
    }


def _subject_hash(certificate: Path) -> str:
    if shutil.which("openssl") is None:
        return "unknown"
    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(certificate)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.asynccontextmanager
async def tls_server() -> AsyncIterator[str]:
    """Serve Mixpanel's answer to an accepted batch over TLS, on a certificate of `AUTHORITY`."""

    async def handle(stream: anyio.abc.ByteStream) -> None:
        with contextlib.suppress(*DISCONNECTED):
            async with stream:
                await read_request(stream)  # type: ignore[arg-type]
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
                await stream.send(head + ANSWER)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(TLSListener(listener, context, standard_compatible=False).serve, handle)
        yield f"https://localhost:{port}"
        tasks.cancel_scope.cancel()


def client(origin: str, http_client: httpx.AsyncClient | None = None) -> AsyncMixpanel:
    return AsyncMixpanel(
        "token",
        api_host=origin,
        batching=BatchPolicy(linger=0.0),
        retry=RetryPolicy(initial=0.01),
        identity_retry=RetryPolicy(attempts=1),
        shutdown_timeout=0.1,
        timeout=5.0,
        http_client=http_client,
    )


def own_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mixpanel_async"]


WRONG = [
    ("HTTPS_PROXY", f"http://user:{CANARY}@proxy.test:port"),
    ("HTTPS_PROXY", f"http://user:x#{CANARY}@proxy.test:80"),
    ("HTTPS_PROXY", f"ftp://user:{CANARY}@proxy.test"),
    ("HTTPS_PROXY", f"socks5://user:{CANARY}@127.0.0.1:1"),
    ("HTTPS_PROXY", f"http://user:{CANARY}@127.0.0.1:99999"),
    ("HTTPS_PROXY", f"http://user:{CANARY}@127.0.0.1:0"),
    ("HTTPS_PROXY", f"http://user:{CANARY}@127.0.0.1:1"),
    ("HTTPS_PROXY", f"https://user:{CANARY}@127.0.0.1:1"),
    ("HTTPS_PROXY", f"http://user:{CANARY}@{'x' * 80}.test"),
    ("HTTPS_PROXY", "http://::1:3128"),
    ("HTTPS_PROXY", "http://[::1"),
    ("HTTPS_PROXY", "http://"),
    ("HTTPS_PROXY", "://"),
    ("HTTPS_PROXY", f"http://{CANARY}\x01\n"),
    ("HTTPS_PROXY", f"http://{CANARY}\udcff"),
    ("https_proxy", f"http://{CANARY}:port"),
    ("ALL_PROXY", f"http://{CANARY}:port"),
    ("all_proxy", f"socks5h://{CANARY}:port"),
    ("SSL_CERT_FILE", "missing"),
    ("SSL_CERT_FILE", "below a file"),
    ("SSL_CERT_FILE", "folder"),
    ("SSL_CERT_FILE", "garbage"),
    ("SSL_CERT_FILE", "empty"),
    ("SSL_CERT_FILE", "key"),
    ("SSL_CERT_FILE", f"{CANARY}\udcff"),
    ("SSL_CERT_FILE", CANARY * 500),
    ("SSL_CERT_DIR", "missing"),
    ("SSL_CERT_DIR", "good"),
    ("REQUESTS_CA_BUNDLE", "missing"),
    ("REQUESTS_CA_BUNDLE", "garbage"),
    ("CURL_CA_BUNDLE", "missing"),
]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(("variable", "value"), WRONG, ids=[f"{one[0]}-{at}" for at, one in enumerate(WRONG)])
@pytest.mark.anyio
async def test_wrong_variable_is_named_and_keeps_the_records(
    variable: str,
    value: str,
    paths: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, paths.get(value, value))
    mp = client("https://localhost:1")
    async with mp:
        with pytest.raises(TransportError) as caught:
            await mp.alias("new", "old")
        await mp.track("user", "Event")
        await mp.people_increment("user", {"visits": 1})
        # One line for each lane.
        await until(lambda: sum(variable in line for line in own_lines(caplog)) == 2)
        assert (mp.stats().pending, mp.stats().uncertain) == (2, 0)
    assert variable in str(caught.value)
    assert not caught.value.uncertain
    assert CANARY not in f"{caught.value!r} {mp.stats()} {mp!r} {caplog.text}"


HARMLESS = [
    ({"HTTPS_PROXY": f"ftp://{CANARY}"}, 0),
    ({"ALL_PROXY": f"socks5://{CANARY}:port", "NO_PROXY": "localhost"}, 0),
    ({"HTTP_PROXY": f"http://{CANARY}:port", "NO_PROXY": "*"}, 0),
    ({"NO_PROXY": f"http://[{CANARY}"}, 0),
    ({"NO_PROXY": "fe80::1%eth0, [::1], ::1, fe80::/10, a:b, \x01, \udcff, a b"}, 1),
    ({"no_proxy": f"{CANARY}:port"}, 1),
    (dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"), ""), 0),
    (dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"), " "), 0),
    ({"SSL_CERT_FILE": CANARY, "SSL_CERT_DIR": CANARY, "REQUESTS_CA_BUNDLE": CANARY, "SSLKEYLOGFILE": CANARY + "/"}, 0),
]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(("variables", "warnings"), HARMLESS, ids=range(len(HARMLESS)))
@pytest.mark.parametrize("is_own", [True, False], ids=["own_pool", "user_client"])
@pytest.mark.anyio
async def test_variable_that_no_request_needs_is_harmless(
    is_own: bool,
    variables: dict[str, str],
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Emulator().serve() as server, httpx.AsyncClient() as http_client:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        origin = server.url.replace("127.0.0.1", "localhost")
        async with client(origin, http_client=None if is_own else http_client) as mp:
            await mp.alias("new", "old")
            await mp.track("user", "Event")
            assert (await mp.flush(timeout=5)).delivered == 1
    assert len(own_lines(caplog)) == (warnings if is_own else 0)
    assert all("o_proxy" in line.lower() for line in own_lines(caplog))
    assert CANARY not in caplog.text


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.anyio
async def test_records_are_delivered_once_the_proxy_is_corrected(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://proxy.test:port")
    async with Emulator().serve() as server, client(server.url) as mp:
        await mp.track("user", "Event")
        assert (await mp.flush(timeout=0.05)).pending == 1
        monkeypatch.delenv(variable)
        assert (await mp.flush(timeout=5)).delivered == 1


@pytest.mark.anyio
async def test_records_are_delivered_once_the_certificates_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    async with tls_server() as origin, client(origin) as mp:
        await mp.track("user", "Event")
        assert (await mp.flush(timeout=0.05)).pending == 1
        AUTHORITY.cert_pem.write_to_path(bundle)
        assert (await mp.flush(timeout=5)).delivered == 1


# Variables by path name, and the variable that an error must name; None if the server is trusted.
TRUST: list[tuple[dict[str, str], str | None]] = [
    ({}, ""),
    ({"SSL_CERT_FILE": "good"}, None),
    ({"SSL_CERT_DIR": "hashed"}, None),
    ({"SSL_CERT_DIR": "missing:hashed"}, None),
    ({"REQUESTS_CA_BUNDLE": "good"}, None),
    ({"REQUESTS_CA_BUNDLE": "hashed"}, None),
    ({"CURL_CA_BUNDLE": "good"}, None),
    ({"SSL_CERT_FILE": "other"}, "SSL_CERT_FILE"),
    ({"SSL_CERT_DIR": "folder"}, "SSL_CERT_DIR"),
    ({"REQUESTS_CA_BUNDLE": "other"}, "REQUESTS_CA_BUNDLE"),
    ({"SSL_CERT_FILE": "good", "SSL_CERT_DIR": "other hashed", "REQUESTS_CA_BUNDLE": "missing"}, None),
    ({"SSL_CERT_FILE": "other", "SSL_CERT_DIR": "hashed", "REQUESTS_CA_BUNDLE": "good"}, "SSL_CERT_FILE"),
    ({"SSL_CERT_DIR": "hashed", "REQUESTS_CA_BUNDLE": "other", "CURL_CA_BUNDLE": "missing"}, None),
    ({"SSL_CERT_DIR": "other hashed", "REQUESTS_CA_BUNDLE": "good"}, "SSL_CERT_DIR"),
    ({"REQUESTS_CA_BUNDLE": "good", "CURL_CA_BUNDLE": "other"}, None),
    ({"SSL_CERT_FILE": "", "SSL_CERT_DIR": " ", "REQUESTS_CA_BUNDLE": "good"}, None),
]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(("variables", "named"), TRUST, ids=range(len(TRUST)))
@pytest.mark.skipif(shutil.which("openssl") is None, reason="names of files in a certificate directory need openssl")
@pytest.mark.anyio
async def test_first_certificate_variable_replaces_the_default(
    variables: dict[str, str], named: str | None, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, ":".join(paths.get(part, part) for part in value.split(":")))
    async with tls_server() as origin, client(origin) as mp:
        if named is None:
            await mp.alias("new", "old")
            return
        with pytest.raises(TransportError) as caught:
            await mp.alias("new", "old")
    assert "certificate verify failed" in str(caught.value).lower()
    assert named in str(caught.value)
    assert ("trusted certificates of" in str(caught.value)) == bool(named)


@pytest.mark.parametrize("is_writable", [True, False])
@pytest.mark.anyio
async def test_key_log_is_written_or_ignored_with_one_warning(
    is_writable: bool, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key_log = Path(paths["folder"] if is_writable else paths["missing"]) / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
    monkeypatch.setenv("SSL_CERT_FILE", paths["good"])
    async with tls_server() as origin, client(origin) as mp:
        await mp.alias("new", "old")
        await mp.alias("newer", "old")
    assert key_log.exists() == is_writable
    assert ["SSLKEYLOGFILE" in line for line in own_lines(caplog)] == ([] if is_writable else [True])
    assert CANARY not in caplog.text


@pytest.mark.parametrize("is_own", [True, False], ids=["own_pool", "user_client"])
@pytest.mark.anyio
async def test_update_is_certain_to_be_unsent_if_the_proxy_refuses_the_tunnel(
    is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        with contextlib.suppress(*DISCONNECTED):
            async with stream:
                await read_request(stream)
                await stream.send(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy = f"http://user:{CANARY}@127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    if is_own:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    async with listener, anyio.create_task_group() as tasks, httpx.AsyncClient(proxy=proxy) as http_client:
        tasks.start_soon(listener.serve, handle)
        async with client("https://mixpanel.invalid", http_client=None if is_own else http_client) as mp:
            with pytest.raises(TransportError) as caught:
                await mp.alias("new", "old")
            await mp.people_increment("user", {"visits": 1})
            await until(lambda: mp.stats().requests >= 3)
            assert (mp.stats().pending, mp.stats().uncertain) == (1, 0)
        tasks.cancel_scope.cancel()
    assert not caught.value.uncertain
    assert ("HTTPS_PROXY" in str(caught.value)) == is_own
    assert CANARY not in str(caught.value)
