"""`sign_in` and `sign_out` join and separate users correctly in each of the three ID Merge systems."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BoundMixpanel,
    ConfigurationError,
    IdMerge,
    MixpanelException,
    Overflow,
    QueueFullError,
    RetryPolicy,
    ValidationError,
)
from mixpanel_async import BatchPolicy as Batches
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_different_people, assert_not_tracked, assert_same_person, assert_tracked

pytestmark = pytest.mark.anyio

LAPTOP = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
PHONE = "9b0d8c7e-5f4a-4c3b-8a29-1f0e2d3c4b5a"
QUICK = RetryPolicy(attempts=3, initial=0.0, maximum=0.0)

systems = pytest.mark.parametrize("system", IdMerge, ids=lambda system: system.value)


def project(system: IdMerge, **options: Any) -> tuple[Emulator, AsyncMixpanel]:
    emulator = Emulator(system)
    return emulator, emulator.client(id_merge=system, identity_retry=QUICK, **options)


def device(emulator: Emulator, device_id: str | None) -> str:
    """Return the id of an anonymous visitor as the project reports it."""
    assert device_id is not None
    return f"$device:{device_id}" if emulator.id_merge is IdMerge.SIMPLIFIED else device_id


def verbs(emulator: Emulator) -> list[tuple[str, str]]:
    """Return the names of the identity calls that were sent, without ordinary events."""
    return [(entry["event"], entry["outcome"]) for entry in emulator.identity_log() if entry["event"][0] == "$"]


@systems
async def test_sign_up_assigns_earlier_events_to_the_user(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        await visitor.track("Page viewed")
        await visitor.sign_in("maya", properties={"plan": "free"}, is_new=True)
        assert (visitor.user_id, visitor.device_id) == ("maya", LAPTOP)
        await visitor.track("Report opened")
    assert emulator.cluster("maya") == {"maya", device(emulator, LAPTOP)}
    for name in ("Page viewed", "Signed up", "Report opened"):
        assert_tracked(emulator, name, distinct_id="maya")
    assert_tracked(emulator, "Signed up", properties={"plan": "free"})
    sent = {"simplified": [], "original": [("$identify", "merged")], "legacy": [("$create_alias", "merged")]}
    assert verbs(emulator) == sent[system.value]


@systems
async def test_second_device_joins_at_login(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        await mp.bind(device_id=LAPTOP).sign_in("maya", is_new=True)
        await mp.flush()
        phone = mp.bind(device_id=PHONE)
        await phone.track("Page viewed")
        await mp.flush()
        await phone.sign_in("maya")
    assert emulator.cluster("maya") == {"maya", device(emulator, LAPTOP), device(emulator, PHONE)}
    assert_tracked(emulator, "Signed in", distinct_id="maya")
    # Legacy does not rewrite history: events of a second device before the login stay separate.
    assert (system is IdMerge.LEGACY) != (
        emulator.events("Page viewed")[0]["properties"]["distinct_id"] == emulator.resolve("maya")
    )


@systems
async def test_login_keeps_earlier_events_of_the_user(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        await mp.track("maya", "Imported from before")
        await mp.people_set("maya", {"$name": "Maya"})
        await mp.flush()
        await mp.bind(device_id=LAPTOP).sign_in("maya")
    assert_tracked(emulator, "Imported from before", distinct_id=device(emulator, LAPTOP))
    assert (emulator.profile("maya") or {})["$name"] == "Maya"
    assert_same_person(emulator, "maya", device(emulator, LAPTOP))


@systems
async def test_repeated_sign_in_sends_no_identity_call(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        await visitor.sign_in("maya", is_new=True)
        await visitor.sign_in("maya")
        # The next request of the browser knows the user only from the link.
        shared = mp.bind(properties={"app": "shop"})
        for client in (mp, shared):
            later = client.bind(device_id=LAPTOP, link=visitor.link, last_user_id="maya")
            await later.sign_in("maya")
            assert (later.device_id, later.link) == (LAPTOP, visitor.link)
    assert emulator.cluster("maya") == {"maya", device(emulator, LAPTOP)}
    assert len(verbs(emulator)) == (0 if system is IdMerge.SIMPLIFIED else 1)
    assert len(emulator.events("Signed in")) == 3


@systems
async def test_visitor_after_sign_out_is_a_new_user(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        await visitor.sign_in("maya", is_new=True)
        visitor.sign_out()
        assert visitor.user_id is visitor.link is None
        stranger = visitor.device_id
        assert stranger not in {None, LAPTOP}
        assert uuid.UUID(stranger).version == 4
        await visitor.track("Page viewed")
    assert_different_people(emulator, "maya", device(emulator, stranger))
    assert_tracked(emulator, "Page viewed", distinct_id=device(emulator, stranger))


@systems
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
@pytest.mark.parametrize("remembered", ["by the link", "by the user who was signed in"])
async def test_second_user_of_a_browser_gets_a_new_id(system: IdMerge, is_new: bool, remembered: str) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        await visitor.sign_in("maya", is_new=True)
        # No sign-out in between.
        if remembered == "by the link":
            visitor = mp.bind(device_id=LAPTOP, link=visitor.link)
        else:
            visitor = mp.bind(device_id=LAPTOP, user_id="maya")
        await visitor.sign_in("noah", is_new=is_new)
        assert visitor.device_id != LAPTOP
        await visitor.track("Report opened")
    assert emulator.cluster("maya") == {"maya", device(emulator, LAPTOP)}
    assert emulator.cluster("noah") == {"noah", device(emulator, visitor.device_id)}
    assert_tracked(emulator, "Report opened", distinct_id="noah")


@pytest.mark.parametrize("system", [IdMerge.ORIGINAL, IdMerge.LEGACY], ids=lambda system: system.value)
async def test_failed_sign_in_raises_and_can_be_repeated(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        emulator.fail_next(status=503, times=3)
        with pytest.raises(ApiError) as caught:
            await visitor.sign_in("maya", is_new=True)
        assert (caught.value.status, caught.value.attempts) == (503, 3)
        assert (visitor.user_id, visitor.device_id, visitor.link) == (None, LAPTOP, None)
        await mp.flush()
        assert_not_tracked(emulator, "Signed up")
        await visitor.sign_in("maya", is_new=True)
    assert emulator.cluster("maya") == {"maya", LAPTOP}
    assert_tracked(emulator, "Signed up", distinct_id="maya")


@pytest.mark.parametrize("system", [IdMerge.ORIGINAL, IdMerge.LEGACY], ids=lambda system: system.value)
@pytest.mark.parametrize("times", [2, 3])
async def test_sign_in_can_be_repeated_after_a_lost_response(system: IdMerge, times: int) -> None:
    """Mixpanel applied the call and the response was lost, in one attempt or in all of them."""
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        emulator.drop_connections(times, apply=True)
        if times == 3:
            with pytest.raises(MixpanelException, match="unknown whether"):
                await visitor.sign_in("maya", is_new=True)
        await visitor.sign_in("maya", is_new=True)
    assert emulator.cluster("maya") == {"maya", LAPTOP}
    assert_tracked(emulator, "Signed up", distinct_id="maya")


async def test_simplified_sign_in_is_queued_during_an_outage() -> None:
    emulator, mp = project(IdMerge.SIMPLIFIED, retry=RetryPolicy(initial=0.0, maximum=0.0))
    async with mp:
        emulator.fail_next(status=503, times=5)
        visitor = mp.bind(device_id=LAPTOP)
        await visitor.sign_in("maya")
        assert visitor.user_id == "maya"
    assert emulator.cluster("maya") == {"maya", f"$device:{LAPTOP}"}


async def test_sign_in_with_a_full_queue_binds_no_user() -> None:
    emulator, mp = project(IdMerge.SIMPLIFIED, overflow=Overflow.RAISE, batching=Batches(max_pending_events=1))
    async with mp:
        await mp.track("somebody", "Fills the queue")
        visitor = mp.bind(device_id=LAPTOP)
        with pytest.raises(QueueFullError):
            await visitor.sign_in("maya")
        assert visitor.user_id is visitor.link is None
        await mp.flush()
        await visitor.sign_in("maya")
    assert emulator.cluster("maya") == {"maya", f"$device:{LAPTOP}"}


async def test_original_project_uses_alias_for_ids_that_are_not_uuids() -> None:
    emulator, mp = project(IdMerge.ORIGINAL)
    async with mp:
        for installation in ("install-1", "install-2"):
            app = mp.bind(device_id=installation)
            await app.track("App opened")
            await app.sign_in("maya")
        await mp.bind(device_id="install-1").sign_in("noah")
    assert emulator.cluster("maya") == {"maya", "install-1", "install-2"}
    assert emulator.cluster("noah") == {"noah"}
    assert_tracked(emulator, "App opened", distinct_id="maya", times=2)


@systems
async def test_sign_in_without_a_device_sends_only_the_event(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        service = mp.bind()
        await service.sign_in("maya", "Logged in by token")
        await service.people_set({"plan": "free"})
        service.sign_out()
        assert service.device_id is None
    assert emulator.cluster("maya") == {"maya"}
    assert verbs(emulator) == []
    assert_tracked(emulator, "Logged in by token", distinct_id="maya")
    assert emulator.profile("maya") is not None


async def test_sign_in_without_id_merge_raises() -> None:
    async with Emulator().client() as mp:
        with pytest.raises(ConfigurationError, match="id_merge"):
            await mp.bind(device_id=LAPTOP).sign_in("maya")


@systems
async def test_invalid_sign_in_raises_before_any_request(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        for bad in ("", " ", "null", 7, None):
            with pytest.raises(ValidationError, match="user_id"):
                await visitor.sign_in(bad)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="bind a device_id instead"):
            await mp.bind(distinct_id=LAPTOP).sign_in("maya")
    assert emulator.requests() == []


@systems
async def test_silenced_visitor_sends_nothing(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        silent = mp.bind(device_id=LAPTOP, user_id="maya", ip="203.0.113.9").silenced()
        await silent.track("Page viewed")
        silent.track_nowait("Page viewed")
        await silent.track_immediate("Page viewed")
        await silent.sign_in("maya", is_new=True)
        await silent.people_set({"plan": "free"})
        await silent.people_update({"$set": {"plan": "free"}})
        await silent.people_track_charge(9.5)
        await silent.alias("other")
        await silent.identify("maya")
        await silent.bind(user_id="maya").track("Page viewed")
        silent.sign_out()
        assert silent.user_id is silent.device_id is silent.link is None
        assert mp.stats().accepted == 0
    assert emulator.requests() == []


@systems
async def test_bound_device_events_use_an_id_that_can_be_joined(system: IdMerge) -> None:
    emulator, mp = project(system)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        visitor.track_nowait("One")
        await visitor.track_immediate("Two")
        if system is IdMerge.ORIGINAL:
            await visitor.identify("maya")
        elif system is IdMerge.LEGACY:
            await visitor.alias("maya")
        with pytest.raises(ValidationError, match="not bound"):
            await visitor.people_set({"plan": "free"})
    whose = device(emulator, LAPTOP) if system is IdMerge.SIMPLIFIED else "maya"
    for name in ("One", "Two"):
        assert_tracked(emulator, name, distinct_id=whose)


@systems
@pytest.mark.parametrize("is_new", [True, False])
async def test_visitor_of_a_browser_sdk_signs_in_on_the_server(system: IdMerge, is_new: bool) -> None:
    """The SDK's cookie has `$device:` and a UUID, and in older versions an id of another form."""
    for at, device_id in enumerate(
        (f"$device:{LAPTOP}", "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081")
    ):
        emulator, mp = project(system)
        async with mp:
            page = {"$device_id": device_id.removeprefix("$device:")}
            await mp.track(device_id, "Viewed in the browser", page)
            await mp.flush()
            visitor = mp.bind(device_id=device_id)
            await visitor.sign_in("maya", is_new=is_new)
            link = visitor.link
            again = mp.bind(device_id=device_id, user_id="maya", link=link)
            await again.sign_in("maya")
        assert again.device_id == device_id
        assert len(verbs(emulator)) == (0 if system is IdMerge.SIMPLIFIED else 1)
        assert all(outcome == "merged" for _, outcome in verbs(emulator))
        # In Legacy an alias is a pointer: either the user's or the device's id points to the other one, from now on.
        whose = device_id if system is IdMerge.LEGACY else "maya"
        (viewed,) = emulator.events("Viewed in the browser")
        assert viewed["properties"]["distinct_id"] == whose
        assert emulator.cluster("maya") == {"maya", device_id if at == 0 else device(emulator, device_id)}


