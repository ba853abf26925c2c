"""Tests of the host and origin checks, and of broken or hostile HTTP connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from emulator_wire import TOKEN, Wire
from hypothesis import given, settings
from hypothesis import strategies as st

import mixpanel_async.emulator.http.app
import mixpanel_async.emulator.http.server
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.http.control_api import CONTROLS, VIEWS
from mixpanel_async.emulator.project.export import EXPORT
from mixpanel_async.emulator.project.profile_query import QUERIES

EVENT = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}
PATHS = ["/", "/track", "/import", "/engage", "/groups", "/_emulator/events", "/api/2.0/export", "/nowhere"]


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(), served=True)


def test_in_process_requests_may_name_any_host() -> None:
    mixpanel = Wire(Emulator())
    assert mixpanel.request("POST", "/track", json=[EVENT], headers={"host": "api.mixpanel.com"}).text == "1"


@pytest.fixture
def port() -> Iterator[int]:
    """Provide the port of an emulator on a socket, and check afterwards that it still works."""
    emulator = Emulator()
    with emulator.serve() as server:
        yield int(server.url.rpartition(":")[2])
        assert httpx.post(f"{server.url}/track", json=[EVENT], trust_env=False).text == "1"
    assert len(emulator.events()) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:80",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "192.168.0.1",
        "attacker",
        "",
        "127.0.0.1@evil.test",
        "127.0.0.1:80:80",
        "127.0.0.1/",
        "[::1",
        "[evil.test]",
        "::1",
        "localhost evil.test",
        "emulator.local",
    ],
)
def test_foreign_host_is_refused(mixpanel: Wire, path: str, host: str) -> None:
    response = mixpanel.request("POST", path, json=[EVENT], headers={"host": host})
    assert response.status_code == 403
    assert response.json()["error"]
    assert response.json()["status"] == ("Forbidden" if path == "/import" else "error")
    assert mixpanel.emulator.requests() == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.8.9.1:1", "[::1]", "[::1]:80", "app.localhost", "localhost."],
)
def test_loopback_names_are_accepted(mixpanel: Wire, host: str) -> None:
    assert mixpanel.request("POST", "/track", json=[EVENT], headers={"host": host}).text == "1"


def test_every_host_header_must_be_allowed(mixpanel: Wire) -> None:
    headers = [("host", "127.0.0.1"), ("host", "evil.test")]
    assert mixpanel.request("GET", "/track", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("192.168.7.9:8080", 200),
        ("[fe80::1]", 200),
        ("mixpanel", 200),
        ("mixpanel.local", 200),
        ("host.docker.internal", 200),
        ("evil.test", 403),
        ("192.168.0.1.evil.test", 403),
    ],
)
def test_remote_access_still_refuses_public_host_names(host: str, status: int) -> None:
    with Emulator().serve("0.0.0.0", allow_remote=True) as server:
        port = server.url.rpartition(":")[2]
        response = httpx.get(f"http://127.0.0.1:{port}/_emulator/events", headers={"host": host}, trust_env=False)
    assert response.status_code == status


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "http://127.0.0.1:81", "https://127.0.0.1", "http://localhost"]
)
@pytest.mark.parametrize(
    ("method", "name"), [("GET", "events"), ("GET", "stream"), ("POST", "reset"), ("POST", "latency")]
)
def test_control_api_refuses_foreign_origin(mixpanel: Wire, origin: str, method: str, name: str) -> None:
    mixpanel.track("u")
    response = mixpanel.request(method, f"/_emulator/{name}", headers={"origin": origin})
    assert response.status_code == 403
    assert "origin" in response.json()["error"]
    assert len(mixpanel.emulator.events()) == 1


def test_control_api_accepts_own_page(mixpanel: Wire) -> None:
    headers = {"origin": "http://127.0.0.1:8080", "host": "127.0.0.1:8080"}
    assert mixpanel.request("POST", "/_emulator/reset", headers=headers).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_every_response_has_security_headers_and_no_cors(mixpanel: Wire, method: str, path: str) -> None:
    headers = {"access-control-request-method": "POST"}
    if not path.startswith("/_emulator"):
        headers["origin"] = "http://evil.test"
    response = mixpanel.request(method, path, headers=headers)
    assert response.headers["x-emulated-by"] == "mixpanel-async"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_planned_faults_and_errors_have_security_headers(mixpanel: Wire) -> None:
    mixpanel.emulator.fail_next(502)
    for status in (502, 200):
        response = mixpanel.request("POST", "/track", json=[EVENT])
        assert (response.status_code, response.headers["x-emulated-by"]) == (status, "mixpanel-async")


def test_page_loads_nothing_from_other_origins(mixpanel: Wire) -> None:
    page = mixpanel.request("GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    for name, media_type in (("app.js", "text/javascript"), ("style.css", "text/css")):
        response = mixpanel.request("GET", f"/{name}")
        assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
        assert "http://" not in response.text.replace("http://www.w3.org/", "")
    for path in ("/../app.py", "/..%2fapp.py", "/app.py", "/page/app.js", "/index.html%00"):
        assert mixpanel.request("GET", path).status_code == 404


ANYTHING = st.text(max_size=8) | st.sampled_from(["1", "-1", "u", "true", "/track", "2023-11-15", "[]", "status"])
NAMES = st.sampled_from(
    [
        "name", "limit", "distinct_id", "group_key", "group_id", "status", "times", "n", "seconds", "kind", "seed",
        "from_date", "to_date", "event", "where", "page", "page_size", "session_id", "output_properties", "body",
        "apply", "retry_after",
    ]
)  # fmt: skip
LOOKED_AT = [f"/_emulator/{name}" for name in (*VIEWS, *CONTROLS)] + [EXPORT, *QUERIES]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(LOOKED_AT),
    st.sampled_from(["GET", "POST"]),
    st.dictionaries(NAMES | ANYTHING, ANYTHING, max_size=3),
    st.dictionaries(NAMES, ANYTHING | st.integers() | st.floats(allow_nan=False) | st.none(), max_size=3)
    | st.binary(max_size=20),
)
def test_unknown_paths_and_methods_are_answered_in_json(
    path: str, method: str, parameters: dict[str, str], body: Any
) -> None:
    mixpanel = Wire(Emulator())
    mixpanel.track("u")
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = mixpanel.request(method, path, params=parameters, content=content, auth=(TOKEN, ""))
    assert response.status_code in {200, 400, 404, 405}
    if path != EXPORT or response.status_code != 200:
        response.json()
    mixpanel.emulator.stop_faults()
    mixpanel.emulator.latency = 0.0
    mixpanel.track("u")


def answer_to(port: int, sent: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """Send bytes, and return the head and the JSON of the response, read until the connection closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(sent)
        received = b""
        try:
            while chunk := raw.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    return head, json.JSONDecoder().raw_decode(body.decode())[0] if body.startswith(b"{") else None


