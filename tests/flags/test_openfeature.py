"""OpenFeature provider: conversion of values and errors, and use with OpenFeature's client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import anyio
import anyio.to_thread
import pytest
from flags_server import TOKEN, Server, definitions, flag, local, until

from mixpanel_async import AsyncMixpanel
from mixpanel_async.flags import FallbackReason, LocalFlags, RemoteFlags, SelectedVariant
from mixpanel_async.integrations.openfeature import MixpanelProvider

pytest.importorskip("openfeature")
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

pytestmark = pytest.mark.anyio

# Before 0.10, `set_provider` waits until the provider is ready.
set_provider = getattr(api, "set_provider_and_wait", api.set_provider)
USER = EvaluationContext(attributes={"distinct_id": "user-1"})


class Stub:
    """Provider that returns a fixed variant and records the contexts."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.contexts: list[Any] = []

    def get_variant(self, key: str, fallback: SelectedVariant, context: Any) -> Any:
        self.contexts.append(context)
        if isinstance(self.result, Exception):
            raise self.result
        if isinstance(self.result, FallbackReason):
            return fallback.as_fallback(self.result)
        return fallback if self.result is None else self.result


class AsyncStub(Stub):
    async def get_variant(self, key: str, fallback: SelectedVariant, context: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return super().get_variant(key, fallback, context)


def variant(value: Any, key: str | None = "v") -> SelectedVariant:
    return SelectedVariant(value, key, variant_source="local")


DEFAULTS: dict[str, Any] = {"boolean": False, "string": "d", "integer": 7, "float": 1.5, "object": {"d": 1}}


async def resolved(kind: str, flags: Any, context: EvaluationContext | None = None) -> Any:
    """Return the result of the synchronous and the asynchronous method, which are equal."""
    provider = MixpanelProvider(flags)
    later = await getattr(provider, f"resolve_{kind}_details_async")("f", DEFAULTS[kind], context)
    if not isinstance(flags, AsyncStub):
        assert getattr(provider, f"resolve_{kind}_details")("f", DEFAULTS[kind], context) == later
    return later


@pytest.mark.parametrize("stub_type", [Stub, AsyncStub])
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("boolean", True, True),
        ("boolean", False, False),
        ("string", "hello", "hello"),
        ("integer", 42, 42),
        ("integer", 42.0, 42),
        ("float", 3.14, 3.14),
        ("float", 3, 3.0),
        ("object", {"a": 1}, {"a": 1}),
        ("object", [1, 2], [1, 2]),
        ("object", "text", "text"),
        ("object", True, True),
    ],
)
@pytest.mark.parametrize("key", ["treatment", None])
async def test_value_of_the_requested_type_is_returned(
    stub_type: type[Stub], kind: str, value: Any, expected: Any, key: str | None
) -> None:
    details = await resolved(kind, stub_type(variant(value, key)))
    assert repr(details.value) == repr(expected)
    assert (details.variant, details.reason, details.error_code) == (key, Reason.TARGETING_MATCH, None)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("boolean", "true"),
        ("boolean", 1),
        ("string", True),
        ("string", None),
        ("integer", "42"),
        ("integer", 3.5),
        ("integer", True),
        ("integer", float("nan")),
        ("integer", float("inf")),
        ("float", "3.5"),
        ("float", False),
        ("float", 10**400),
    ],
)
async def test_value_of_another_type_is_a_type_mismatch(kind: str, value: Any) -> None:
    details = await resolved(kind, Stub(variant(value)))
    assert (details.value, details.error_code, details.reason) == (
        DEFAULTS[kind],
        ErrorCode.TYPE_MISMATCH,
        Reason.ERROR,
    )
    assert details.variant is None
    assert details.error_message.startswith("expected ")


