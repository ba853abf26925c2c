"""Identity examples of the official documentation, with `await`, give the documented results.

The code is that of `docs/identity-management.md` in the official SDK, except for the constructor and `await`. It runs
against the emulator, in-process and over a socket, on both event loops. The second half sends the worked sequences of
identity calls in Mixpanel's documentation.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    AuthenticationError,
    IdentityError,
    IdMerge,
    MixpanelException,
    PayloadTooLargeError,
    RateLimitError,
    RetryPolicy,
    ServiceAccountCredentials,
    TransportError,
)
from mixpanel_async.emulator import Emulator

TOKEN: Final = "YOUR_PROJECT_TOKEN"
SECRET: Final = "YOUR_API_SECRET"
ACCOUNT: Final = ("sdk.service-account", "account-secret", "2195193")
# Three attempts without backoff.
AT_ONCE: Final = RetryPolicy(attempts=3, initial=0.0, maximum=0.0, total_timeout=10.0)

Open = Callable[..., AbstractAsyncContextManager[AsyncMixpanel]]


@pytest.fixture
def emulator() -> Emulator:
    """Project with Original ID Merge, which the documentation describes."""
    return Emulator(id_merge=IdMerge.ORIGINAL, token=TOKEN, secret=SECRET, service_account=ACCOUNT)


@pytest.fixture(params=["in-process", "socket"])
def open_client(request: pytest.FixtureRequest, emulator: Emulator) -> Open:
    """Return a factory of clients of the emulator: in-process, or over a socket."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[AsyncMixpanel]:
        options = {"identity_retry": AT_ONCE, **options}
        if request.param == "in-process":
            async with emulator.client(TOKEN, **options) as mp:
                yield mp
        else:
            async with emulator.serve() as server, AsyncMixpanel(TOKEN, api_host=server.url, **options) as mp:
                yield mp

    return opened


def persons(emulator: Emulator, name: str) -> list[str]:
    """Return the users to whom the events of this name are attributed."""
    return [event["properties"]["distinct_id"] for event in emulator.events(name)]


def reasons(emulator: Emulator) -> list[str | None]:
    """Return the reason for each rejected identity call; None for an accepted one."""
    return [entry["$failure_reason"] for entry in emulator.identity_log()]


# "Anonymous to Identified User Flow"