@pytest.mark.parametrize(
    "sent",
    [
        b"this is no HTTP\r\n\r\n",
        b"GET /track HTTP/1.1\r\n\r\n",
        b"GET /track HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.test\r\n\r\n",
        b"GET /track HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"POST /track HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /track HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"GET /track HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Header: 1\r\n\r\n",
    ],
)
def test_malformed_request_gets_400_in_mixpanel_format(port: int, sent: bytes) -> None:
    head, content = answer_to(port, sent)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-emulated-by: mixpanel-async" in head.lower()
    assert content is not None
    assert content["status"] == "error"


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /track HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /track HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]X",
        b"GET /_emulator/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_chunked_body_closes_connection(port: int, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    answer_to(port, sent)
    assert capfd.readouterr().err == ""


def test_endless_request_head_closes_connection(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mixpanel_async.emulator.http.server, "_HEAD_SECONDS", 0.1)
    emulator = Emulator()
    with emulator.serve() as server:
        port = int(server.url.rpartition(":")[2])
        assert answer_to(port, b"") == (b"", None)
        head, content = answer_to(port, b"GET /track HTTP/1.1\r\nHost: 127")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout")
        assert content == {"error": "the request did not arrive in time", "status": "error"}
        # The time limit restarts for the second request on a connection.
        whole = b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        head, _ = answer_to(port, whole + b"GET /")
        assert head.startswith(b"HTTP/1.1 404 ")
        # The limit does not apply while the response to a complete request is pending.
        emulator.latency = 0.3
        assert httpx.post(f"{server.url}/track", json=[EVENT], trust_env=False).text == "1"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/track", "/import", "/_emulator/reset", "/api/query/engage"])
def test_endless_body_gets_408(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(mixpanel_async.emulator.http.app, "_BODY_SECONDS", 0.1)
    emulator = Emulator()
    with emulator.serve() as server:
        port = int(server.url.rpartition(":")[2])
        sent = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n[".encode()
        head, content = answer_to(port, sent)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert content is not None
        assert content["error"] == "the body did not arrive in time"


def test_disconnect_during_control_request_is_harmless(port: int) -> None:
    sent = b"POST /_emulator/reset HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(sent)


def test_server_host_name_is_not_a_pattern() -> None:
    with Emulator().serve("localhost") as server:
        response = httpx.get(f"{server.url}/_emulator/events", headers={"host": "evil.test"}, trust_env=False)
        assert response.status_code == 403