@pytest.mark.parametrize("kind", list(DEFAULTS))
@pytest.mark.parametrize(
    ("result", "code", "reason", "message"),
    [
        (FallbackReason.flag_not_found(), ErrorCode.FLAG_NOT_FOUND, Reason.DEFAULT, None),
        (FallbackReason.no_rollout_match(), None, Reason.DEFAULT, None),
        (FallbackReason.missing_context_key("team"), ErrorCode.TARGETING_KEY_MISSING, Reason.ERROR, "team"),
        (FallbackReason.backend_error("HTTP 500"), ErrorCode.GENERAL, Reason.ERROR, "HTTP 500"),
        (FallbackReason("NEW", "of later"), ErrorCode.GENERAL, Reason.ERROR, "of later"),  # type: ignore[arg-type]
        (None, ErrorCode.FLAG_NOT_FOUND, Reason.DEFAULT, None),
        (RuntimeError("broken"), ErrorCode.GENERAL, Reason.ERROR, "broken"),
    ],
)
async def test_fallback_reason_selects_error_code_and_reason(
    kind: str, result: Any, code: ErrorCode | None, reason: Reason, message: str | None
) -> None:
    for stub_type in (Stub, AsyncStub):
        details = await resolved(kind, stub_type(result))
        assert details.value == DEFAULTS[kind]
        assert (details.error_code, details.reason, details.error_message) == (code, reason, message)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        (EvaluationContext("user-1"), {"targetingKey": "user-1"}),
        (EvaluationContext("user-1", {"targetingKey": "other"}), {"targetingKey": "user-1"}),
        (EvaluationContext(attributes={"plan": "pro", "beta": True}), {"plan": "pro", "beta": True}),
        (
            EvaluationContext(attributes={"a": 1.0, "b": [2.0, 2.5], "c": {"d": 3.0}}),
            {"a": 1, "b": [2, 2.5], "c": {"d": 3}},
        ),
        (
            EvaluationContext(attributes={"at": datetime(2026, 7, 16, tzinfo=timezone.utc)}),
            {"at": "2026-07-16T00:00:00+00:00"},
        ),
    ],
)
async def test_evaluation_context_becomes_flag_context(
    given: EvaluationContext | None, expected: dict[str, Any]
) -> None:
    flags = Stub(variant("x"))
    await resolved("string", flags, given)
    assert [repr(one) for one in flags.contexts] == [repr(expected)] * 2


async def test_targeting_key_can_be_the_distinct_id() -> None:
    flags = Stub(variant(True))
    provider = MixpanelProvider(flags, targeting_key="distinct_id")
    await provider.resolve_boolean_details_async("f", False, EvaluationContext("user-1", {"plan": "pro"}))
    assert flags.contexts == [{"plan": "pro", "distinct_id": "user-1"}]


async def test_experiment_is_in_flag_metadata() -> None:
    found = SelectedVariant(True, "on", "exp-1", True)
    assert (await resolved("boolean", Stub(found))).flag_metadata == {
        "experiment_id": "exp-1",
        "is_experiment_active": True,
    }


# Tests with OpenFeature's client and with flags of a real client.


@pytest.fixture
def client() -> Iterator[OpenFeatureClient]:
    api.clear_providers()
    yield api.get_client()
    api.clear_providers()


async def test_provider_evaluates_local_flags(client: OpenFeatureClient) -> None:
    server = Server()
    async with local(server, [flag("f")]) as mp:
        await anyio.to_thread.run_sync(set_provider, MixpanelProvider(mp.local_flags))
        assert client.get_provider_status() is ProviderStatus.READY
        assert client.provider.get_metadata().name == "mixpanel-provider"
        assert client.get_boolean_value("f", False, USER) is True
        assert await client.get_boolean_value_async("f", False, USER) is True
        details = client.get_boolean_details("ghost", False, USER)
        assert (details.value, details.error_code, details.reason) == (False, ErrorCode.FLAG_NOT_FOUND, Reason.DEFAULT)
        await mp.flush()
        assert [event["properties"]["distinct_id"] for event in server.events] == ["user-1"] * 2


async def test_provider_evaluates_remote_flags(client: OpenFeatureClient) -> None:
    server = Server(b'{"code": 200, "flags": {"f": {"variant_key": "on", "variant_value": true}}}')
    async with AsyncMixpanel(TOKEN, http_client=server.client, remote_flags=RemoteFlags()) as mp:
        set_provider(MixpanelProvider(mp.remote_flags))
        assert await client.get_boolean_value_async("f", False, USER) is True
        details = client.get_boolean_details("f", False, USER)
        assert (details.value, details.error_code) == (False, ErrorCode.GENERAL)
        assert details.error_message == "remote flags need an HTTP request: use the methods that end in _async"
        server.says = 500
        details = await client.get_boolean_details_async("f", False, USER)
        assert (details.value, details.error_code, details.reason) == (False, ErrorCode.GENERAL, Reason.ERROR)
        assert details.error_message == "HTTP 500: no"


