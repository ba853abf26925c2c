"""Behaviour shared by all framework integrations: visitor of a request, cookies and tracked events."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import anyio
import httpx
import pytest
from framework_apps import CACHED, USER_HEADER, Served, serving

from mixpanel_async import AsyncMixpanel, ClientClosedError, ConfigurationError, IdMerge, Overflow
from mixpanel_async import BatchPolicy as Batches
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations._visitors import CookiePolicy
from mixpanel_async.integrations.starlette import current_mixpanel
from mixpanel_async.testing import assert_not_tracked, assert_same_person, assert_tracked

pytestmark = pytest.mark.anyio

VISITOR = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"

# aiohttp supports only asyncio.
FRAMEWORKS = [
    ("starlette", "asyncio"),
    ("starlette", "trio"),
    ("fastapi", "asyncio"),
    ("aiohttp", "asyncio"),
    ("asgi", "asyncio"),
    ("asgi", "trio"),
]


def only(*frameworks: str) -> pytest.MarkDecorator:
    """Restrict a test to the named frameworks."""
    chosen = [one for one in FRAMEWORKS if one[0] in frameworks]
    return pytest.mark.parametrize("framework_and_backend", chosen, indirect=True, ids=map("-".join, chosen))


@pytest.fixture(params=FRAMEWORKS, ids="-".join)
def framework_and_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(framework_and_backend: tuple[str, str]) -> Any:
    backend = framework_and_backend[1]
    return backend, {"debug": True} if backend == "asyncio" else {}


@pytest.fixture
def framework(framework_and_backend: tuple[str, str]) -> str:
    return framework_and_backend[0]


Serve = Callable[..., Any]


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(IdMerge.ORIGINAL)


@pytest.fixture
def serve(framework: str, emulator: Emulator) -> Serve:
    """Serve the app with a client of the emulator, and close the client when the app stops."""

    @asynccontextmanager
    async def serve(*, client: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Served]:
        def make() -> AsyncMixpanel:
            return emulator.client(**{"id_merge": emulator.id_merge, **(client or {})})

        async with serving(framework, make, **options) as served:
            yield served

    return serve


def sent_cookies(response: httpx.Response) -> dict[str, Any]:
    """Return the cookies set by a response, by name, with attributes."""
    found: dict[str, Any] = {}
    for header in response.headers.get_list("set-cookie"):
        found.update(SimpleCookie(header))
    return found


async def test_first_visit_sets_a_cookie_with_an_anonymous_id(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        first = await browser.get("/")
        (cookie,) = sent_cookies(first).values()
        again = await browser.get("/items/7")
        assert sent_cookies(again) == {}
        assert first.json() == again.json() == {"user": None, "device": cookie.value}
    assert cookie.key == "mp_visitor"
    assert uuid.UUID(cookie.value).version == 4
    attributes = {name: cookie[name] for name in ("path", "max-age", "httponly", "samesite", "secure", "domain")}
    assert attributes == {
        "path": "/",
        "max-age": "31536000",
        "httponly": True,
        "samesite": "Lax",
        "secure": "",
        "domain": "",
    }
    assert_tracked(emulator, "Page viewed", distinct_id=cookie.value, times=2)


async def test_cookie_has_the_configured_name_age_domain_and_path(serve: Serve) -> None:
    policy = CookiePolicy(name="anon", max_age=60, domain="shop.example", path="/items", secure=True)
    async with serve(cookie=policy) as served, served.browser() as browser:
        (cookie,) = sent_cookies(await browser.get("/items/7")).values()
    assert cookie.key == "anon"
    assert (cookie["max-age"], cookie["domain"], cookie["path"]) == ("60", "shop.example", "/items")
    assert cookie["secure"] is True


async def test_cookie_is_secure_if_the_visitor_uses_https(serve: Serve) -> None:
    said = {"https": True, "http, https": True, "https, http": False, "": False}
    for trusted, expected in (
        (1, said),
        (["127.0.0.0/8"], said),
        (["10.0.0.0/8"], {"https": False}),
        (0, {"https": False}),
    ):
        async with serve(trusted_proxies=trusted) as served:
            for proto, secure in expected.items():
                async with served.browser() as browser:
                    response = await browser.get("/", headers={"X-Forwarded-Proto": proto})
                assert bool(sent_cookies(response)["mp_visitor"]["secure"]) is secure


@only("starlette", "fastapi", "asgi")
async def test_cookie_is_secure_over_https_without_a_proxy(serve: Serve) -> None:
    async with serve(base_url="https://shop.example") as served, served.browser() as browser:
        assert sent_cookies(await browser.get("/"))["mp_visitor"]["secure"] is True


TAMPERED = (
    "garbage",
    str(uuid.uuid1()),
    VISITOR.upper(),
    VISITOR.replace("-", ""),
    VISITOR.replace("-4", "-5"),
    "{" + VISITOR + "}",
    "00000000-0000-0000-0000-000000000000",
    "x" * 3_000,
    "' OR 1=1",
    "",
)


async def test_cookie_value_that_is_not_a_uuid4_is_replaced(
    serve: Serve, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = set()
    async with serve() as served:
        async with served.browser() as browser:
            await browser.get("/", headers={"Cookie": f"mp_visitor={VISITOR}"})
        assert replacements(caplog) == 0
        for tampered in TAMPERED:
            async with served.browser() as browser:
                headers = {"Cookie": f"mp_visitor={tampered}; mp_visitor_user=abc"}
                cookies = sent_cookies(await browser.get("/", headers=headers))
            assert uuid.UUID(cookies["mp_visitor"].value).version == 4
            fresh.add(cookies["mp_visitor"].value)
            # The user cookie is deleted together with the id.
            assert cookies["mp_visitor_user"]["max-age"] == "0"
    assert replacements(caplog) == 1
    assert VISITOR not in fresh
    assert {event["properties"]["distinct_id"] for event in emulator.events("Page viewed")} == fresh | {VISITOR}
    assert len(fresh) == len(TAMPERED)


def replacements(caplog: pytest.LogCaptureFixture) -> int:
    """Return how many log lines say that a visitor got a new id."""
    events = [getattr(record, "mixpanel", {}).get("event") for record in caplog.records]
    return events.count("visitor_replaced")


async def test_forged_user_cookie_gets_a_fresh_id_and_joins_no_ids(serve: Serve, emulator: Emulator) -> None:
    headers = {"Cookie": f"mp_visitor={VISITOR}; mp_visitor_user=forged"}
    async with serve() as served, served.browser() as browser:
        assert sent_cookies(await browser.get("/", headers=headers)) == {}
        fresh = (await browser.get("/signin/maya", headers=headers)).json()["device"]
    assert fresh != VISITOR
    assert emulator.cluster("maya") == {"maya", fresh}


async def test_sign_in_and_sign_out_update_the_cookies(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        await browser.get("/")
        anonymous = browser.cookies["mp_visitor"]
        signed_in = await browser.get("/signin/maya?new")
        assert set(sent_cookies(signed_in)) == {"mp_visitor_user"}
        assert "maya" not in str(signed_in.headers)
        assert sent_cookies(await browser.get("/", headers={USER_HEADER: "maya"})) == {}
        # A second login of the same user changes no cookie.
        assert sent_cookies(await browser.get("/signin/maya")) == {}
        assert browser.cookies["mp_visitor"] == anonymous
        signed_out = await browser.get("/signout")
        assert set(sent_cookies(signed_out)) == {"mp_visitor", "mp_visitor_user"}
        assert sent_cookies(signed_out)["mp_visitor_user"]["max-age"] == "0"
        stranger = browser.cookies["mp_visitor"]
        await browser.get("/signin/noah?new")
        assert browser.cookies["mp_visitor"] == stranger
    assert emulator.cluster("maya") == {"maya", anonymous}
    assert emulator.cluster("noah") == {"noah", stranger}
    assert len([entry for entry in emulator.identity_log() if entry["event"] == "$identify"]) == 2


async def test_second_user_without_sign_out_gets_a_separate_id(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        await browser.get("/signin/maya?new")
        hers = browser.cookies["mp_visitor"]
        response = await browser.get("/signin/noah?new")
        assert set(sent_cookies(response)) == {"mp_visitor", "mp_visitor_user"}
    assert emulator.cluster("maya") == {"maya", hers}
    assert emulator.cluster("noah") == {"noah", browser.cookies["mp_visitor"]}


async def test_sign_in_with_a_redirect_sets_the_cookies(serve: Serve) -> None:
    async with serve() as served, served.browser() as browser:
        response = await browser.get("/enter/maya")
        assert response.status_code == 303
        assert set(sent_cookies(response)) == {"mp_visitor", "mp_visitor_user"}


async def test_rejected_sign_in_raises_in_the_handler_without_a_timeout(serve: Serve, emulator: Emulator) -> None:
    async with serve(sign_in_timeout=None) as served, served.browser() as browser:
        await browser.get("/")
        anonymous = browser.cookies["mp_visitor"]
        emulator.fail_next(status=400, times=1, path="/track")
        # The test app does not handle the error.
        assert (await browser.get("/signin/maya?new")).status_code == 500
        assert (await browser.get("/signin/maya?new")).status_code == 200
        assert browser.cookies["mp_visitor"] == anonymous
    assert emulator.cluster("maya") == {"maya", anonymous}


async def test_user_id_comes_from_the_hook_of_the_app(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        assert (await browser.get("/", headers={USER_HEADER: "maya"})).json()["user"] == "maya"
        assert (await browser.get("/", headers={USER_HEADER: ""})).json()["user"] is None
    assert_tracked(emulator, "Page viewed", distinct_id="maya", properties={"$user_id": "maya"})


async def test_hooks_of_the_app_may_be_async(serve: Serve, framework: str) -> None:
    async def user(request: Any) -> str:
        await anyio.lowlevel.checkpoint()
        return "maya"

    async def user_dependency() -> str:
        return "maya"

    async def consent(request: Any) -> bool:
        await anyio.lowlevel.checkpoint()
        return "yes" in request.headers

    user_id: Any = user_dependency if framework == "fastapi" else user
    async with serve(user_id=user_id, consent=consent) as served, served.browser() as browser:
        assert (await browser.get("/", headers={"yes": "1"})).json()["user"] == "maya"
        assert (await browser.get("/")).json()["user"] is None


async def test_without_consent_nothing_is_sent_or_stored(serve: Serve, emulator: Emulator) -> None:
    def consent(request: Any) -> bool:
        return str(request.headers.get("X-Consent", "yes")) == "yes"

    no = {"X-Consent": "no", USER_HEADER: "maya"}
    async with serve(consent=consent) as served, served.browser() as browser:
        for path in ("/", "/signin/maya", "/signout", "/stream"):
            response = await browser.get(path, headers=no)
            assert response.status_code == 200
            assert sent_cookies(response) == {}
        assert emulator.requests() == []
        # Consent was given and is then withdrawn.
        await browser.get("/signin/noah")
        assert set(browser.cookies) == {"mp_visitor", "mp_visitor_user"}
        response = await browser.get("/", headers=no)
        assert {cookie["max-age"] for cookie in sent_cookies(response).values()} == {"0"}
        assert response.json() == {"user": None, "device": None}
        assert set(browser.cookies) == set()
    assert_not_tracked(emulator, "Page viewed")


async def test_events_have_properties_from_the_headers(serve: Serve, emulator: Emulator) -> None:
    headers = {
        "User-Agent": CHROME,
        "Referer": "https://search.example/find?q=private",
        "X-Forwarded-For": "203.0.113.99, 198.51.100.7",
    }
    async with serve(trusted_proxies=1) as served, served.browser() as browser:
        await browser.get("/", headers=headers)
    assert_tracked(
        emulator,
        "Page viewed",
        properties={
            "$browser": "Chrome",
            "$browser_version": 120,
            "$os": "Linux",
            "$referrer": "https://search.example/find",
            "$referring_domain": "search.example",
            "ip": "198.51.100.7",
        },
    )


@pytest.mark.parametrize(
    ("options", "ip"),
    [({}, "127.0.0.1"), ({"geolocate": False}, None), ({"trusted_proxies": ["127.0.0.0/8"]}, "198.51.100.7")],
    ids=["peer", "off", "proxy"],
)
async def test_address_is_the_peer_unless_a_proxy_is_trusted(
    serve: Serve, emulator: Emulator, options: dict[str, Any], ip: str | None
) -> None:
    forwarded = [("X-Forwarded-For", "203.0.113.99"), ("X-Forwarded-For", "198.51.100.7")]
    async with serve(**options) as served, served.browser() as browser:
        await browser.get("/", headers=forwarded)
    assert emulator.events("Page viewed")[0]["properties"].get("ip") == ip


async def test_undecodable_headers_do_not_fail_the_request(serve: Serve, emulator: Emulator) -> None:
    headers = [
        (b"Referer", b"https://shop.example/\xff\xfe"),
        (b"User-Agent", b"\xff Version/\xff Safari/"),
        (b"X-Forwarded-For", b"\xff"),
        (b"Cookie", b"mp_visitor=\xff; \xff"),
    ]
    async with serve(trusted_proxies=1) as served, served.browser() as browser:
        assert (await browser.get("/", headers=headers)).status_code == 200
    assert_tracked(emulator, "Page viewed")


async def test_http_error_of_the_handler_sets_the_cookie(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        response = await browser.get("/fails")
        assert response.status_code in {406, 418}
        visitor = sent_cookies(response)["mp_visitor"].value
    assert_tracked(emulator, "About to fail", distinct_id=visitor)


async def test_exception_in_the_handler_reaches_the_app_unchanged(
    serve: Serve, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as served, served.browser() as browser:
        assert (await browser.get("/breaks")).status_code == 500
        assert (await browser.get("/")).status_code == 200
    assert_tracked(emulator, "About to break")
    assert [record for record in caplog.records if record.name == "mixpanel_async"] == []


async def test_streaming_response_keeps_its_visitor(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        response = await browser.get("/stream")
        assert response.text == "one,two"
        visitor = sent_cookies(response)["mp_visitor"].value
    for name in ("Stream begun", "Stream ended"):
        assert_tracked(emulator, name, distinct_id=visitor)


# FastAPI resolves dependencies before the response starts.
@only("starlette", "aiohttp", "asgi")
async def test_identity_change_after_the_response_began_is_logged_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as served, served.browser() as browser:
        with caplog.at_level(logging.WARNING, "mixpanel_async"):
            for _ in range(2):
                assert (await browser.get("/late")).status_code == 200
    words = [record.getMessage() for record in caplog.records if record.name == "mixpanel_async"]
    assert len([word for word in words if "after the response had begun" in word]) == 1


@pytest.mark.parametrize(("given", "expected", "has_cookie"), CACHED)
async def test_no_shared_cache_stores_the_cookie_of_a_visitor(
    serve: Serve, given: str, expected: str, has_cookie: bool
) -> None:
    async with serve() as served, served.browser() as browser:
        first = await browser.get("/cached", params={"cache": given})
        assert bool(sent_cookies(first)) == has_cookie
        assert first.headers["cache-control"] == expected
        page = await browser.get("/")
        assert page.headers.get("cache-control") == (None if has_cookie else "private")
        again = await browser.get("/cached", params={"cache": given})
        assert (sent_cookies(again), again.headers["cache-control"]) == ({}, given)


async def test_tasks_and_threads_see_the_bound_client(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        await browser.get("/task", headers={USER_HEADER: "maya"})
    for name in ("Task done", "Background done"):
        assert_tracked(emulator, name, distinct_id="maya")


@only("starlette", "fastapi", "asgi")
async def test_background_tasks_see_the_bound_client(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        await browser.get("/background", headers={USER_HEADER: "maya"})
    assert_tracked(emulator, "Background done", distinct_id="maya")


async def test_concurrent_requests_keep_separate_users(serve: Serve, emulator: Emulator) -> None:
    async def visit(served: Served, person: str) -> None:
        async with served.browser() as browser:
            for _ in range(5):
                assert (await browser.get("/", headers={USER_HEADER: person})).json()["user"] == person

    async with serve() as served, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(visit, served, f"person-{number}")
    for number in range(20):
        assert_tracked(emulator, "Page viewed", distinct_id=f"person-{number}", times=5)


async def test_current_client_outside_a_request_raises(serve: Serve) -> None:
    async with serve() as served, served.browser() as browser:
        await browser.get("/")
        with pytest.raises(LookupError, match="no request"):
            current_mixpanel()


async def test_requests_are_tracked_with_route_and_status(serve: Serve, emulator: Emulator) -> None:
    async with serve(track_requests="Request") as served, served.browser() as browser:
        for path in ("/items/private?token=secret", "/sub/items/7", "/fails", "/breaks", "/nowhere"):
            await browser.get(path)
    events = [event["properties"] for event in emulator.events("Request")]
    seen = [(event["method"], event["path"], event["status"]) for event in events]
    (_, _, failed) = seen[2]
    assert failed in {406, 418}
    assert seen == [
        ("GET", "/items/{item}", 200),
        ("GET", "/sub/items/{item}", 200),
        ("GET", "/fails", failed),
        ("GET", "/breaks", 500),
    ]
    assert all(0 <= event["duration"] < 20 for event in events)
    assert len({event["distinct_id"] for event in events}) == 1


# In aiohttp every request has a visitor.
@only("starlette", "fastapi", "asgi")
async def test_request_that_does_not_use_the_client_is_tracked_with_a_visitor(serve: Serve, emulator: Emulator) -> None:
    async with serve() as served, served.browser() as browser:
        assert sent_cookies(await browser.get("/plain")) == {}
    async with serve(track_requests="Request") as served, served.browser() as browser:
        visitor = sent_cookies(await browser.get("/plain"))["mp_visitor"].value
    assert_tracked(emulator, "Request", distinct_id=visitor, properties={"path": "/plain"})


async def test_full_queue_does_not_fail_a_tracked_request(serve: Serve) -> None:
    options = {"overflow": Overflow.RAISE, "batching": Batches(max_pending_events=1, linger=3600.0)}
    async with serve(client=options, track_requests="Request") as served, served.browser() as browser:
        assert (await browser.get("/signout")).status_code == 200
        assert (await browser.get("/signout")).status_code == 200


async def test_shutdown_delivers_queued_events(serve: Serve, emulator: Emulator) -> None:
    async with serve(client={"batching": Batches(linger=3600.0)}) as served, served.browser() as browser:
        await browser.get("/")
        assert emulator.requests() == []
        client = served.mixpanel.client
    assert_tracked(emulator, "Page viewed")
    with pytest.raises(ClientClosedError):
        await client.track("somebody", "Too late")
    with pytest.raises(RuntimeError, match="has no Mixpanel client yet"):
        _ = served.mixpanel.client


@only("starlette", "fastapi", "aiohttp")
async def test_client_without_id_merge_fails_the_startup(serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match="MIXPANEL_ID_MERGE"):
        async with serve(client={"id_merge": None}):
            pass


async def test_using_replaces_the_client_in_a_test(serve: Serve, emulator: Emulator) -> None:
    other = Emulator(IdMerge.ORIGINAL)
    async with serve() as served, served.browser() as browser, other.client(id_merge=IdMerge.ORIGINAL) as mp:
        with served.mixpanel.using(mp):
            await browser.get("/")
        await browser.get("/")
        await mp.flush()
        assert len(other.events("Page viewed")) == 1
    assert len(emulator.events("Page viewed")) == 1


@pytest.mark.parametrize("system", IdMerge, ids=lambda system: system.value)
async def test_visits_of_one_user_form_one_person(framework: str, system: IdMerge) -> None:
    """Visit, sign-up, login on a second device, sign-out, second user in the same browser."""
    emulator = Emulator(system)

    def make() -> AsyncMixpanel:
        return emulator.client(id_merge=system, batching=Batches(linger=0.0))

    async with serving(framework, make) as served, served.browser() as laptop, served.browser() as phone:
        for browser, path in (
            (laptop, "/"),
            (laptop, "/signin/maya?new"),
            (phone, "/"),
            (phone, "/signin/maya"),
        ):
            await browser.get(path)
            await served.mixpanel.client.flush()
        hers = {laptop.cookies["mp_visitor"], phone.cookies["mp_visitor"]}
        await laptop.get("/signout")
        await laptop.get("/")
        await laptop.get("/signin/noah?new")
        his = laptop.cookies["mp_visitor"]
    prefix = "$device:" if system is IdMerge.SIMPLIFIED else ""
    assert emulator.cluster("maya") == {"maya", *(prefix + one for one in hers)}
    assert emulator.cluster("noah") == {"noah", prefix + his}
    assert_same_person(emulator, "maya", prefix + hers.pop())
