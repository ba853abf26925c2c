"""Visitors that the app shares with the browser SDK of its pages, in each framework and each ID Merge system.

The cookies are as mixpanel-browser 2.45.0 and 2.83.0 write them; `test_frontend.py` runs the SDK itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.test import override_settings
from django_project import create_user
from framework_apps import USER_HEADER, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import AsyncMixpanel, BatchPolicy, ConfigurationError, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations._browser_sdk import (
    cookie_value,
    page_cookie_domain,
    page_cookie_value,
    parse_page_cookie,
    read_page_cookies,
)
from mixpanel_async.integrations._visitors import CookiePolicy
from mixpanel_async.integrations.django import using

TOKEN = "page-token"
HOST = "www.shop.example:8443"
PAGE_COOKIE = f"mp_{TOKEN}_mixpanel"
UUID_1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
UUID_2 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"
GROUPS = "18bbf7943e584-0885c2531-5c793977-3e8000-18bbf7943e64cf"
FRAMEWORKS = [
    ("starlette", "asyncio"),
    ("starlette", "trio"),
    ("fastapi", "asyncio"),
    ("aiohttp", "asyncio"),
    ("asgi", "asyncio"),
    ("asgi", "trio"),
    ("django", "asyncio"),
]
SYSTEMS = list(IdMerge)
_IDS = ("distinct_id", "$device_id", "$user_id")


@pytest.fixture(scope="module", autouse=True)
def database() -> None:
    call_command("migrate", verbosity=0)
    for name in ("ada", "bob"):
        create_user(name)


@pytest.fixture(params=FRAMEWORKS, ids="-".join)
def framework_and_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(framework_and_backend: tuple[str, str]) -> str:
    return framework_and_backend[1]


@pytest.fixture
def framework(framework_and_backend: tuple[str, str]) -> str:
    return framework_and_backend[0]


class Browser:
    """Browser with cookies, and in its pages a version of the SDK: what it reads, writes and sends."""

    def __init__(self, get: Get, emulator: Emulator, version: str = "2.83", **cookies: str) -> None:
        self._get = get
        self._emulator = emulator
        self._version = version
        self._ids = iter([UUID_1, UUID_2] if version == "2.83" else [GROUPS, GROUPS.replace("18bb", "18bc")])
        self.cookies = dict(cookies)
        self.changed: dict[str, Any] = {}

    async def get(self, path: str = "") -> None:
        header = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        self.changed = await self._get(path, header)
        for name, morsel in self.changed.items():
            self.cookies[name] = morsel.value
            if morsel["max-age"] in ("0", 0):
                del self.cookies[name]

    @property
    def page(self) -> dict[str, Any]:
        """Visitor in the cookie of the SDK."""
        found: dict[str, Any] = json.loads(unquote(self.cookies[PAGE_COOKIE]))
        return found

    def _write(self, visitor: dict[str, Any]) -> None:
        self.cookies[PAGE_COOKIE] = quote(json.dumps(visitor), safe="!'()*")

    def reset(self) -> None:
        device_id = next(self._ids)
        distinct_id = f"$device:{device_id}" if self._version == "2.83" else device_id
        self._write({"distinct_id": distinct_id, "$device_id": device_id})

    def identify(self, user_id: str) -> None:
        self._write({**self.page, "distinct_id": user_id, "$user_id": user_id})

    async def track(self, event: str) -> None:
        if PAGE_COOKIE not in self.cookies:
            self.reset()
        ids: dict[str, Any] = {name: self.page[name] for name in _IDS if name in self.page}
        record = {"event": event, "properties": {"token": TOKEN, "time": time.time(), "$insert_id": event, **ids}}
        transport = httpx.ASGITransport(self._emulator.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.post("/track?verbose=1", json=[record])
        assert response.json()["status"] == 1


Get = Callable[[str, str], Awaitable[dict[str, Any]]]
NewClient = Callable[[], httpx.AsyncClient]


@dataclass
class App:
    """Running app of a framework."""

    emulator: Emulator
    get: Get

    def browser(self, version: str = "2.83", **cookies: str) -> Browser:
        return Browser(self.get, self.emulator, version, **cookies)


@asynccontextmanager
async def app_of(framework: str, emulator: Emulator, **policy: Any) -> AsyncIterator[App]:
    """Run the app of a framework. It delivers at the end of the `with` block."""

    def make() -> AsyncMixpanel:
        return emulator.client(token=TOKEN, id_merge=emulator.id_merge, batching=BatchPolicy(linger=3600.0))

    if framework == "django":
        async with serving_django(make, **policy) as new_client:
            yield App(emulator, partial(get_django, new_client))
    else:
        async with serving(framework, make, cookie=CookiePolicy(**policy)) as served:
            yield App(emulator, partial(get_other, served.browser))


@asynccontextmanager
async def serving_django(make: Callable[[], AsyncMixpanel], **policy: Any) -> AsyncIterator[NewClient]:
    app: Any = get_asgi_application()
    cookie = {name.upper(): value for name, value in policy.items()}
    with override_settings(MIXPANEL={"COOKIE": cookie, "USER_ID": "django_project.username"}):
        context = using(make())
        await sync_to_async(context.__enter__)()
        try:
            yield lambda: httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")
        finally:
            await sync_to_async(context.__exit__)(None, None, None)


async def get_django(new_client: NewClient, path: str, cookies: str) -> dict[str, Any]:
    return await get_page(new_client, f"/async/{path.replace('signout', 'logout')}", {"Cookie": cookies})


async def get_other(new_client: NewClient, path: str, cookies: str) -> dict[str, Any]:
    """Get a page of an app whose sessions are a cookie with the user's name."""
    user = cookie_value(cookies, "session")
    headers = {"Cookie": cookies, **({USER_HEADER: user} if user else {})}
    found = await get_page(new_client, f"/{path.replace('signup', 'signin')}?new", headers)
    session = SimpleCookie()
    if path.startswith("signup/") or path == "signout":
        session["session"] = path.partition("/")[2]
    return {**found, **session}


