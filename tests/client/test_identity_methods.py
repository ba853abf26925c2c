"""`alias`, `merge` and `identify` either take effect or raise."""

from __future__ import annotations

import base64
import traceback
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    AuthenticationError,
    ClientClosedError,
    IdentityError,
    IdMerge,
    MixpanelException,
    PayloadTooLargeError,
    RateLimitError,
    RetryPolicy,
    ServiceAccountCredentials,
    TransportError,
    ValidationError,
)
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_profile, assert_tracked

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(attempts=3, initial=0.0, maximum=0.0)
ACCOUNT = ServiceAccountCredentials("account", "canary-secret", "12345")
ANON = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
BROWSER_ID = "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081"
API = "https://api.mixpanel.com"
ACCEPTED = httpx.Response(200, json={"status": 1, "error": None})


async def test_identity_calls_join_two_ids() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(credentials=ACCOUNT) as mp:
        await mp.identify("user-1", ANON)
        await mp.alias("user@example.com", "user-1")
        await mp.merge(distinct_id1="user-1", distinct_id2="old-account")
        await mp.merge("ignored-key", "user-1", "older-account", None, "project-secret")
    assert emulator.cluster(ANON) == {"user-1", ANON, "user@example.com", "old-account", "older-account"}


async def test_identity_calls_are_sent_at_once() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client() as mp:
        await mp.alias("new", "old")
        assert emulator.cluster("new") == {"new", "old"}
        assert mp.stats().accepted == 0


@respx.mock
async def test_retry_sends_the_same_payload() -> None:
    route = respx.post(url__startswith=f"{API}/track").mock(
        side_effect=[httpx.Response(503), httpx.Response(429, headers={"Retry-After": "0"}), ACCEPTED]
    )
    async with AsyncMixpanel("token", identity_retry=QUICK) as mp:
        await mp.alias("new", "old")
    assert route.call_count == 3
    assert len({call.request.content for call in route.calls}) == 1


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ApiError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, ApiError),
        (413, PayloadTooLargeError),
        (302, ApiError),
    ],
)
@pytest.mark.parametrize("verb", ["alias", "merge", "identify"])
@respx.mock
async def test_permanent_error_is_not_retried(status: int, kind: type[ApiError], verb: str) -> None:
    route = respx.post(url__startswith=API).mock(
        return_value=httpx.Response(status, json={"error": "in words", "status": "error"})
    )
    async with AsyncMixpanel("token", identity_retry=QUICK, credentials=ACCOUNT) as mp:
        with pytest.raises(kind, match="in words") as caught:
            await _call(mp, verb)
    error = caught.value
    assert route.call_count == 1
    assert (error.attempts, error.status) == (1, status)
    assert error.endpoint == ("/import" if verb == "merge" else "/track")


async def _call(mp: AsyncMixpanel, verb: str) -> None:
    if verb == "alias":
        await mp.alias("new", "old")
    elif verb == "merge":
        await mp.merge(distinct_id1="one", distinct_id2="two")
    else:
        await mp.identify("user", ANON)


@respx.mock
async def test_status_200_with_a_failure_body_raises() -> None:
    respx.post(url__startswith=API).mock(return_value=httpx.Response(200, json={"status": 0, "error": "bad token"}))
    async with AsyncMixpanel("token", identity_retry=QUICK) as mp:
        with pytest.raises(ApiError, match="bad token") as caught:
            await mp.alias("new", "old")
    assert (caught.value.status, caught.value.attempts) == (200, 1)


@respx.mock
async def test_retry_after_beyond_the_deadline_raises_at_once() -> None:
    respx.post(url__startswith=API).mock(return_value=httpx.Response(429, headers={"Retry-After": "120"}))
    async with AsyncMixpanel("token") as mp:
        with pytest.raises(RateLimitError) as caught, anyio.fail_after(5):
            await mp.alias("new", "old")
    assert (caught.value.attempts, caught.value.retry_after) == (1, 120.0)


