"""Django integration with Django's test clients: sync and async handlers, and in each of them sync and async views."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.cache import cache
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection
from django.test import AsyncClient, Client, override_settings
from django.test.utils import CaptureQueriesContext
from django_project import create_user, get_user
from framework_apps import CACHED

from mixpanel_async import BatchPolicy, ClientClosedError, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.django import current_mixpanel, mixpanel, using
from mixpanel_async.testing import assert_not_tracked, assert_profile, assert_tracked

BY_NAME = {"USER_ID": "django_project.username"}


@pytest.fixture(scope="module", autouse=True)
def database() -> None:
    call_command("migrate", verbosity=0)
    for name in ("maya", "noah"):
        create_user(name)


class Browser:
    """One browser, over the sync or the async handler of Django."""

    def __init__(self, handler: str, views: str, **options: Any) -> None:
        self.is_async = handler == "asgi"
        self.client: Any = (AsyncClient if self.is_async else Client)(raise_request_exception=False, **options)
        self.prefix = f"/{views}/"

    def get(self, path: str = "", **options: Any) -> Any:
        if not self.is_async:
            return self.client.get(self.prefix + path, **options)

        async def get() -> Any:
            return await self.client.get(self.prefix + path, **options)

        return async_to_sync(get)()

    @property
    def cookies(self) -> dict[str, str]:
        return {name: morsel.value for name, morsel in self.client.cookies.items() if morsel.value}


@pytest.fixture(params=["wsgi", "asgi"])
def handler(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["sync", "async"])
def views(request: pytest.FixtureRequest) -> Any:
    return request.param


NewBrowser = Callable[..., Browser]


@pytest.fixture
def new_browser(handler: str, views: str) -> NewBrowser:
    return lambda **options: Browser(handler, views, **options)


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(IdMerge.ORIGINAL)


Project = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def project(emulator: Emulator) -> Project:
    """Use a client of the emulator and other settings inside a `with` block, which delivers at its end."""

    @contextmanager
    def project(**values: Any) -> Iterator[None]:
        client = emulator.client(id_merge=emulator.id_merge, batching=BatchPolicy(linger=3600.0))
        with override_settings(MIXPANEL={**BY_NAME, **values}), using(client):
            yield

    return project


def test_first_visit_sets_a_cookie_with_an_anonymous_id(
    project: Project, emulator: Emulator, new_browser: NewBrowser
) -> None:
    with project():
        browser = new_browser()
        first = browser.get()
        cookie = first.cookies["mp_visitor"]
        again = browser.get("items/7/")
        assert not again.cookies
        assert first.json() == again.json() == {"user": None, "device": cookie.value}
        assert emulator.requests() == []
    assert (cookie["path"], int(cookie["max-age"]), cookie["samesite"]) == ("/", 31_536_000, "Lax")
    assert cookie["httponly"] is True
    assert cookie["secure"] == ""
    assert_tracked(emulator, "Page viewed", distinct_id=cookie.value, times=2)


def test_request_that_does_not_use_the_client_loads_no_user_and_sets_no_cookie(
    project: Project, emulator: Emulator, new_browser: NewBrowser
) -> None:
    with project():
        browser = new_browser()
        browser.client.force_login(get_user("maya"))
        with CaptureQueriesContext(connection) as queries:
            response = browser.get("plain")
    assert response.status_code == 200
    assert not response.cookies
    assert len(queries) == 0


def test_signed_in_user_is_bound(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    with project():
        browser = new_browser()
        browser.client.force_login(get_user("maya"))
        assert browser.get().json()["user"] == "maya"
    assert_tracked(emulator, "Page viewed", distinct_id="maya", properties={"$user_id": "maya"})


def test_user_id_is_the_primary_key_by_default(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    maya = get_user("maya")
    with project(USER_ID=None):
        browser = new_browser()
        browser.client.force_login(maya)
        assert browser.get().json()["user"] == str(maya.pk)
        browser = new_browser()
        browser.get("login/maya")
    assert_tracked(emulator, "Signed in", distinct_id=str(maya.pk))


def test_login_and_logout_sign_in_and_out(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    with project():
        browser = new_browser()
        first = browser.get().json()["device"]
        assert browser.get("login/maya").json()["device"] == first
        assert set(browser.cookies) == {"mp_visitor", "mp_visitor_user", "sessionid"}
        assert browser.get().json() == {"user": "maya", "device": first}
        second = browser.get("logout").json()["device"]
        assert second != first
        assert browser.get().json() == {"user": None, "device": second}
        assert browser.get("login/noah").json()["device"] == second
    assert emulator.cluster("maya") == {"maya", first}
    assert emulator.cluster("noah") == {"noah", second}
    assert_tracked(emulator, "Signed in", distinct_id="maya")
    assert_tracked(emulator, "Leaving", distinct_id="maya")


def test_login_without_an_earlier_visit_joins_the_new_visitor(
    project: Project, emulator: Emulator, new_browser: NewBrowser
) -> None:
    with project():
        device = new_browser().get("login/maya").json()["device"]
    assert emulator.cluster("maya") == {"maya", device}


def test_login_after_sign_in_tracks_nothing_more(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    with project():
        assert new_browser().get("signup/maya").status_code == 200
    assert_tracked(emulator, "Signed up", distinct_id="maya")
    assert_not_tracked(emulator, "Signed in")
    assert_profile(emulator, "maya", {"plan": "free"})


def test_login_signal_can_be_switched_off(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    with project(SIGN_IN_ON_LOGIN=False):
        assert new_browser().get("login/maya").status_code == 200
    assert emulator.requests() == []


def test_outage_of_mixpanel_delays_the_join_and_does_not_fail_login_and_logout(
    project: Project, emulator: Emulator, new_browser: NewBrowser
) -> None:
    with project():
        browser = new_browser()
        emulator.fail_next(status=503, times=2)
        device = browser.get("login/maya").json()["device"]
        assert browser.get().json()["user"] == "maya"
        assert browser.get("logout").status_code == 200
    assert emulator.cluster("maya") == {"maya", device}
    assert_tracked(emulator, "Signed in", distinct_id="maya")


def test_login_with_an_id_that_mixpanel_rejects_is_logged(
    project: Project, emulator: Emulator, new_browser: NewBrowser, caplog: pytest.LogCaptureFixture
) -> None:
    with project(USER_ID="django_project.unusable_id"):
        assert new_browser().get("login/maya").status_code == 200
    assert "login or logout not tracked" in caplog.text


@pytest.mark.parametrize("hook", ["consents", "consents_async"])
def test_without_consent_nothing_is_sent_or_stored(
    project: Project, emulator: Emulator, new_browser: NewBrowser, hook: str
) -> None:
    no = {"headers": {"X-Consent": "no"}}
    with project(CONSENT=f"django_project.{hook}"):
        browser = new_browser()
        for path in ("", "login/maya", "logout", "stream"):
            response = browser.get(path, **no)
            assert response.status_code == 200
            assert "mp_visitor" not in response.cookies
        browser.get("login/noah")
        assert {"mp_visitor", "mp_visitor_user"} <= set(browser.cookies)
        assert browser.get("", **no).json() == {"user": None, "device": None}
        assert not {"mp_visitor", "mp_visitor_user"} & set(browser.cookies)
    assert_not_tracked(emulator, "Page viewed")


def test_events_have_properties_from_the_headers(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    headers = {
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0",
        "Referer": "https://search.example/find?q=private",
        "X-Forwarded-For": "203.0.113.99, 198.51.100.7",
        "X-Forwarded-Proto": "https",
    }
    with project(TRUSTED_PROXIES=1, COOKIE={"NAME": "anon", "domain": "shop.example"}):
        cookie = new_browser().get(headers=headers).cookies["anon"]
    assert cookie["secure"] is True
    assert cookie["domain"] == "shop.example"
    expected = {"$browser": "Chrome", "$os": "Linux", "$referring_domain": "search.example", "ip": "198.51.100.7"}
    assert_tracked(emulator, "Page viewed", properties=expected)


def test_exception_in_the_view_reaches_django_unchanged(
    project: Project, emulator: Emulator, new_browser: NewBrowser
) -> None:
    with project():
        response = new_browser().get("breaks")
        assert response.status_code == 500
        assert response.exc_info[0] is RuntimeError
    assert_tracked(emulator, "About to break", distinct_id=response.cookies["mp_visitor"].value)


def test_streaming_response_sets_the_cookie(project: Project, emulator: Emulator, new_browser: NewBrowser) -> None:
    with project():
        visitor = new_browser().get("stream").cookies["mp_visitor"].value
    assert_tracked(emulator, "Stream begun", distinct_id=visitor)


@pytest.mark.parametrize(("given", "expected", "has_cookie"), CACHED)
def test_no_shared_cache_stores_the_cookie_of_a_visitor(
    project: Project, new_browser: NewBrowser, given: str, expected: str, has_cookie: bool
) -> None:
    with project():
        browser = new_browser()
        first = browser.get(f"cached?cache={quote(given)}")
        assert (bool(first.cookies), first["Cache-Control"]) == (has_cookie, expected)
        assert browser.get().get("Cache-Control") == (None if has_cookie else "private")
        assert browser.get(f"cached?cache={quote(given)}")["Cache-Control"] == given


def test_cache_of_django_does_not_give_one_visitor_to_all(
    project: Project, new_browser: NewBrowser, views: str
) -> None:
    caching = ["django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware"]
    with project(), override_settings(MIDDLEWARE=[caching[0], *settings.MIDDLEWARE, caching[1]]):
        cache.clear()
        found = []
        for _ in range(2):
            browser = new_browser()
            # Cookies that many visitors have.
            browser.client.cookies["theme"] = "dark"
            found.append(browser.get().cookies["mp_visitor"].value)
        assert found[0] != found[1]


def test_requests_are_tracked_with_route_and_status(
    project: Project, emulator: Emulator, new_browser: NewBrowser, views: str
) -> None:
    with project(TRACK_REQUESTS="Request"):
        browser = new_browser()
        for path in ("plain", "items/7/?token=secret", "breaks", "nowhere"):
            browser.get(path)
    events = [event["properties"] for event in emulator.events("Request")]
    assert [(event["method"], event["path"], event["status"]) for event in events] == [
        ("GET", f"/{views}/plain", 200),
        ("GET", f"/{views}/items/<int:item>/", 200),
        ("GET", f"/{views}/breaks", 500),
    ]
    assert len({event["distinct_id"] for event in events}) == 1


def test_call_that_an_async_view_does_not_await_runs_after_the_view(
    project: Project, emulator: Emulator, handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    with project():
        visitor = Browser(handler, "async").get("unawaited").cookies["mp_visitor"].value
    assert_tracked(emulator, "Not awaited", distinct_id=visitor)
    assert "a call that the view did not await failed" in caplog.text


def test_id_in_an_async_view_needs_a_loaded_user(project: Project, handler: str) -> None:
    with project():
        response = Browser(handler, "async").get("early")
    assert response.status_code == 500
    assert "use (await request.mixpanel).user_id" in str(response.exc_info[1])


def test_user_of_a_token_is_bound_in_async_views(project: Project, emulator: Emulator, handler: str) -> None:
    with project():
        assert Browser(handler, "async").get("token", headers={"X-Token": "maya"}).status_code == 200
    assert_tracked(emulator, "Page viewed", distinct_id="maya")


@pytest.mark.asyncio
async def test_async_test_with_the_async_client(emulator: Emulator) -> None:
    with using(emulator.client(id_merge=IdMerge.ORIGINAL)):
        browser = AsyncClient()
        for _ in range(3):
            assert (await browser.get("/async/")).status_code == 200
        await mixpanel.flush()
        assert_tracked(emulator, "Page viewed", times=3)


@pytest.mark.asyncio
async def test_sync_client_in_an_async_test(emulator: Emulator) -> None:
    with using(emulator.client(id_merge=IdMerge.ORIGINAL)):
        assert Client().get("/sync/cached?cache=public").status_code == 200
    assert_tracked(emulator, "Page viewed")


def test_client_outside_requests_works_in_sync_and_async_code(project: Project, emulator: Emulator) -> None:
    async def report() -> None:
        await mixpanel.track("user-1", "Report sent")

    with project():
        mixpanel.track("user-1", "Report sent")
        async_to_sync(report)()
        bound = mixpanel.bind(user_id="user-1")
        bound.people_set({"plan": "free"})
        assert mixpanel.flush().pending == 0
        assert mixpanel.stats().delivered == 3
    assert_tracked(emulator, "Report sent", distinct_id="user-1", times=2)
    assert_profile(emulator, "user-1", {"plan": "free"})


def test_closed_client_says_so(emulator: Emulator) -> None:
    with using(emulator.client(id_merge=IdMerge.ORIGINAL)):
        bound = mixpanel.bind(user_id="user-1")
        mixpanel.close()
        with pytest.raises(ClientClosedError):
            bound.track("Too late")


def test_threads_use_the_client_at_once(project: Project, emulator: Emulator, views: str) -> None:
    def visit() -> None:
        for _ in range(10):
            assert Client().get(f"/{views}/cached?cache=public").status_code == 200
        connection.close()

    with project():
        threads = [threading.Thread(target=visit) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_tracked(emulator, "Page viewed", times=60)


def test_current_client_outside_a_request_raises() -> None:
    with pytest.raises(LookupError, match="no request is running"):
        current_mixpanel()


def test_unknown_attribute_raises(project: Project) -> None:
    with project():
        with pytest.raises(AttributeError, match="no attribute 'trakc'"):
            _ = mixpanel.trakc
        with pytest.raises(AttributeError, match="no attribute '_queue'"):
            _ = mixpanel._queue


def test_settings_make_the_client(emulator: Emulator) -> None:
    with emulator.serve() as server:
        options = {
            "TOKEN": "token",
            "API_HOST": server.url,
            "ID_MERGE": "original",
            "SUPER_PROPERTIES": {"app": "shop"},
        }
        with override_settings(MIXPANEL=options):
            assert Client().get("/sync/").status_code == 200
    assert_tracked(emulator, "Page viewed", properties={"app": "shop"})


def test_request_succeeds_without_a_token(caplog: pytest.LogCaptureFixture, new_browser: NewBrowser) -> None:
    with override_settings(MIXPANEL={"ID_MERGE": "original"}), caplog.at_level(logging.ERROR, "mixpanel_async"):
        browser = new_browser()
        for path in ("", "login/maya", "logout"):
            assert browser.get(path).status_code == 200
    words = [record.getMessage() for record in caplog.records if record.name == "mixpanel_async"]
    assert words == ["tracking is off, because the Mixpanel client could not start: MIXPANEL_TOKEN is not set"]


def test_disabled_client_starts_no_thread_and_sends_nothing(
    emulator: Emulator, new_browser: NewBrowser, caplog: pytest.LogCaptureFixture
) -> None:
    # The threads of clients in earlier tests may still end.
    before = {*threading.enumerate()}
    with using(emulator.client(enabled=False)):
        browser = new_browser()
        assert browser.get("").status_code == 200
        mixpanel.track("user-1", "Report sent")
        assert "mixpanel client" not in {thread.name for thread in {*threading.enumerate()} - before}
        for path in ("login/maya", "signup/maya", "logout"):
            assert browser.get(path).status_code == 200
        assert mixpanel.flush().delivered == 0
        assert caplog.text == ""
    assert emulator.requests() == []


GOOD = {"TOKEN": "token", "ID_MERGE": "simplified"}


@pytest.mark.parametrize(
    ("value", "number", "words"),
    [
        (GOOD, None, ""),
        ({"ID_MERGE": "simplified"}, "W001", "there is no Mixpanel token"),
        ({"TOKEN": "token"}, "E002", "ID Merge"),
        ("token", "E001", "must be a dict, not str"),
        ({**GOOD, "TOKNE": ""}, "E001", "unknown key 'TOKNE'; did you mean 'TOKEN'?"),
        ({**GOOD, "X": ""}, "E001", "unknown key 'X'; known keys: ALLOW_HTTP, API_HOST"),
        ({**GOOD, "UNSUPPORTED": ""}, "E001", "unknown key 'UNSUPPORTED'"),
        ({**GOOD, "ID_MERGE": "new"}, "E001", "must be legacy, original, simplified, not 'new'"),
        ({**GOOD, "REGION": "mars"}, "E001", "region"),
        ({**GOOD, "USER_ID": "nowhere.at_all"}, "E001", "MIXPANEL['USER_ID'] cannot be imported"),
        ({**GOOD, "CONSENT": 7}, "E001", "MIXPANEL['CONSENT'] must be a function or its dotted path, not 7"),
        ({**GOOD, "COOKIE": "anon"}, "E001", "must be a dict or a CookiePolicy"),
        ({**GOOD, "COOKIE": {"AGE": 7}}, "E001", "MIXPANEL['COOKIE']"),
        ({**GOOD, "COOKIE": {"MAX_AGE": 0}}, "E001", "max_age"),
        ({**GOOD, "GEOLOCATE": 1}, "E001", "MIXPANEL['GEOLOCATE'] must be True or False, not 1"),
        ({**GOOD, "TRACK_REQUESTS": ""}, "E001", "track_requests must be an event name"),
        ({**GOOD, "SIGN_IN_TIMEOUT": 0}, "E001", "sign_in_timeout must be between 0.001 and 60"),
        ({**GOOD, "TRUSTED_PROXIES": -1}, "E001", "trusted_proxies"),
        ({**GOOD, "CLIENT": "django_project.page"}, "E001", "remove TOKEN, ID_MERGE from MIXPANEL"),
    ],
    ids=repr,
)
def test_system_check_explains_wrong_settings(value: Any, number: str | None, words: str) -> None:
    with override_settings(MIXPANEL=value):
        messages = [one for one in run_checks() if str(one.id).startswith("mixpanel_async")]
    assert [one.id for one in messages] == ([] if number is None else [f"mixpanel_async.{number}"])
    assert all(words in one.msg for one in messages)


def test_system_check_finds_a_missing_middleware() -> None:
    with override_settings(MIXPANEL=GOOD, MIDDLEWARE=[]):
        (message,) = [one for one in run_checks() if str(one.id).startswith("mixpanel_async")]
    assert message.id == "mixpanel_async.W002"