async def get_page(new_client: NewClient, url: str, headers: dict[str, str]) -> dict[str, Any]:
    async with new_client() as client:
        response = await client.get(url, headers={"Host": HOST, **headers})
    assert response.status_code == 200
    found = SimpleCookie()
    for header in response.headers.get_list("set-cookie"):
        found.load(header)
    return dict(found)


def persons(emulator: Emulator) -> list[set[str]]:
    """Return the names of the events of each person, without identity events."""
    found: dict[str, set[str]] = {}
    for event in emulator.events():
        if not event["event"].startswith("$"):
            found.setdefault(event["properties"]["distinct_id"], set()).add(event["event"])
    return sorted(found.values(), key=sorted)


SERVER_EVENTS = {"Page viewed", "Signed up"}


@pytest.mark.anyio
@pytest.mark.sample(every=3)
@pytest.mark.parametrize("version", ["2.45", "2.83"])
@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "no-reset"])
@pytest.mark.parametrize("writes", [True, False], ids=["written", "read"])
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
async def test_visitor_of_page_and_server_is_one_person(
    framework: str, system: IdMerge, version: str, *, writes: bool, is_reset: bool
) -> None:
    emulator = Emulator(system, token=TOKEN)
    async with app_of(framework, emulator, browser_sdk=writes) as app:
        browser = app.browser(version)
        if writes:
            await browser.get()
        await browser.track("first page")
        await browser.get()
        await browser.get("signup/ada")
        browser.identify("ada")
        await browser.track("page of ada")
        await browser.get()
        await browser.get("signout")
        assert "$user_id" not in browser.page
        if is_reset:
            browser.reset()
        await browser.track("page of nobody")
        await browser.get()
        await browser.get("signup/bob")
        browser.identify("bob")
        await browser.track("page of bob")
    left = {"Leaving"} if framework == "django" else set()
    ada = {"first page", "page of ada", *SERVER_EVENTS, *left}
    assert persons(emulator) == sorted([ada, {"page of nobody", "page of bob", *SERVER_EVENTS}], key=sorted)


