"""Tests of https beside http: certificates, their directory, and TLS connections."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from emulator_wire import TOKEN

import mixpanel_async.emulator.http.server
from mixpanel_async import AsyncMixpanel, RetryPolicy, TransportError
from mixpanel_async.emulator import Emulator, Server, Tls, TlsError
from mixpanel_async.flags import LocalFlags, RemoteFlags, SelectedVariant

EVENT = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tls"


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    with Emulator().serve(tls=Tls(directory=directory), allow_hosts=["emulator", "mixpanel.test"]) as server:
        yield server


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=10)


def connect_tls(server: Server, name: str = "localhost") -> ssl.SSLSocket:
    """Connect as a client that checks that the certificate is valid for `name`."""
    with connect(server) as plain:
        return trusting(server.ca_file).wrap_socket(plain, server_hostname=name)


def served_certificate(server: Server, name: str) -> bytes:
    with connect_tls(server, name) as secure:
        return secure.getpeercert(binary_form=True) or b""


def exchange(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


def request_bytes(body: bytes = b"[]", *, close: bool = True) -> bytes:
    head = f"POST /track HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body


# Connections


def test_http_and_https_share_a_port(server: Server) -> None:
    assert server.https_url == f"https://localhost:{port_of(server)}"
    with httpx.Client(verify=trusting(server.ca_file), trust_env=False) as http:
        for url in (server.url, server.https_url):
            for _ in range(3):
                assert http.post(f"{url}/track", json=[EVENT]).text == "1"
            assert http.post(f"{url}/_emulator/reset", headers={"origin": url}).status_code == 200
            other = url.replace("https", "http") if "https" in url else url.replace("http", "https")
            assert http.post(f"{url}/_emulator/reset", headers={"origin": other}).status_code == 403


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "emulator", "mixpanel.test"])
def test_certificate_and_host_check_accept_a_name(server: Server, name: str) -> None:
    assert served_certificate(server, name)
    host = f"[{name}]" if ":" in name else name
    assert httpx.get(f"{server.url}/_emulator/stats", headers={"host": host}, trust_env=False).status_code == 200


def test_other_names_are_refused(server: Server) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        served_certificate(server, "other.test")
    response = httpx.get(f"{server.url}/_emulator/stats", headers={"host": "other.test"}, trust_env=False)
    assert response.status_code == 403


def test_listening_address_is_in_the_certificate(directory: Path) -> None:
    with Emulator().serve("127.0.0.2", tls=Tls(directory=directory)) as server:
        assert server.https_url == f"https://127.0.0.2:{port_of(server)}"
        response = httpx.get(f"{server.https_url}/_emulator/stats", verify=trusting(server.ca_file), trust_env=False)
        assert response.status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_tls_may_arrive_in_pieces(server: Server, version: ssl.TLSVersion, size: int) -> None:
    context = trusting(server.ca_file)
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def run(step: Callable[[], Any]) -> Any:
        while True:
            with suppress(ssl.SSLWantReadError):
                return step()
            send()
            incoming.write(connection.recv(65_536))

    def send() -> None:
        data = outgoing.read()
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])

    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        run(tls.do_handshake)
        tls.write(request_bytes())
        send()
        answer = b""
        while data := run(lambda: tls.read(65_536)):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_large_bodies_and_responses_pass(server: Server) -> None:
    events = [{"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u", "x": "y" * 250}}] * 2_000
    with httpx.Client(base_url=server.https_url, verify=trusting(server.ca_file), trust_env=False) as http:
        for _ in range(3):
            assert http.post("/track", json=events).text == "1"
        assert len(http.get("/_emulator/events", params={"limit": 6_000}).json()) == 6_000


def test_early_refusal_reaches_a_client_that_still_sends(server: Server) -> None:
    head = b"POST /track HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
    with connect_tls(server) as secure:
        assert exchange(secure, head + b"x" * 200_000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "garbage", [b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x16" * 500, b"\x16GET / HTTP/1.1\r\n\r\n"], ids=repr
)
def test_malformed_handshake_ends_only_its_connection(server: Server, garbage: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    assert served_certificate(server, "localhost")


def test_handshake_without_end_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixpanel_async.emulator.http.server, "_HEAD_SECONDS", 0.1)
    for start in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"):
        with connect(server) as connection:
            connection.sendall(start)
            assert connection.recv(1) == b""
    with connect_tls(server) as secure:
        assert secure.recv(1) == b""


def test_live_stream_over_https(server: Server) -> None:
    verify = trusting(server.ca_file)
    with httpx.stream("GET", f"{server.https_url}/_emulator/stream", verify=verify, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry")
        httpx.post(f"{server.url}/track", json=[EVENT], trust_env=False)
        assert any("Viewed" in line for line in lines)


def test_refused_certificate_leaves_the_server_working(server: Server) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.https_url, trust_env=False)
    assert httpx.get(server.https_url, verify=trusting(server.ca_file), trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("has_tls", "status", "reason"), [(True, None, "does not trust the certificate"), (False, 400, "--tls")]
)
def test_log_says_why_https_failed(has_tls: bool, status: int | None, reason: str, directory: Path) -> None:
    emulator = Emulator()
    with emulator.serve(tls=Tls(directory=directory) if has_tls else False) as server:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://localhost:{port_of(server)}/", verify=ssl.create_default_context(), trust_env=False)
        # The server has closed the connection of the failed request before it closes.
        httpx.get(f"{server.url}/_emulator/stats", trust_env=False)
    (entry,) = emulator.request_log().entries
    assert (entry.method, entry.path, entry.status) == ("", "", status)
    assert reason in entry.reason


def test_log_has_malformed_requests() -> None:
    emulator = Emulator()
    with emulator.serve() as server, socket.create_connection(("127.0.0.1", port_of(server))) as raw:
        assert exchange(raw, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    (entry,) = emulator.request_log().entries
    assert (entry.method, entry.path, entry.status) == ("", "", 400)
    assert entry.reason


def test_cut_connections_end_tls_connections(directory: Path) -> None:
    with Emulator().serve(tls=Tls(directory=directory)) as server:
        with connect_tls(server) as secure:
            secure.sendall(request_bytes(close=False))
            assert secure.recv(12) == b"HTTP/1.1 200"
            server.cut_connections()
            with pytest.raises((ConnectionError, ssl.SSLError)):  # noqa: PT012  the first writes may succeed
                while True:
                    secure.sendall(request_bytes(close=False))
        assert served_certificate(server, "localhost")


@pytest.mark.anyio
async def test_client_and_flags_work_over_https(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator("original")
    emulator.set_flag("color", "green")
    fallback = SelectedVariant("red")
    async with emulator.serve(tls=Tls(directory=directory)) as server:
        async with AsyncMixpanel(TOKEN, api_host=server.https_url, identity_retry=RetryPolicy(attempts=1)) as mp:
            with pytest.raises(TransportError):
                await mp.alias("u", "visitor")
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
        flags: Any = {"local_flags": LocalFlags(), "remote_flags": RemoteFlags()}
        async with AsyncMixpanel(TOKEN, api_host=server.https_url, **flags) as mp:
            await mp.local_flags.wait_ready(timeout=10)
            context = {"distinct_id": "u"}
            local = mp.local_flags.get_variant("color", fallback, context, report_exposure=False)
            remote = await mp.remote_flags.get_variant("color", fallback, context, report_exposure=False)
            assert (local.variant_value, remote.variant_value) == ("green", "green")
            await mp.track("visitor", "Viewed")
            await mp.alias("u", "visitor")
            assert (await mp.flush()).delivered == 1
    assert emulator.cluster("u") == {"u", "visitor"}
    assert {event["event"] for event in emulator.events()} == {"Viewed", "$create_alias"}


def test_server_without_tls_has_no_https_address() -> None:
    with Emulator().serve() as server:
        assert (server.has_tls, server.ca_file) == (False, None)
        with pytest.raises(RuntimeError, match="tls=True"):
            server.https_url  # noqa: B018
    with pytest.raises(RuntimeError, match="not running"):
        server.url  # noqa: B018


# The authority


def test_authority_is_kept_and_certificate_is_renewed_at_each_start(directory: Path) -> None:
    found = []
    for _ in range(2):
        with Emulator().serve(tls=Tls(directory=directory)) as server:
            assert server.ca_file == directory / "ca.pem"
            found.append((server.ca_file.read_bytes(), served_certificate(server, "localhost")))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    valid = x509.load_der_x509_certificate(found[1][1])
    assert (valid.not_valid_after_utc - valid.not_valid_before_utc).days < 825


def test_default_directory_is_in_the_data_directory_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with Emulator().serve(tls=True) as server:
        assert server.ca_file is not None
        assert tmp_path in server.ca_file.parents
        assert server.ca_file.parts[-3:] == ("mixpanel-async", "tls", "ca.pem")


def test_concurrent_first_starts_share_an_authority(directory: Path) -> None:
    servers = [Emulator().serve(tls=Tls(directory=directory)) for _ in range(6)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        for server in servers:
            assert served_certificate(server, "localhost")
    finally:
        for server in servers:
            server.close()
    assert sorted(path.name for path in directory.iterdir()) == ["authority.pem", "ca.pem"]


@pytest.mark.parametrize(("days", "is_kept"), [(-1, False), (1, False), (390, False), (500, True)])
def test_authority_is_renewed_before_it_expires(directory: Path, days: int, is_kept: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    today = dt.datetime.now(dt.timezone.utc)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    old = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(today - dt.timedelta(days=30))
        .not_valid_after(today + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = old.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    directory.mkdir(mode=0o700)
    (directory / "authority.pem").write_bytes(pem + secret)
    (directory / "authority.pem").chmod(0o600)
    with Emulator().serve(tls=Tls(directory=directory)) as server:
        assert served_certificate(server, "localhost")
        assert server.ca_file is not None
        assert (server.ca_file.read_bytes() == pem) is is_kept


def test_files_are_private(server: Server, directory: Path) -> None:
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "authority.pem": 0o600,
        "ca.pem": 0o600,
    }


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        (".", 0o777, "other users can write to"),
        (".", 0o770, "other users can write to"),
        ("authority.pem", 0o602, "other users can write to"),
        ("authority.pem", 0o644, "other users can read the key"),
    ],
)
def test_directory_open_to_others_is_refused(directory: Path, name: str, mode: int, words: str) -> None:
    with Emulator().serve(tls=Tls(directory=directory)):
        pass
    (directory / name).chmod(mode)
    with pytest.raises(TlsError, match=f"{words}.*{mode:04o}"):
        Emulator().serve(tls=Tls(directory=directory)).start()


def test_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    foreign = Path("/")
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12_345, -1)
    with pytest.raises(TlsError, match=r"belongs to another user \(uid"):
        Emulator().serve(tls=Tls(directory=foreign)).start()


def test_symbolic_link_in_place_of_the_authority_is_refused(directory: Path, tmp_path: Path) -> None:
    with Emulator().serve(tls=Tls(directory=directory)):
        pass
    (directory / "authority.pem").rename(tmp_path / "elsewhere.pem")
    (directory / "authority.pem").symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(TlsError, match=r"cannot use .*authority\.pem"):
        Emulator().serve(tls=Tls(directory=directory)).start()


@pytest.mark.parametrize("keep", [0, 100, -10], ids=["empty", "no certificate", "no complete key"])
def test_damaged_authority_is_reported(directory: Path, keep: int) -> None:
    with Emulator().serve(tls=Tls(directory=directory)):
        pass
    path = directory / "authority.pem"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TlsError, match="delete it, and a new one is made"):
        Emulator().serve(tls=Tls(directory=directory)).start()


def test_unusable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TlsError, match=f"cannot use {path}"):
            Emulator().serve(tls=Tls(directory=path)).start()


@pytest.mark.parametrize("name", ["authority.pem", "ca.pem"])
def test_directory_in_place_of_a_file_is_reported(directory: Path, name: str) -> None:
    (directory / name).mkdir(parents=True)
    directory.chmod(0o700)
    with pytest.raises(TlsError, match=f"cannot use {directory}.*Is a directory"):
        Emulator().serve(tls=Tls(directory=directory)).start()


@pytest.mark.parametrize("module", ["platformdirs", "trustme"])
def test_missing_extra_is_reported(directory: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "\.\[tls\]"'):
        Emulator().serve(tls=Tls(directory=directory)).start()


@pytest.mark.parametrize("name", ["", "a b", "a@b", "10.0.0.0/8", "under_score", "-a", "a..b", "x" * 254, "*"])
def test_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allow_hosts must be host names"):
        Emulator().serve(allow_hosts=[name])


@pytest.mark.parametrize(
    "options",
    [{"allow_hosts": ["my--service"]}, {"allow_hosts": ["xn--123"]}, {"host": "under_score", "allow_remote": True}],
)
def test_name_that_no_certificate_can_have_is_reported(directory: Path, options: dict[str, Any]) -> None:
    server = Emulator().serve(**options, tls=Tls(directory=directory))
    with pytest.raises(TlsError, match="cannot be in a certificate"):
        server.start()


# Certificates from files


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Provide certificates and keys: of the server, of another one, encrypted, and nonsense."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    for name in ("server", "other"):
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    key = serialization.load_pem_private_key((tmp_path / "server.key").read_bytes(), None)
    (tmp_path / "encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    (tmp_path / "nonsense").write_text("nonsense")
    names = ("ca", "server.crt", "server.key", "other.key", "encrypted.key", "nonsense", "missing")
    return {name: tmp_path / name for name in names}


def test_certificate_from_files(files: dict[str, Path]) -> None:
    with Emulator().serve(tls=Tls(cert_file=files["server.crt"], key_file=files["server.key"])) as server:
        assert server.ca_file is None
        response = httpx.get(server.https_url, verify=trusting(files["ca"]), trust_env=False)
        assert response.status_code == 200


UNUSABLE = [
    ("missing", "server.key", "cannot use .*missing: No such file"),
    ("server.crt", "missing", "cannot use .*missing: No such file"),
    ("server.crt", "other.key", "other.key does not belong to the certificate in .*server.crt"),
    ("server.crt", "encrypted.key", "encrypted.key has a passphrase; use a key without one"),
    ("nonsense", "server.key", "must hold a certificate and its private key in PEM format"),
    ("server.crt", "nonsense", "must hold a certificate and its private key in PEM format"),
    ("ca", "nonsense", "must hold a certificate and its private key in PEM format"),
]


@pytest.mark.parametrize(("cert_file", "key_file", "words"), UNUSABLE)
def test_unusable_files_are_reported(files: dict[str, Path], cert_file: str, key_file: str, words: str) -> None:
    server = Emulator().serve(tls=Tls(cert_file=files[cert_file], key_file=files[key_file]))
    with pytest.raises(TlsError, match=words):
        server.start()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cert_file": "a"}, "key_file is missing"),
        ({"key_file": "a"}, "cert_file is missing"),
        ({"cert_file": "a", "key_file": "b", "directory": "c"}, "cannot be used with cert_file"),
        ({"directory": " "}, "directory must not be empty"),
    ],
)
def test_half_given_options_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tls(**options)