async def test_provider_without_definitions_is_not_ready() -> None:
    server = Server(500)
    async with AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01)) as mp:
        provider = MixpanelProvider(mp.local_flags, ready_timeout=0.05)
        for kind, default in DEFAULTS.items():
            details = await getattr(provider, f"resolve_{kind}_details_async")("f", default, USER)
            assert getattr(provider, f"resolve_{kind}_details")("f", default, USER) == details
            assert (details.value, details.reason) == (default, Reason.ERROR)
            assert details.error_code is ErrorCode.PROVIDER_NOT_READY
        with pytest.raises(ProviderNotReadyError):
            provider.initialize(USER)
        with pytest.raises(ProviderNotReadyError):
            await anyio.to_thread.run_sync(provider.initialize, USER)
        server.says = definitions(flag("f"))
        await anyio.to_thread.run_sync(MixpanelProvider(mp.local_flags).initialize, USER)
        assert provider.resolve_boolean_details("f", False, USER).value is True
        provider.shutdown()


async def test_provider_emits_events_of_definitions(client: OpenFeatureClient) -> None:
    server = Server()
    seen: list[tuple[ProviderEvent, Any, Any]] = []
    for event in ProviderEvent:

        def note(details: EventDetails, event: ProviderEvent = event) -> None:
            seen.append((event, details.flags_changed, details.message))

        client.add_handler(event, note)
    # The previous provider was ready.
    await until(lambda: len(seen) == 1)
    seen.clear()
    async with local(server, [flag("a")]) as mp:
        await anyio.to_thread.run_sync(set_provider, MixpanelProvider(mp.local_flags))
        await until(lambda: len(seen) == 1)
        server.says = definitions(flag("a"), flag("b"))
        await until(lambda: len(seen) == 2)
        server.says = 500
        await until(lambda: client.get_provider_status() is ProviderStatus.STALE)
        assert client.get_boolean_value("a", False, USER) is True
        server.says = definitions(flag("a"), flag("b"))
        await until(lambda: client.get_provider_status() is ProviderStatus.READY)
        await until(lambda: len(seen) == 4)
        provider = client.provider
        api.clear_providers()
        server.says = definitions()
        await server.asked(2)
        assert provider.resolve_boolean_details("a", False, USER).error_code is ErrorCode.FLAG_NOT_FOUND
    assert seen == [
        (ProviderEvent.PROVIDER_READY, None, None),
        (ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, ["b"], None),
        (ProviderEvent.PROVIDER_STALE, None, "HTTP 500"),
        (ProviderEvent.PROVIDER_READY, None, None),
    ]


async def test_provider_becomes_ready_with_late_definitions(client: OpenFeatureClient) -> None:
    server = Server(500)
    async with AsyncMixpanel(TOKEN, http_client=server.client, local_flags=LocalFlags(poll_interval=0.01)) as mp:
        # OpenFeature before 0.10 does not raise here.
        with contextlib.suppress(ProviderNotReadyError):
            set_provider(MixpanelProvider(mp.local_flags))
        assert client.get_provider_status() is ProviderStatus.ERROR
        assert client.get_boolean_details("f", False, USER).error_code is ErrorCode.PROVIDER_NOT_READY
        server.says = definitions(flag("f"))
        await until(lambda: client.get_provider_status() is ProviderStatus.READY)
        assert client.get_boolean_value("f", False, USER) is True


async def test_shutdown_of_provider_does_not_close_the_client() -> None:
    async with local(Server(), [flag("f")]) as mp:
        provider = MixpanelProvider(mp.local_flags)
        provider.initialize(USER)
        provider.shutdown()
        provider.shutdown()
        assert provider.resolve_boolean_details("f", False, USER).value is True
        assert mp.local_flags.is_enabled("f", {"distinct_id": "u"})