@pytest.mark.anyio
async def test_browser_sdk_writes_the_cookie_of_the_page_as_the_page_does(framework: str) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED, token=TOKEN)
    async with app_of(framework, emulator, browser_sdk=True) as app:
        browser = app.browser()
        await browser.get()
        cookie = browser.changed[PAGE_COOKIE]
        device_id = browser.cookies["mp_visitor"]
        assert browser.page == {"distinct_id": f"$device:{device_id}", "$device_id": device_id}
        assert cookie.value == (
            f"%7B%22distinct_id%22%3A%22%24device%3A{device_id}%22%2C%22%24device_id%22%3A%22{device_id}%22%7D"
        )
        attributes = {
            name: str(cookie[name]) for name in ("path", "domain", "max-age", "samesite", "secure", "httponly")
        }
        assert attributes == {
            "path": "/",
            "domain": "shop.example",
            "max-age": "31536000",
            "samesite": "Lax",
            "secure": "",
            "httponly": "",
        }
        await browser.get()
        assert browser.changed == {}


@pytest.mark.anyio
async def test_cookie_of_the_page_is_not_written_unless_asked(framework: str) -> None:
    async with app_of(framework, Emulator(IdMerge.SIMPLIFIED, token=TOKEN)) as app:
        browser = app.browser()
        await browser.get()
    assert set(browser.changed) == {"mp_visitor"}


@pytest.mark.anyio
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
async def test_id_of_an_existing_visitor_goes_into_the_cookie_of_the_page(framework: str, system: IdMerge) -> None:
    emulator = Emulator(system, token=TOKEN)
    async with app_of(framework, emulator, browser_sdk=True) as app:
        browser = app.browser(mp_visitor=UUID_1)
        await browser.get()
        await browser.track("first page")
    assert browser.page["$device_id"] == browser.cookies["mp_visitor"] == UUID_1
    assert persons(emulator) == [{"Page viewed", "first page"}]


@pytest.mark.anyio
async def test_cookie_of_the_page_has_precedence(framework: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token=TOKEN)
    async with app_of(framework, emulator, browser_sdk=True) as app:
        browser = app.browser(mp_visitor=UUID_2, mp_visitor_user="0123456789abcdef01234567")
        await browser.track("first page")
        before = browser.cookies[PAGE_COOKIE]
        await browser.get()
    assert browser.cookies == {"mp_visitor": f"$device:{UUID_1}", PAGE_COOKIE: before}
    (event,) = emulator.raw_events("Page viewed")
    assert (event["properties"]["distinct_id"], event["properties"]["$device_id"]) == (f"$device:{UUID_1}", UUID_1)
    assert persons(emulator) == [{"Page viewed", "first page"}]


@pytest.mark.anyio
async def test_user_in_the_cookie_of_the_page_is_not_believed(framework: str) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED, token=TOKEN)
    async with app_of(framework, emulator) as app:
        browser = app.browser()
        browser.reset()
        browser.identify("ada")
        await browser.get()
    (event,) = emulator.raw_events("Page viewed")
    assert "$user_id" not in event["properties"]
    assert event["properties"]["$device_id"] == UUID_1


@pytest.mark.anyio
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
async def test_second_user_gets_another_device_than_the_user_in_the_page(framework: str, system: IdMerge) -> None:
    emulator = Emulator(system, token=TOKEN)
    async with app_of(framework, emulator) as app:
        browser = app.browser()
        browser.reset()
        await browser.track("first page")
        browser.identify("ada")
        await browser.get("signup/bob")
        assert UUID_1 not in browser.cookies["mp_visitor"]
        assert set(browser.page) == {"distinct_id", "$device_id"}
        assert UUID_1 not in browser.page["$device_id"]
    assert {"first page"} in persons(emulator)