@pytest.mark.anyio
async def test_sign_up_joins_visitor_and_user(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        # 1. Track anonymous user events
        anonymous_id = str(uuid.uuid4())
        await mp.track(anonymous_id, "page_viewed", {"page": "homepage"})
        await mp.track(anonymous_id, "button_clicked", {"button": "signup"})

        # 2. User signs up and gets a permanent ID
        permanent_id = "user_12345"

        # 3. Create alias to link anonymous behavior to permanent identity
        await mp.alias(permanent_id, anonymous_id)
        assert emulator.cluster(permanent_id) == {permanent_id, anonymous_id}, "when alias returns, it has happened"

        # 4. Continue tracking with permanent ID
        await mp.track(permanent_id, "signup_completed", {"method": "email"})
        await mp.people_set(permanent_id, {"$first_name": "John", "$email": "john@example.com"})

    person = emulator.resolve(permanent_id)
    assert person == emulator.resolve(anonymous_id)
    events = emulator.events()
    assert {event["event"] for event in events} == {
        "page_viewed",
        "button_clicked",
        "$create_alias",
        "signup_completed",
    }
    assert {event["properties"]["distinct_id"] for event in events} == {person}
    assert emulator.clusters() == [{permanent_id, anonymous_id}]
    for any_id in (permanent_id, anonymous_id):
        profile = emulator.profile(any_id)
        assert profile is not None
        assert (profile["$first_name"], profile["$email"]) == ("John", "john@example.com")


@pytest.mark.anyio
async def test_login_joins_visitor_and_user(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await mp.track("anonymous_12345", "page_viewed")
        await mp.flush()
        assert persons(emulator, "page_viewed") == ["anonymous_12345"]

        # Anonymous user was tracked as "anonymous_12345"
        # After signup, user gets permanent ID "user_67890"
        await mp.alias("user_67890", "anonymous_12345")

        # Now all future events for "user_67890" will be associated with
        # the historical events from "anonymous_12345"
        await mp.track("user_67890", "report_opened")
    assert persons(emulator, "page_viewed") == persons(emulator, "report_opened") == [emulator.resolve("user_67890")]


@pytest.mark.anyio
async def test_legacy_sign_up_maps_the_new_id_to_the_old_one() -> None:
    """Mixpanel's video on Legacy projects: a successful alias shows as the original id in Live View."""
    emulator = Emulator(id_merge=IdMerge.LEGACY)
    async with emulator.client(id_merge=IdMerge.LEGACY) as mp:
        await tracked(mp, "anonymous_12345", "page_viewed")
        await mp.alias("user_67890", "anonymous_12345")
        await mp.track("user_67890", "signup_completed")
        await mp.people_set("user_67890", {"$first_name": "John"})
    assert persons(emulator, "page_viewed") == persons(emulator, "signup_completed") == ["anonymous_12345"]
    assert list(emulator.profiles()) == ["anonymous_12345"]


# "Profile Consolidation"


@pytest.mark.anyio
@pytest.mark.parametrize("flushed", [True, False], ids=["profiles delivered before", "profiles still queued"])
async def test_merge_consolidates_two_users(emulator: Emulator, open_client: Open, flushed: bool) -> None:
    async with open_client() as mp:
        # Scenario: User has two accounts that need to be consolidated
        primary_id = "user_primary_123"
        duplicate_id = "user_duplicate_456"

        # Set properties on both profiles (simulating existing data)
        await mp.people_set(primary_id, {"plan": "premium", "signup_date": "2024-01-01"})
        await mp.people_set(duplicate_id, {"phone": "+1234567890", "verified": True})
        if flushed:
            await mp.flush()
            assert len(emulator.profiles()) == 2

        # Merge the profiles - all data from both will be combined
        await mp.merge(api_secret="YOUR_API_SECRET", distinct_id1=primary_id, distinct_id2=duplicate_id)

        # Continue using either ID - they now reference the same profile
        await mp.track(primary_id, "profile_merged", {"merge_reason": "duplicate_cleanup"})

    assert emulator.clusters() == [{primary_id, duplicate_id}]
    (profile,) = emulator.profiles().values()
    assert profile == emulator.profile(primary_id) == emulator.profile(duplicate_id)
    assert {name: value for name, value in profile.items() if not name.startswith("$")} == {
        "plan": "premium",
        "signup_date": "2024-01-01",
        "phone": "+1234567890",
        "verified": True,
    }
    assert persons(emulator, "profile_merged") == [emulator.resolve(duplicate_id)]


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["with a deprecated key", "by position", "service account"])
async def test_merge_accepts_every_documented_form(emulator: Emulator, open_client: Open, form: str) -> None:
    credentials = ServiceAccountCredentials(*ACCOUNT) if form == "service account" else None
    async with open_client(credentials=credentials) as mp:
        if form == "with a deprecated key":
            await mp.merge(
                api_key="DEPRECATED_API_KEY",
                api_secret="YOUR_API_SECRET",
                distinct_id1="user_email_123",
                distinct_id2="user_social_456",
            )
        elif form == "by position":
            await mp.merge(None, "user_email_123", "user_social_456", None, SECRET)
        else:
            await mp.merge(api_key=None, distinct_id1="user_email_123", distinct_id2="user_social_456")
    assert emulator.cluster("user_social_456") == {"user_email_123", "user_social_456"}


# "Error Handling"


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Failure of the server, and the error that reports it."""

    cause: Callable[[Emulator], None]
    error: type[MixpanelException]
    status: int | None
    attempts: int


TROUBLES: Final[dict[str, Trouble]] = {
    "no answer": Trouble(cause=lambda e: e.drop_connections(9), error=TransportError, status=None, attempts=3),
    "Mixpanel is down": Trouble(cause=lambda e: e.fail_next(503, times=9), error=ApiError, status=503, attempts=3),
    "Mixpanel is broken": Trouble(cause=lambda e: e.fail_next(500, times=9), error=ApiError, status=500, attempts=3),
    "rate limit": Trouble(cause=lambda e: e.fail_next(429, times=9), error=RateLimitError, status=429, attempts=3),
    "a long rate limit": Trouble(
        cause=lambda e: e.fail_next(429, times=9, retry_after=60), error=RateLimitError, status=429, attempts=1
    ),
    "bad request": Trouble(cause=lambda e: e.fail_next(400, times=9), error=ApiError, status=400, attempts=1),
    "refused": Trouble(cause=lambda e: e.fail_next(401, times=9), error=AuthenticationError, status=401, attempts=1),
    "too large": Trouble(cause=lambda e: e.fail_next(413, times=9), error=PayloadTooLargeError, status=413, attempts=1),
    "not taken": Trouble(
        cause=lambda e: e.fail_next(200, times=9, body=b'{"status":0,"error":"no"}'),
        error=ApiError,
        status=200,
        attempts=1,
    ),
    "a captive portal": Trouble(
        cause=lambda e: e.fail_next(200, times=9, body=b"<html>Welcome</html>"), error=ApiError, status=200, attempts=3
    ),
}


@pytest.mark.loops_in_turn
@pytest.mark.anyio
@pytest.mark.parametrize("name", TROUBLES)
async def test_failed_operations_raise_the_documented_errors(emulator: Emulator, open_client: Open, name: str) -> None:
    trouble = TROUBLES[name]
    caught: list[MixpanelException] = []
    printed: list[str] = []
    async with open_client() as mp:
        trouble.cause(emulator)
        try:
            await mp.alias("new_user_123", "anonymous_456")
        except MixpanelException as e:
            printed.append(f"Alias operation failed: {e}")
            caught.append(e)
            # Implement retry logic or fallback handling
        in_alias = len(emulator.requests())

        emulator.reset()
        trouble.cause(emulator)
        try:
            await mp.merge(api_secret="YOUR_API_SECRET", distinct_id1="user_1", distinct_id2="user_2")
        except MixpanelException as e:
            printed.append(f"Merge operation failed: {e}")
            caught.append(e)
            # Handle merge failure appropriately
        in_merge = len(emulator.requests())
    assert [type(error) for error in caught] == [trouble.error, trouble.error]
    assert in_alias == in_merge == trouble.attempts
    for error, endpoint in zip(caught, ("/track", "/import"), strict=True):
        assert isinstance(error, (ApiError, TransportError))
        assert (error.attempts, error.status, error.endpoint) == (trouble.attempts, trouble.status, endpoint)
    for text in printed:
        assert f"after {trouble.attempts} attempt" in text
        assert str(trouble.status or "") in text
        assert TOKEN not in text
        assert SECRET not in text
    assert emulator.identity_log() == []


@pytest.mark.anyio
async def test_wrong_secret_raises_authentication_error(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        with pytest.raises(AuthenticationError) as caught:
            await mp.merge(api_secret="WRONG_SECRET", distinct_id1="user_1", distinct_id2="user_2")
    assert (caught.value.status, caught.value.attempts, caught.value.endpoint) == (401, 1, "/import")
    assert "WRONG_SECRET" not in repr(caught.value) + str(caught.value)
    assert emulator.cluster("user_1") == {"user_1"}


@pytest.mark.anyio
async def test_call_succeeds_if_the_server_recovers_in_time(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        emulator.fail_next(503, times=2)
        await mp.alias("new_user_123", "anonymous_456")
        assert mp.stats().requests == 3
        assert mp.stats().retries == 2
    assert [entry["outcome"] for entry in emulator.identity_log()] == ["merged"]
    assert [request.status for request in emulator.requests()] == [503, 503, 200]


@pytest.mark.anyio
async def test_lost_response_is_reported_as_uncertain(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        emulator.drop_connections(3, apply=True)
        with pytest.raises(TransportError, match="unknown whether it was applied") as caught:
            await mp.alias("new_user_123", "anonymous_456")
    assert caught.value.uncertain
    assert emulator.cluster("new_user_123") == {"new_user_123", "anonymous_456"}


@pytest.mark.anyio
async def test_simplified_project_rejects_calls_without_effect() -> None:
    emulator = Emulator(id_merge=IdMerge.SIMPLIFIED)
    async with emulator.client(id_merge=IdMerge.SIMPLIFIED) as mp:
        operations: list[Callable[[], Awaitable[None]]] = [
            lambda: mp.alias("new_user_123", "anonymous_456"),
            lambda: mp.merge(api_secret=SECRET, distinct_id1="user_1", distinct_id2="user_2"),
            lambda: mp.identify("user_1", str(uuid.uuid4())),
        ]
        for operation in operations:
            with pytest.raises(IdentityError, match="user_id and device_id") as caught:
                await operation()
            assert isinstance(caught.value, MixpanelException)
    assert emulator.requests() == []


# Fact sheet 5.3.3: worked sequences of Original ID Merge. A: anonymous ids; U: users.

A1: Final = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
A2: Final = "7D444840-9DC0-41D1-B245-5FFDCE74FAD2"
A3: Final = "0e02b2c3-5b8a-4f6c-8a4e-6d2d1f2b3c4d"
U1: Final = "user-1"
U2: Final = "user-2"


async def tracked(mp: AsyncMixpanel, distinct_id: str, name: str) -> None:
    """Track an event and wait until it has arrived, so that later calls arrive after it."""
    await mp.track(distinct_id, name)
    result = await mp.flush()
    assert (result.delivered, result.failed, result.pending) == (1, 0, 0)


def assert_people(emulator: Emulator, *people: set[str]) -> None:
    for person in people:
        for distinct_id in person:
            assert emulator.cluster(distinct_id) == person


@pytest.mark.anyio
async def test_original_row_1_sign_up_keeps_earlier_events(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await tracked(mp, A1, "before")
        await mp.identify(U1, A1)
        await tracked(mp, U1, "after")
    assert_people(emulator, {U1, A1})
    assert persons(emulator, "before") == persons(emulator, "after")
    assert reasons(emulator) == [None]


@pytest.mark.anyio
async def test_original_row_2_second_device_joins_the_user(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await tracked(mp, A1, "on the first device")
        await mp.identify(U1, A1)
        await tracked(mp, A2, "on the second device")
        assert persons(emulator, "on the second device") == [A2]
        await mp.identify(U1, A2)
    assert_people(emulator, {U1, A1, A2})
    assert persons(emulator, "on the first device") == persons(emulator, "on the second device")
    assert reasons(emulator) == [None, None]


@pytest.mark.anyio
async def test_original_row_4_second_user_after_reset_stays_separate(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await tracked(mp, A1, "first")
        await mp.identify(U1, A1)
        await tracked(mp, A2, "second")
        await mp.identify(U2, A2)
    assert_people(emulator, {U1, A1}, {U2, A2})
    assert persons(emulator, "first") != persons(emulator, "second")
    assert persons(emulator, "second") == [emulator.resolve(U2)]


@pytest.mark.anyio
async def test_original_row_5_anonymous_id_stays_with_its_first_user(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await tracked(mp, A1, "first")
        await mp.identify(U1, A1)
        await mp.identify(U2, A1)
    assert_people(emulator, {U1, A1}, {U2})
    assert reasons(emulator) == [None, "errAnonDistinctIdAssignedAlready"]
    assert [event["properties"].get("$failure_reason") for event in emulator.events("$identify")] == reasons(emulator)


@pytest.mark.anyio
async def test_original_row_6_call_rejects_ids_that_mixpanel_ignores(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        with pytest.raises(IdentityError, match="anon_id"):
            await mp.identify(U1, "not-a-uuid")
        with pytest.raises(IdentityError, match="pass two different ids"):
            await mp.identify(A1, A1)
    assert emulator.requests() == []


@pytest.mark.anyio
async def test_original_row_8_aliases_form_a_chain(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await tracked(mp, A3, "by the last")
        await mp.alias(A2, A1)
        await mp.alias(A3, A2)
        await mp.identify(U1, A1)
    assert_people(emulator, {U1, A1, A2, A3})
    assert persons(emulator, "by the last") == [emulator.resolve(U1)]
    assert reasons(emulator) == [None, None, None]


@pytest.mark.anyio
async def test_original_row_11_alias_is_accepted_once(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await mp.alias("nickname", U1)
        await mp.alias("nickname", U2)
    assert_people(emulator, {U1, "nickname"}, {U2})
    assert reasons(emulator) == [None, "errAliasAlreadyExists"]


@pytest.mark.anyio
async def test_original_row_12_event_with_user_and_device_joins_no_ids(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await mp.track(U1, "both", user_id=U1, device_id=A1)
    assert_people(emulator, {U1}, {A1})


@pytest.mark.anyio
async def test_original_row_13_merge_joins_two_known_users(emulator: Emulator, open_client: Open) -> None:
    async with open_client() as mp:
        await mp.people_set(U1, {"plan": "paid"})
        await mp.people_set(U2, {"city": "Graz"})
        await tracked_all(mp, {A1: "first", A2: "second"})
        await mp.identify(U1, A1)
        await mp.identify(U2, A2)
        assert_people(emulator, {U1, A1}, {U2, A2})
        await mp.merge(api_secret=SECRET, distinct_id1=U1, distinct_id2=U2)
    assert_people(emulator, {U1, U2, A1, A2})
    assert persons(emulator, "first") == persons(emulator, "second")
    profile = emulator.profile(A2)
    assert profile is not None
    assert (profile["plan"], profile["city"]) == ("paid", "Graz")


async def tracked_all(mp: AsyncMixpanel, names: dict[str, str]) -> None:
    for distinct_id, name in names.items():
        await mp.track(distinct_id, name)
    assert (await mp.flush()).pending == 0


# Fact sheet 5.4.3: worked tables of Simplified ID Merge. D: devices.


@dataclass(frozen=True, kw_only=True)
class Step:
    """One event: its arguments, its user on arrival, and its user in the end."""

    device: str | None = None
    user: str | None = None
    distinct_id: str | None = None
    stored: str
    finally_: str


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Table of the documentation."""

    steps: tuple[Step, ...]
    people: tuple[set[str], ...]


FLOWS: Final[dict[str, Flow]] = {
    "new sign-up": Flow(
        steps=(
            Step(device="D1", stored="$device:D1", finally_=U1),
            Step(device="D1", stored="$device:D1", finally_=U1),
            Step(device="D1", user=U1, stored=U1, finally_=U1),
        ),
        people=({U1, "$device:D1"},),
    ),
    "returning on a second device": Flow(
        steps=(
            Step(device="D1", stored="$device:D1", finally_=U1),
            Step(device="D1", user=U1, stored=U1, finally_=U1),
            Step(device="D2", stored="$device:D2", finally_=U1),
            Step(device="D2", stored="$device:D2", finally_=U1),
            Step(device="D2", user=U1, stored=U1, finally_=U1),
        ),
        people=({U1, "$device:D1", "$device:D2"},),
    ),
    "two users on one device with a reset": Flow(
        steps=(
            Step(device="D1", stored="$device:D1", finally_=U1),
            Step(device="D1", user=U1, stored=U1, finally_=U1),
            Step(device="D2", stored="$device:D2", finally_=U2),
            Step(device="D2", stored="$device:D2", finally_=U2),
            Step(device="D2", user=U2, stored=U2, finally_=U2),
        ),
        people=({U1, "$device:D1"}, {U2, "$device:D2"}),
    ),
    "two users on one device without a reset": Flow(
        steps=(
            Step(device="D1", user=U1, stored=U1, finally_=U1),
            Step(device="D1", user=U2, stored=U2, finally_=U2),
            Step(device="D1", stored="$device:D1", finally_=U1),
        ),
        people=({U1, "$device:D1"}, {U2}),
    ),
    "a second user id is another user": Flow(
        steps=(
            Step(device="+6512345678", user="charlie", stored="charlie", finally_="charlie"),
            Step(user="+6512345678", stored="+6512345678", finally_="+6512345678"),
        ),
        people=({"charlie", "$device:+6512345678"}, {"+6512345678"}),
    ),
    "logging in again after logging out": Flow(
        steps=(
            Step(device="anonymous111", user="charlie", stored="charlie", finally_="charlie"),
            Step(device="anonymous222", stored="$device:anonymous222", finally_="charlie"),
            Step(device="anonymous222", user="charlie", stored="charlie", finally_="charlie"),
            Step(user="charlie", stored="charlie", finally_="charlie"),
        ),
        people=({"charlie", "$device:anonymous111", "$device:anonymous222"},),
    ),
    "another user on the new device id": Flow(
        steps=(
            Step(device="anonymous111", user="charlie", stored="charlie", finally_="charlie"),
            Step(device="anonymous222", stored="$device:anonymous222", finally_="taylor"),
            Step(device="anonymous222", user="taylor", stored="taylor", finally_="taylor"),
        ),
        people=({"charlie", "$device:anonymous111"}, {"taylor", "$device:anonymous222"}),
    ),
    "two devices that never log in": Flow(
        steps=(
            Step(device="D1", stored="$device:D1", finally_="$device:D1"),
            Step(device="D2", stored="$device:D2", finally_="$device:D2"),
        ),
        people=({"$device:D1"}, {"$device:D2"}),
    ),
    "a distinct_id alone": Flow(
        steps=(
            Step(distinct_id="$device:anonymous111", stored="$device:anonymous111", finally_="charlie"),
            Step(distinct_id="charlie", stored="charlie", finally_="charlie"),
            Step(device="anonymous111", user="charlie", stored="charlie", finally_="charlie"),
        ),
        people=({"charlie", "$device:anonymous111"},),
    ),
    "a distinct_id that user and device overrule": Flow(
        steps=(Step(distinct_id="somebody", device="D1", user=U1, stored=U1, finally_=U1),),
        people=({U1, "$device:D1"}, {"somebody"}),
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", FLOWS)
async def test_simplified_rows_have_the_documented_result(name: str) -> None:
    flow = FLOWS[name]
    emulator = Emulator(id_merge=IdMerge.SIMPLIFIED)
    async with emulator.client(id_merge=IdMerge.SIMPLIFIED) as mp:
        for number, step in enumerate(flow.steps):
            await mp.track(step.distinct_id, f"step {number}", user_id=step.user, device_id=step.device)
    stored = [event["properties"]["distinct_id"] for event in emulator.raw_events()]
    assert stored == [step.stored for step in flow.steps]
    assert [person for number in range(len(flow.steps)) for person in persons(emulator, f"step {number}")] == [
        step.finally_ for step in flow.steps
    ]
    assert_people(emulator, *flow.people)


@pytest.mark.anyio
async def test_simplified_event_with_distinct_id_alone_sets_user_or_device() -> None:
    emulator = Emulator(id_merge=IdMerge.SIMPLIFIED)
    async with emulator.client() as mp:
        await mp.track("charlie", "known")
        await mp.track("$device:anonymous111", "unknown")
        await mp.track(None, "derived", device_id="anonymous111")
    (known,), (unknown,), (derived,) = (emulator.events(name) for name in ("known", "unknown", "derived"))
    assert known["properties"]["$user_id"] == "charlie"
    assert unknown["properties"]["$device_id"] == "anonymous111"
    assert unknown["properties"]["distinct_id"] == derived["properties"]["distinct_id"] == "$device:anonymous111"


@pytest.mark.anyio
async def test_simplified_drops_the_profile_of_the_anonymous_visitor() -> None:
    emulator = Emulator(id_merge=IdMerge.SIMPLIFIED)
    async with emulator.client() as mp:
        await mp.people_set("$device:D1", {"seen": "pricing"})
        await mp.flush()
        assert (emulator.profile("$device:D1") or {})["seen"] == "pricing"
        await mp.track(None, "Signed up", user_id=U1, device_id="D1")
        await mp.flush()
        await mp.people_set(U1, {"plan": "free"})
    profile = emulator.profile(U1)
    assert profile is not None
    assert profile["plan"] == "free"
    assert "seen" not in profile


@pytest.mark.anyio
async def test_bound_visitor_signs_up_in_a_simplified_project() -> None:
    emulator = Emulator(id_merge=IdMerge.SIMPLIFIED)
    async with emulator.client(id_merge=IdMerge.SIMPLIFIED) as mp:
        visitor = mp.bind(device_id="D1")
        await visitor.track("page_viewed")
        await visitor.bind(user_id=U1).track("signup_completed")
        await visitor.track("page_viewed")
    assert_people(emulator, {U1, "$device:D1"})
    assert persons(emulator, "page_viewed") == [U1, U1]
