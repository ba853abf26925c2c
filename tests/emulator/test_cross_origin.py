"""Tests of the responses to web pages of other origins, and of what stays closed to them."""

from __future__ import annotations

import base64
from itertools import product
from typing import Any, Final

import httpx
import pytest
from emulator_wire import TOKEN, Wire

from mixpanel_async.emulator import KINDS, Emulator
from mixpanel_async.emulator.http.control_api import CONTROLS, VIEWS
from mixpanel_async.emulator.project.export import EXPORT
from mixpanel_async.emulator.project.profile_query import QUERIES

EVENT: Final = {"event": "Viewed", "properties": {"token": TOKEN, "distinct_id": "u"}}
PAGE: Final = "http://localhost:5173"
BASIC: Final = "Basic " + base64.b64encode(b"t:").decode()
FOR_BROWSERS: Final = [
    "/track",
    "/track/",
    "/import",
    "/engage/",
    "/groups/",
    "/flags",
    "/flags/",
    "/flags/definitions",
]
CLOSED: Final = ["/", "/app.js", "/nowhere", "/tracking", EXPORT, *QUERIES]
CONTROL: Final = [f"/_emulator/{name}" for name in ("", "stream", *VIEWS, *CONTROLS)]


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control")}


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(), served=True)


@pytest.mark.parametrize(
    "origin",
    [
        PAGE,
        "http://localhost",
        "https://localhost",
        "https://localhost:8443",
        "http://127.0.0.1:3000",
        "https://127.0.0.1",
        "http://127.8.9.1:1",
        "http://[::1]:5173",
        "https://[::1]",
        "http://app.localhost:5173",
    ],
)
def test_pages_of_this_machine_can_read_every_response(mixpanel: Wire, origin: str) -> None:
    for method, path in product(("GET", "POST"), FOR_BROWSERS):
        response = mixpanel.request(method, path, headers={"origin": origin})
        assert cors_headers(response) == {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",
        }
        assert response.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "http://localhost.evil.test",
        "http://127.0.0.1.evil.test",
        "http://evil.test:80",
        "http://localhost@evil.test",
        "http://localhost:5173/",
        "http://localhost:5173/path",
        "localhost:5173",
        "ftp://localhost",
        "capacitor://localhost",
        "http://192.168.1.20:5173",
        "http://128.0.0.1",
        "http://[::2]",
        "null",
        "*",
        "",
        "http://localhost, http://evil.test",
    ],
)
def test_other_pages_cannot_read_responses(mixpanel: Wire, origin: str) -> None:
    for method, path in product(("GET", "POST", "OPTIONS"), FOR_BROWSERS):
        response = mixpanel.request(method, path, headers={"origin": origin, "access-control-request-method": "GET"})
        assert cors_headers(response) == {}
        assert response.headers["vary"] == "Origin"


def test_two_origins_in_one_request_are_not_allowed(mixpanel: Wire) -> None:
    response = mixpanel.request("POST", "/track", json=[EVENT], headers=[("origin", PAGE), ("origin", PAGE)])
    assert (response.text, cors_headers(response)) == ("1", {})


def test_request_without_origin_gets_no_permission(mixpanel: Wire) -> None:
    response = mixpanel.request("POST", "/track", json=[EVENT])
    assert (response.text, response.headers["vary"], cors_headers(response)) == ("1", "Origin", {})


@pytest.mark.parametrize("path", [*FOR_BROWSERS, "/flags/1/first-time-events"])
def test_preflight_allows_what_sdks_send(mixpanel: Wire, path: str) -> None:
    asked = {
        "origin": PAGE,
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization,content-type,traceparent",
    }
    mixpanel.emulator.fail_next(503)
    response = mixpanel.request("OPTIONS", path, headers=asked)
    assert (response.status_code, response.content) == (200, b"")
    assert cors_headers(response) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, POST, OPTIONS",
        "access-control-allow-headers": "Authorization, Content-Type, traceparent, X-Requested-With",
        "access-control-max-age": "600",
    }
    assert response.headers["x-emulated-by"] == "mixpanel-async"
    # A preflight request takes no fault and is no request of the application.
    assert mixpanel.emulator.requests() == []
    assert mixpanel.request("POST", "/track", json=[EVENT]).status_code == 503