@pytest.mark.anyio
async def test_visitor_who_opted_out_in_the_page_is_not_tracked(framework: str) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED, token=TOKEN)
    async with app_of(framework, emulator, browser_sdk=True) as app:
        browser = app.browser(**{f"__mp_opt_in_out_{TOKEN}": "0", "mp_visitor": UUID_1})
        browser.reset()
        await browser.get()
        assert set(browser.cookies) == {f"__mp_opt_in_out_{TOKEN}"}
        other = app.browser(**{f"__mp_opt_in_out_{TOKEN}": "1", "__mp_opt_in_out_other": "0"})
        await other.get()
    assert len(emulator.events()) == 1


FOREIGN = [
    {"distinct_id": "visitor-7", "$device_id": "visitor-7"},
    {"distinct_id": "00000000-0000-0000-0000-000000000000", "$device_id": "00000000-0000-0000-0000-000000000000"},
    {"distinct_id": "ada"},
    {"distinct_id": 7, "$device_id": {"a": 1}},
    {"distinct_id": "ada", "$device_id": ["a"]},
    {"distinct_id": "ada", "$device_id": UUID_1 * 9},
]
UNREADABLE = [
    "",
    "%",
    "%7B",
    "%FF%FE",
    "null",
    "7",
    quote("[]"),
    quote('"text"'),
    "[" * 4_000,
    quote('{"a":') * 400,
    quote('{"distinct_id": NaN}'),
    quote('{"distinct_id": true, "$device_id": "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"}').replace("true", "%5B%5D"),
    quote(json.dumps({"distinct_id": "", "$device_id": UUID_1})),
    quote(json.dumps({"distinct_id": UUID_1, "$device_id": UUID_1, "padding": "x" * 5_000})),
]


@pytest.mark.anyio
async def test_hostile_cookies_of_the_page_are_ignored(framework: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token=TOKEN)
    async with app_of(framework, emulator, browser_sdk=True) as app:
        for value in FOREIGN:
            written = quote(json.dumps(value))
            browser = app.browser(mp_visitor=UUID_2, **{PAGE_COOKIE: written})
            await browser.get()
            # The page has chosen its id. The server keeps its own.
            assert browser.changed == {}, value
        for text in UNREADABLE:
            browser = app.browser(mp_visitor=UUID_2, **{PAGE_COOKIE: text})
            await browser.get()
            assert browser.page == {"distinct_id": UUID_2, "$device_id": UUID_2}, text
        other = app.browser(mp_visitor=UUID_2, mp_other_mixpanel=quote(json.dumps({"distinct_id": UUID_1})))
        await other.get()
        assert other.cookies["mp_visitor"] == UUID_2
    assert {event["properties"]["distinct_id"] for event in emulator.events()} == {UUID_2}


@pytest.mark.anyio
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
async def test_any_user_in_the_cookie_of_the_page_lets_the_visitor_sign_in(framework: str, system: IdMerge) -> None:
    emulator = Emulator(system, token=TOKEN)
    async with app_of(framework, emulator) as app:
        for user in (
            "\ud800",
            "a\x00b",
            "a\r\nSet-Cookie: b=1",
            "; Domain=evil",
            "null",
            " ",
            True,
            ["bob"],
            10**1_000,
        ):
            visitor = {"distinct_id": f"$device:{UUID_1}", "$device_id": UUID_1, "$user_id": user}
            browser = app.browser(**{PAGE_COOKIE: quote(json.dumps(visitor))})
            await browser.get("signup/ada")
            assert set(browser.changed) <= {"mp_visitor", "mp_visitor_user", PAGE_COOKIE, "session", "sessionid"}
            assert not any(set(morsel.value) & set("\r\n;") for morsel in browser.changed.values())
    users = {event["properties"].get("$user_id") for event in emulator.events() if not event["event"].startswith("$")}
    assert users <= {None, "ada"}
    assert emulator.rejected() == []