@pytest.mark.parametrize(
    ("failure", "uncertain"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("slow"), False),
        (httpx.ReadTimeout("slow"), True),
        (httpx.RemoteProtocolError("gone"), True),
    ],
)
@respx.mock
async def test_missing_response_raises_with_uncertain_flag(failure: Exception, uncertain: bool) -> None:
    respx.post(url__startswith=API).mock(side_effect=failure)
    async with AsyncMixpanel("token", identity_retry=QUICK) as mp:
        with pytest.raises(TransportError) as caught:
            await mp.alias("new", "old")
    error = caught.value
    assert (error.attempts, error.uncertain, error.endpoint, error.status) == (3, uncertain, "/track", None)


async def test_deadline_ends_a_call_without_response() -> None:
    emulator = Emulator()
    emulator.latency = 3600.0
    policy = RetryPolicy(attempts=None, initial=0.0, maximum=0.0, total_timeout=0.1)
    async with emulator.client(identity_retry=policy, timeout=3600.0) as mp:
        with pytest.raises(TransportError, match="unknown whether"), anyio.fail_after(10):
            await mp.alias("new", "old")


@pytest.mark.parametrize(
    "anon_id",
    [
        "not-a-uuid",
        ANON.replace("-", ""),
        f"{ANON[:-1]}g",
        f"$device:$device:{ANON}",
        "$device:",
        f" {ANON}",
    ],
)
async def test_identify_rejects_ids_that_mixpanel_ignores(anon_id: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client() as mp:
        with pytest.raises(IdentityError, match="anon_id"):
            await mp.identify("user", anon_id)
    assert emulator.requests() == []


@pytest.mark.parametrize("anon_id", [ANON.upper(), "640ce5f2-ebf5-11f1-9db9-02fc00000001", BROWSER_ID])
@pytest.mark.parametrize("prefix", ["", "$device:"])
async def test_identify_accepts_ids_of_every_sdk(prefix: str, anon_id: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(id_merge=IdMerge.ORIGINAL) as mp:
        await mp.identify("user", prefix + anon_id)
    assert emulator.cluster("user") == {"user", prefix + anon_id}


@pytest.mark.parametrize("device_id", [ANON, BROWSER_ID])
@pytest.mark.parametrize("prefix", ["", "$device:"])
@pytest.mark.parametrize("system", [None, *IdMerge])
async def test_device_id_may_have_its_prefix(system: IdMerge | None, prefix: str, device_id: str) -> None:
    """`$device_id` never has the prefix. The `distinct_id` has it once, or in Original and Legacy as it was given."""
    emulator = Emulator(system or IdMerge.ORIGINAL)
    async with emulator.client(id_merge=system) as mp:
        visitor = mp.bind(device_id=prefix + device_id)
        await visitor.track("Viewed")
        await mp.track(None, "Viewed", device_id=prefix + device_id)
        await mp.track("", "Viewed", {"$device_id": prefix + device_id})
        await mp.flush()
        if system in {None, IdMerge.ORIGINAL}:
            await visitor.identify("user")
    sent = [event["properties"] for event in emulator.raw_events() if event["event"] == "Viewed"]
    assert [properties["$device_id"] for properties in sent] == [device_id] * 3
    own = prefix + device_id if system in {IdMerge.ORIGINAL, IdMerge.LEGACY} else f"$device:{device_id}"
    ids = [properties["distinct_id"] for properties in sent]
    assert (ids[0], ids[1]) == (own, f"$device:{device_id}")
    if system in {None, IdMerge.ORIGINAL}:
        assert emulator.cluster("user") == {"user", own}


@pytest.mark.parametrize("system", [None, IdMerge.ORIGINAL])
async def test_every_call_takes_the_id_of_a_device(system: IdMerge | None) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    visitors = [f"$device:{ANON[:-1]}{number}" for number in range(4)]
    async with emulator.client(id_merge=system) as mp:
        await mp.track(visitors[0], "Viewed")
        await mp.people_set(visitors[0], {"plan": "free"})
        await mp.identify("user", visitors[0])
        await mp.alias("user", visitors[1])
        await mp.alias(visitors[2], "user")
        await mp.merge(None, visitors[2], visitors[3])
        await mp.flush()
    assert emulator.cluster("user") == {"user", *visitors}
    assert_profile(emulator, "user", {"plan": "free"})
    assert_tracked(emulator, "Viewed", distinct_id="user")


@pytest.mark.parametrize("system", [None, IdMerge.ORIGINAL])
async def test_bound_device_id_that_is_no_text_is_rejected(system: IdMerge | None) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(id_merge=system) as mp:
        with pytest.raises(ValidationError, match="anon_id: must be a string"):
            await mp.bind(device_id=5).identify("user")  # type: ignore[arg-type]


async def test_device_is_not_signed_in_as_a_user() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(id_merge=IdMerge.ORIGINAL) as mp:
        visitor = mp.bind(device_id=ANON)
        with pytest.raises(ValidationError, match="pass it as device_id"):
            await visitor.sign_in(f"$device:{ANON}")
    assert emulator.requests() == []


@pytest.mark.parametrize("verb", ["alias", "merge", "identify"])
async def test_simplified_project_rejects_identity_calls(verb: str) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    async with emulator.client(id_merge=IdMerge.SIMPLIFIED, credentials=ACCOUNT) as mp:
        with pytest.raises(IdentityError, match="user_id and device_id"):
            await _call(mp, verb)
    assert emulator.requests() == []


async def test_legacy_project_accepts_only_alias() -> None:
    async with Emulator(IdMerge.LEGACY).client(id_merge=IdMerge.LEGACY, credentials=ACCOUNT) as mp:
        await _call(mp, "alias")
        for verb in ("merge", "identify"):
            with pytest.raises(IdentityError, match="use alias"):
                await _call(mp, verb)


@pytest.mark.parametrize("bad", ["", " ", "null", "UNDEFINED", "00000000-0000-0000-0000-000000000000", None, 7, b"x"])
async def test_placeholder_ids_are_rejected_without_a_request(bad: Any) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(credentials=ACCOUNT) as mp:
        for call in (
            mp.alias(bad, "x"),
            mp.alias("x", bad),
            mp.identify(bad, ANON),
            mp.identify("x", bad),
            mp.merge(distinct_id1=bad, distinct_id2="x"),
            mp.merge(distinct_id1="x", distinct_id2=bad),
        ):
            with pytest.raises(ValidationError):
                await call
    assert emulator.requests() == []


async def test_equal_ids_are_rejected() -> None:
    async with Emulator(IdMerge.ORIGINAL).client(credentials=ACCOUNT) as mp:
        for call in (mp.alias("a", "a"), mp.merge(None, "a", "a"), mp.identify(ANON, ANON)):
            with pytest.raises(IdentityError, match="pass two different ids"):
                await call


async def test_merge_without_credentials_is_authenticated_by_the_token() -> None:
    refusing = Emulator(IdMerge.ORIGINAL, token="token", service_account=("account", "secret", "1"))
    async with refusing.client("other-token") as mp:
        with pytest.raises(AuthenticationError):
            await mp.merge(distinct_id1="a", distinct_id2="b")
    taking = Emulator(IdMerge.ORIGINAL)
    async with taking.client() as mp:
        await mp.merge(distinct_id1="a", distinct_id2="b")
    assert taking.cluster("a") == {"a", "b"}


async def test_concurrent_calls_share_a_bounded_pool() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with (
        emulator.serve() as server,
        AsyncMixpanel("token", api_host=server.url) as mp,
        anyio.create_task_group() as tasks,
    ):
        for number in range(300):
            tasks.start_soon(mp.alias, f"alias-{number}", "person")
    assert len(emulator.cluster("person")) == 301


async def test_cancelled_call_leaves_the_pool_intact() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.serve() as server, AsyncMixpanel("token", api_host=server.url) as mp:
        for steps in range(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mp.alias, f"alias-{steps}", "person")
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            await mp.alias("last", "person")
    assert "last" in emulator.cluster("person")


async def test_close_ends_a_call_in_flight() -> None:
    emulator = Emulator()
    emulator.latency = 3600.0
    mp = emulator.client(shutdown_timeout=0.05, timeout=3600.0)
    errors: list[MixpanelException] = []

    async def call() -> None:
        try:
            await mp.alias("new", "old")
        except MixpanelException as error:
            errors.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            await mp.aclose()
    assert [type(error) for error in errors] == [ClientClosedError]


async def test_errors_mask_credentials_that_the_server_repeats() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        words = f"no: {request.headers['Authorization']} canary-secret"
        return httpx.Response(401, json={"error": words, "code": 401, "status": "Unauthorized"})

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(echo))
    async with AsyncMixpanel("token", credentials=ACCOUNT, http_client=http_client) as mp:
        with pytest.raises(AuthenticationError) as caught:
            await mp.merge(distinct_id1="a", distinct_id2="b")
        shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
        shown += str(vars(caught.value)) + repr(mp.stats()) + repr(mp)
    assert "canary" not in shown
    assert base64.b64encode(b"account:canary-secret").decode() not in shown
    error: BaseException | None = caught.value
    while error is not None:
        assert type(error).__module__.split(".")[0] == "mixpanel_async"
        error = error.__cause__ or error.__context__


IDENTIFY = {"$identified_id": "user-1", "$anon_id": ANON}
ALIAS = {"alias": "user-1", "distinct_id": "visitor"}
MERGE = {"$distinct_ids": ["user-1", "visitor"]}


@pytest.mark.parametrize(
    ("id_merge", "name", "properties", "problem"),
    [
        (IdMerge.SIMPLIFIED, "$identify", IDENTIFY, "simplified ID merge; track an event with user_id and device_id"),
        (IdMerge.SIMPLIFIED, "$create_alias", ALIAS, "simplified ID merge"),
        (IdMerge.SIMPLIFIED, "$merge", MERGE, "simplified ID merge"),
        (IdMerge.LEGACY, "$identify", IDENTIFY, "legacy ID merge; use alias"),
        (IdMerge.LEGACY, "$merge", MERGE, "legacy ID merge; use alias"),
        (IdMerge.ORIGINAL, "$identify", {**IDENTIFY, "$anon_id": "visitor-7"}, "must be a UUID with dashes"),
        (IdMerge.ORIGINAL, "$merge", MERGE, "call merge"),
    ],
)
async def test_tracked_identity_event_without_effect_raises(
    id_merge: IdMerge, name: str, properties: dict[str, Any], problem: str
) -> None:
    emulator = Emulator(id_merge)
    async with emulator.client(id_merge=id_merge) as mp:
        # The second event of a name may take another path than the first one.
        for _ in range(2):
            with pytest.raises(IdentityError, match=problem):
                await mp.track("user-1", name, properties)
            with pytest.raises(IdentityError, match=problem):
                await mp.track_immediate("user-1", name, properties)
            with pytest.raises(IdentityError, match=problem):
                await mp.bind(user_id="user-1").track(name, properties)
        with pytest.raises(IdentityError, match=problem):
            mp.track_nowait("user-1", name, properties)
        # An import repeats what a project has exported.
        await mp.import_data(None, "user-1", name, 1_700_000_000, {**properties, "$insert_id": "a"})
    assert len(emulator.requests()) == 1


async def test_tracked_identity_event_with_effect_is_sent() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.client(id_merge=IdMerge.ORIGINAL) as mp:
        await mp.track("user-1", "$identify", IDENTIFY)
        await mp.flush()
    assert emulator.cluster("user-1") == {"user-1", ANON}
    async with Emulator(IdMerge.SIMPLIFIED).client() as mp:
        await mp.track("user-1", "$identify", IDENTIFY)


async def test_tracked_identity_event_without_effect_is_dropped_and_counted() -> None:
    async with Emulator(IdMerge.SIMPLIFIED).client(id_merge=IdMerge.SIMPLIFIED, invalid="drop") as mp:
        await mp.track("user-1", "$identify", IDENTIFY)
        assert mp.stats().losses == {"invalid": 1}