async def test_link_of_a_simplified_project_is_equal_for_both_forms_of_a_device() -> None:
    _, mp = project(IdMerge.SIMPLIFIED)
    async with mp:
        visitor = mp.bind(device_id=LAPTOP)
        await visitor.sign_in("maya")
        again = mp.bind(device_id=f"$device:{LAPTOP}", link=visitor.link)
        await again.sign_in("maya")
        assert again.device_id == f"$device:{LAPTOP}"


class Household:
    """Model of users, browsers and stored links."""

    def __init__(self, mp: AsyncMixpanel, browsers: int) -> None:
        self.mp = mp
        self.jars: list[tuple[str, str | None]] = [(mp.new_device_id(), None) for _ in range(browsers)]
        self.owners: dict[str, str] = {}
        self.known: set[str] = set()

    async def sign_in(self, browser: int, person: str) -> None:
        bound = self._bound(browser)
        await bound.sign_in(person, is_new=person not in self.known)
        self.known.add(person)
        self._keep(browser, bound)
        assert bound.device_id is not None
        assert self.owners.setdefault(bound.device_id, person) == person

    def sign_out(self, browser: int) -> None:
        bound = self._bound(browser)
        bound.sign_out()
        self._keep(browser, bound)

    def _bound(self, browser: int) -> BoundMixpanel:
        device_id, link = self.jars[browser]
        return self.mp.bind(device_id=device_id, link=link)

    def _keep(self, browser: int, bound: BoundMixpanel) -> None:
        assert bound.device_id is not None
        self.jars[browser] = (bound.device_id, bound.link)


STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["maya", "noah", "out"])), max_size=12)


@systems
@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
async def test_no_order_of_logins_merges_two_users(system: IdMerge, steps: list[tuple[int, str]]) -> None:
    emulator, mp = project(system)
    async with mp:
        household = Household(mp, browsers=3)
        for browser, who in steps:
            if who == "out":
                household.sign_out(browser)
            else:
                await household.sign_in(browser, who)
                await mp.flush()
    for person in household.known:
        devices = {device(emulator, one) for one, owner in household.owners.items() if owner == person}
        assert emulator.cluster(person) == {person, *devices}
