"""Arguments of other SDKs: the constructor says what to use instead, and a type checker reports them."""

from __future__ import annotations

import inspect
from types import TracebackType
from typing import Any

import mixpanel as official
import pytest

from mixpanel_async import AsyncMixpanel, ConfigurationError
from mixpanel_async.emulator import Emulator
from mixpanel_async.outbox import MemoryOutbox
from mixpanel_async.types import ClientArguments, WorkerArguments
from mixpanel_async.worker import Worker

CANARY = "canary-of-a-secret"
OFFICIAL = {
    name
    for kind in (official.Mixpanel, official.Consumer, official.BufferedConsumer)
    for name in inspect.signature(kind).parameters
}
SUPPORTED = set(inspect.signature(AsyncMixpanel).parameters)
SIMILAR = {
    "api_key", "api_secret", "project_token", "project_id", "host", "debug", "flush_interval", "max_queue_size",
    "on_error", "max_retries", "gzip", "proxies", "verify",
}  # fmt: skip


def refused(*args: Any, **options: Any) -> str:
    with pytest.raises(TypeError) as caught:
        AsyncMixpanel("token", *args, **options)
    assert CANARY not in str(caught.value)
    assert CANARY not in locals_of(caught.value.__traceback__)
    return str(caught.value)


def locals_of(trace: TracebackType | None) -> str:
    """Return the local variables that an error reporter would show, without those of this module."""
    shown = ""
    while trace is not None:
        if trace.tb_frame.f_globals["__name__"].startswith("mixpanel_async"):
            shown += repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
    return shown


@pytest.mark.parametrize("name", sorted((OFFICIAL - SUPPORTED) | SIMILAR))
def test_argument_of_another_sdk_is_refused_with_advice(name: str) -> None:
    message = refused(**{name: CANARY})
    assert f"unexpected keyword argument {name!r}: " in message


def test_every_official_argument_with_the_same_name_has_the_same_meaning() -> None:
    assert {"token", "serializer", "credentials", "api_host"} == OFFICIAL & SUPPORTED


@pytest.mark.parametrize(
    ("name", "meant"), [("regoin", "region"), ("Region", "region"), ("super_props", "super_properties"), ("zzz", None)]
)
def test_unknown_argument_is_refused_with_the_closest_name(name: str, meant: str | None) -> None:
    message = refused(**{name: CANARY})
    assert f"unexpected keyword argument {name!r}" in message
    assert ("Did you mean" in message) == (meant is not None)
    assert meant is None or repr(meant) in message


def test_every_unsupported_argument_is_named() -> None:
    message = refused(consumer=None, request_timeout=5)
    assert "consumer" in message
    assert "timeout=, in seconds" in message


def test_consumer_by_position_is_refused_with_advice() -> None:
    message = refused(official.BufferedConsumer(), CANARY)
    assert "one positional argument, the token" in message
    assert "batching=" in message


def test_from_env_refuses_the_same_arguments() -> None:
    with pytest.raises(TypeError, match="import_data") as caught:
        AsyncMixpanel.from_env({"MIXPANEL_TOKEN": CANARY}, api_secret=CANARY)  # type: ignore[call-arg]
    assert CANARY not in locals_of(caught.value.__traceback__)


def test_type_checker_reports_unsupported_arguments() -> None:
    """With `warn_unused_ignores`, which is part of `strict`, mypy fails if one of these lines has no error."""
    with pytest.raises(TypeError):
        AsyncMixpanel("token", consumer=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        AsyncMixpanel("token", regoin="eu")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        AsyncMixpanel("token", official.Consumer())  # Untyped, so it cannot be reported.
    with pytest.raises(TypeError):
        AsyncMixpanel("token", "eu")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        AsyncMixpanel.from_env(token="token", regoin="eu")  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError):
        AsyncMixpanel.from_env(token="token", region="moon")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Emulator().client(regoin="eu")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Worker.from_env(MemoryOutbox(), token="token", regoin="eu")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Worker(MemoryOutbox(), "token", regoin="eu")  # type: ignore[call-arg]


@pytest.mark.parametrize(("arguments", "cls"), [(ClientArguments, AsyncMixpanel), (WorkerArguments, Worker)])
def test_types_of_options_are_those_of_the_constructor(arguments: Any, cls: Any) -> None:
    options = [one for one in inspect.signature(cls).parameters.values() if one.kind is one.KEYWORD_ONLY]
    described = {name: hint.__forward_arg__ for name, hint in arguments.__annotations__.items()}
    assert described == {one.name: one.annotation for one in options}