def test_preflight_from_public_site_allows_private_network_on_demand() -> None:
    mixpanel = Wire(Emulator(allow_origins=["https://app.example.com"]), served=True)
    headers = {"origin": "https://app.example.com", "access-control-request-private-network": "true"}
    name = "access-control-allow-private-network"
    assert mixpanel.request("OPTIONS", "/track", headers=headers).headers[name] == "true"
    headers["origin"] = "https://other.example.com"
    assert cors_headers(mixpanel.request("OPTIONS", "/track", headers=headers)) == {}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"drop", "hang", "half"}))
def test_planned_faults_are_readable(mixpanel: Wire, kind: Any) -> None:
    mixpanel.emulator.break_next(kind, seconds=0.0, rate=1e6)
    response = mixpanel.request("POST", "/track", json=[EVENT], headers={"origin": PAGE})
    assert response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/track/", b"not a record", 400),
        ("POST", "/track", b" " * (32 * 1024 * 1024), 413),
        ("PUT", "/track", b"", 405),
        ("POST", "/flags/definitions", b"", 405),
        ("GET", "/track/more", b"", 404),
        ("GET", "/flags/unknown", b"", 404),
        ("GET", "/flags", b"", 401),
        ("POST", "/import", b"[]", 401),
    ],
)
def test_error_responses_are_readable(mixpanel: Wire, method: str, path: str, body: bytes, status: int) -> None:
    response = mixpanel.request(method, path, content=body, headers={"origin": PAGE})
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("allowed", [[], ["*"], [PAGE, "https://app.example.com"]])
@pytest.mark.parametrize("path", [*CLOSED, *CONTROL])
def test_reading_and_controlling_stay_closed(path: str, allowed: list[str]) -> None:
    mixpanel = Wire(Emulator(allow_origins=allowed), served=True)
    for method, origin in product(("GET", "POST", "OPTIONS"), (PAGE, "https://app.example.com")):
        response = mixpanel.request(method, path, headers={"origin": origin, "authorization": BASIC})
        assert cors_headers(response) == {}
        assert "vary" not in response.headers
        if path in CONTROL:
            assert response.status_code == 403


def test_foreign_host_is_refused_without_permission() -> None:
    mixpanel = Wire(Emulator(allow_origins=["*"]), served=True)
    for method in ("POST", "OPTIONS"):
        response = mixpanel.request(method, "/track", json=[EVENT], headers={"origin": PAGE, "host": "evil.test"})
        assert (response.status_code, cors_headers(response)) == (403, {})
    assert mixpanel.emulator.requests() == []


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.com:443", "https://app.example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://192.168.1.20:5173", "http://192.168.1.20:5173"),
        ("http://[fd00::5]:5173", "http://[fd00::5]:5173"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "https://app.example.com"),
        ("*", "null"),
    ],
)
def test_configured_origin_is_allowed(allowed: str, origin: str) -> None:
    mixpanel = Wire(Emulator(allow_origins=[allowed, "https://second.example.com"]), served=True)
    for sent in (origin, "https://second.example.com", PAGE):
        response = mixpanel.request("POST", "/track", json=[EVENT], headers={"origin": sent})
        assert response.headers["access-control-allow-origin"] == sent
    if allowed != "*":
        for sent in ("https://other.example.com", f"{origin}:81", origin.replace("://", "://sub.")):
            response = mixpanel.request("POST", "/track", json=[EVENT], headers={"origin": sent})
            assert cors_headers(response) == {}


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?a=1",
        "https://user@app.example.com",
        "https://*.example.com",
        "https://app.example.com:99999",
        "https://app.example.com:",
        "app.example.com",
        "localhost:5173",
        "null",
        "",
        " https://app.example.com",
    ],
)
def test_malformed_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="an allowed origin is a scheme and a host") as caught:
        Emulator(allow_origins=[origin])
    assert repr(origin) in str(caught.value)


def test_origins_as_text_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a list of origins, not the text"):
        Emulator(allow_origins="https://app.example.com")