def test_first_of_several_cookies_counts_as_in_the_page() -> None:
    first, second = (quote(json.dumps({"distinct_id": one, "$device_id": one})) for one in (UUID_1, UUID_2))
    header = f"x{PAGE_COOKIE}=1; a={PAGE_COOKIE}={second};  {PAGE_COOKIE}={first}; {PAGE_COOKIE}={second}"
    visitor = read_page_cookies(TOKEN, header).visitor
    assert visitor is not None
    assert visitor.device_id == UUID_1


@settings(max_examples=50)
@given(st.text(max_size=60) | st.recursive(st.none() | st.booleans() | st.text(max_size=9), st.lists).map(json.dumps))
def test_any_value_of_the_cookie_can_be_read(text: str) -> None:
    parse_page_cookie(quote(text))
    parse_page_cookie(text)


@given(st.uuids(version=4).map(str), st.sampled_from(["", "$device:"]), st.booleans())
def test_written_cookie_is_read_as_the_same_visitor(device_id: str, prefix: str, is_simplified: bool) -> None:
    server_id = device_id if is_simplified else prefix + device_id
    visitor = parse_page_cookie(page_cookie_value(server_id, is_simplified=is_simplified))
    assert visitor is not None
    assert visitor.server_id("", is_simplified=is_simplified) == server_id
    assert visitor.user_id is None


@pytest.mark.parametrize("known", [UUID_1, f"$device:{UUID_1}", UUID_2, ""])
def test_anonymous_id_is_kept_after_identify_in_the_page(known: str) -> None:
    visitor = parse_page_cookie(quote(json.dumps({"distinct_id": "ada", "$device_id": UUID_1, "$user_id": "ada"})))
    assert visitor is not None
    assert visitor.server_id(known, is_simplified=True) == UUID_1
    expected = known if UUID_1 in known else f"$device:{UUID_1}"
    assert visitor.server_id(known, is_simplified=False) == expected


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("shop.example", "shop.example"),
        ("www.shop.example:8443", "shop.example"),
        ("a.b.Shop.com", "shop.com"),
        ("www.shop.co.uk", "shop.co.uk"),
        ("shop.de", "shop.de"),
        ("my_shop.shop.example", "shop.example"),
        ("t.co", None),
        ("shop.example.", None),
        ("shop.example, evil.example", None),
        ("localhost:8000", None),
        ("127.0.0.1:8000", None),
        ("[::1]:8000", None),
        ("shop.example; HttpOnly", None),
        ("shop.example\r\nX: y", None),
        ("", None),
        ("a" * 5_000 + ".example", None),
    ],
)
def test_domain_of_the_cookie_is_that_of_the_page(host: str, domain: str | None) -> None:
    assert page_cookie_domain(host) == domain


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"browser_sdk": 1}, "browser_sdk must be True or False"),
        ({"browser_sdk_domain": "a b"}, "browser_sdk_domain must be a valid cookie domain"),
        ({"browser_sdk_domain": ""}, "browser_sdk_domain must be a valid cookie domain"),
    ],
)
def test_settings_for_the_page_are_validated(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CookiePolicy(**policy)


@pytest.mark.parametrize(("domain", "written"), [(None, ""), ("shop.example", "shop.example")])
def test_domain_of_the_cookie_can_be_set(domain: str | None, written: str) -> None:
    policy = CookiePolicy(browser_sdk=True, browser_sdk_domain=domain, secure=True)
    cookie = SimpleCookie(policy.page_header(PAGE_COOKIE, "value", host=HOST))[PAGE_COOKIE]
    assert (cookie["domain"], cookie["secure"]) == (written, True)
