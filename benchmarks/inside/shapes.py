"""Shapes section: every way of calling a library, in one process."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from ..event import NAME, TOKEN, distinct_id, properties
from ..sink import ask
from ..subjects import SUBJECTS
from .loops import run

Call = Callable[[Any, int], Any]

_MOMENT: Final = datetime(2026, 8, 21, 12, 30, tzinfo=timezone.utc)
_UUID: Final = UUID("7d444840-9dc0-11d1-b245-5ffdce74fad2")
_PRICE: Final = Decimal("19.99")
_SUPER: Final = {"app": "shop", "version": "4.2.0", "region": "eu-west"}
_DEVICE: Final = "5c0d7f3a-2f0e-4a55-9b4e-3a0c55ad1c7e"
_PROFILE: Final = {"plan": "pro", "seats": 12, "$name": "Ada"}
# Calls between two turns of the event loop, for methods that are not awaited.
_CALLS_PER_TURN: Final = 50
_WARM_UP: Final = 2_000
# Nothing listens on this port.
_OFFLINE: Final = "http://127.0.0.1:9"


class _Thing:
    """Value that only the user's serializer converts."""


_THING: Final = _Thing()


def _serializer(value: object) -> str:
    if type(value) is _Thing:
        return "thing"
    raise TypeError


class _JsonEncoder(json.JSONEncoder):
    def default(self, o: object) -> str:
        return _serializer(o)


def _hook(message: dict[str, Any]) -> dict[str, Any]:
    message.get("properties", message).pop("referrer", None)
    return message


def _with(**more: Any) -> Call:
    return lambda call, number: call(distinct_id(number), NAME, {**properties(number), **more})


def _web_request(client: Any, number: int) -> Any:
    address = f"203.0.{number >> 8 & 255}.{number & 255}"
    bound = client.bind(user_id=distinct_id(number), device_id=_DEVICE, ip=address)
    return bound.track(NAME, properties(number))


def _usual(call: Any, number: int) -> Any:
    return call(distinct_id(number), NAME, properties(number))


CALLS: Final[dict[str, Call]] = {
    "track": _usual,
    "track_nowait": _usual,
    "no properties": lambda call, number: call(distinct_id(number), NAME),
    "super_properties": _usual,
    "time and insert_id": lambda call, number: call(
        distinct_id(number), NAME, properties(number), time=time.time(), insert_id=f"{number:032x}"
    ),
    "user_id and device_id": lambda call, number: call(
        None, NAME, properties(number), user_id=distinct_id(number), device_id=_DEVICE
    ),
    "bound client": lambda call, number: call(NAME, properties(number)),
    "bound client per event": _web_request,
    "datetime property": _with(at=_MOMENT),
    "UUID property": _with(id=_UUID),
    "Decimal property": _with(price=_PRICE),
    "nested property": lambda call, number: call(
        distinct_id(number), NAME, {**properties(number), "cart": [{"sku": "A-1", "tags": ["new", "blue"], "price": 2}]}
    ),
    "serializer": _usual,
    "serializer used": _with(thing=_THING),
    "before_send": _usual,
    "import_data": lambda call, number: call(
        None, distinct_id(number), NAME, 1_700_000_000 + number, properties(number)
    ),
    "people_set": lambda call, number: call(distinct_id(number), {**_PROFILE, "orders": number}),
    "people_increment": lambda call, number: call(distinct_id(number), {"orders": number}),
    "group_set": lambda call, number: call("company", distinct_id(number), {**_PROFILE, "orders": number}),
}
"""One call of each shape: takes the method, or the client for bound clients, and the number of the event."""
_NOT_AWAITED: Final = frozenset({"track_nowait"})
_METHODS: Final = {"track_nowait", "import_data", "people_set", "people_increment", "group_set"}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "super_properties": {"super_properties": _SUPER},
    "serializer": {"serializer": _serializer},
    "serializer used": {"serializer": _serializer},
    "before_send": {"before_send": _hook},
}
Opened = tuple[Any, Callable[[], Awaitable[object]]]


def measure(
    origin: str, events: int, subject: str = "mixpanel_async", *, turn: int = 0, memory: bool = False
) -> dict[str, list[float]] | dict[str, float]:
    """Return for each shape the seconds of CPU net of the harness, and those of the floor right before and after it.

    With `memory`, return for each shape the bytes of memory per queued event, divided by the size of its JSON.

    Args:
        turn: number of the run. Each begins with another shape, so that no shape always comes first in a process.
    """
    if memory:
        # Its events are not delivered.
        logging.disable()
        return {shape: run(_memory(shape, events)) for shape in CALLS}

    def floor() -> float:
        return run(_floor(origin, half)) * events / half if subject == "mixpanel_async" else 0.0

    # Two floors belong to each shape.
    half = max(1, events // 2)
    # The first round fills the memory of the process.
    run(_cost(_CLIENTS[subject], "track", origin, events))
    floor()
    names = [*CALLS]
    costs: dict[str, list[float]] = {}
    before = floor()
    for at in range(len(names)):
        shape = names[(at + turn) % len(names)]
        cost = run(_cost(_CLIENTS[subject], shape, origin, events))
        if cost is None:
            continue
        after = floor()
        costs[shape] = [cost, (before + after) / 2]
        before = after
    return costs


async def _cost(client: Any, shape: str, origin: str, events: int) -> float | None:
    async with client(shape, origin, events) as opened:
        if opened is None:
            return None
        target, flush = opened
        idle = await _cpu(shape, _empty_target(shape), events, _nothing)
        # The floor has a connection when its measurement begins, too.
        await _drive(shape, target, 1)
        await flush()
        ask(origin, "/take")
        busy = await _cpu(shape, target, events, flush)
        got = ask(origin, "/take")["events"]
    if got != events:
        raise RuntimeError(f"{shape}: the sink got {got} of {events} records")
    return busy - idle


async def _floor(origin: str, events: int) -> float:
    async with SUBJECTS["floor"](origin, events) as floor:
        idle = await _cpu("track", _empty, events, _nothing)
        busy = await _cpu("track", floor.track, events, floor.close)
    ask(origin, "/take")
    return busy - idle


async def _cpu(shape: str, target: Any, events: int, flush: Callable[[], Awaitable[object]]) -> float:
    began = time.process_time()
    await _drive(shape, target, events)
    await flush()
    return time.process_time() - began


async def _drive(shape: str, target: Any, events: int) -> None:
    call = CALLS[shape]
    if shape in _NOT_AWAITED:
        for number in range(events):
            call(target, number)
            if number % _CALLS_PER_TURN == 0:
                await asyncio.sleep(0)
        return
    for number in range(events):
        await call(target, number)


async def _empty(*_: object, **__: object) -> None:
    """Take the arguments."""


def _empty_nowait(*_: object, **__: object) -> None:
    """Take the arguments."""


async def _nothing() -> None:
    """Do nothing."""


class _EmptyClient:
    """Client whose methods do nothing."""

    def bind(self, **_: object) -> _EmptyClient:
        """Take the ids."""
        return self

    track = staticmethod(_empty)


def _empty_target(shape: str) -> Any:
    if shape == "bound client per event":
        return _EmptyClient()
    # The own cost of a user's function is not the library's.
    if shape == "before_send":
        return _hook_alone
    if shape == "serializer used":
        return _serializer_alone
    return _empty_nowait if shape in _NOT_AWAITED else _empty


async def _hook_alone(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:  # noqa: ARG001
    _hook(properties)


async def _serializer_alone(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:  # noqa: ARG001
    _serializer(properties["thing"])


@asynccontextmanager
async def _mixpanel_async(shape: str, origin: str, events: int) -> AsyncIterator[Opened]:
    from mixpanel_async import AsyncMixpanel, BatchPolicy

    policy = BatchPolicy(max_events=2_000, max_pending_events=max(events, 2_000))
    async with AsyncMixpanel(TOKEN, api_host=origin, batching=policy, **_OPTIONS.get(shape, {})) as client:
        yield _target(client, shape), client.flush


def _target(client: Any, shape: str) -> Any:
    """Return the method that a shape calls."""
    if shape == "bound client":
        return client.bind(user_id="user-1", device_id=_DEVICE, ip="203.0.113.7").track
    if shape == "bound client per event":
        return client
    return getattr(client, shape if shape in _METHODS else "track")


@asynccontextmanager
async def _official(shape: str, origin: str, events: int) -> AsyncIterator[Opened | None]:  # noqa: ARG001
    from mixpanel import BufferedConsumer, Mixpanel

    # It expects the response of /track for imports, too.
    consumer = BufferedConsumer(
        max_size=50, events_url=f"{origin}/track", people_url=f"{origin}/engage",
        groups_url=f"{origin}/groups", import_url=f"{origin}/track",
    )  # fmt: skip
    own = {"serializer": _JsonEncoder} if shape in {"serializer", "serializer used"} else {}
    client = Mixpanel(TOKEN, consumer=consumer, **own)
    known = {"track", "no properties", "datetime property", "nested property", "serializer", "serializer used"}
    if shape in known:
        method = client.track
    elif shape in _METHODS and shape != "track_nowait":
        method = getattr(client, shape)
    else:
        yield None
        return

    async def call(*arguments: Any) -> None:
        method(*arguments)

    async def flush() -> None:
        consumer.flush()

    yield call, flush


@asynccontextmanager
async def _posthog(shape: str, origin: str, events: int) -> AsyncIterator[Opened | None]:
    known = {"track", "no properties", "super_properties", "datetime property", "UUID property", "nested property"}
    if shape not in known:
        yield None
        return
    from posthog import AsyncPosthog

    client = AsyncPosthog(
        TOKEN, host=origin, flush_at=2_000, max_queue_size=max(events, 2_000), disable_geoip=False, is_server=False,
        super_properties=_SUPER if shape == "super_properties" else None,
    )  # fmt: skip

    async def call(distinct_id: str, event_name: str, properties: dict[str, Any] | None = None) -> None:
        client.capture(event_name, distinct_id=distinct_id, properties=properties)

    async def flush() -> None:
        await client.flush(timeout_seconds=None)

    async with client:
        yield call, flush
        await client.shutdown()


_CLIENTS: Final[dict[str, Any]] = {
    "mixpanel_async": _mixpanel_async,
    "official": _official,
    "posthog": _posthog,
}


async def _memory(shape: str, events: int) -> float:
    from mixpanel_async import AsyncMixpanel, BatchPolicy

    policy = BatchPolicy(max_pending_events=_WARM_UP + events, max_pending_bytes=10_000 * (_WARM_UP + events))
    options = _OPTIONS.get(shape, {})
    async with AsyncMixpanel(TOKEN, api_host=_OFFLINE, batching=policy, shutdown_timeout=0.001, **options) as client:
        target = _target(client, shape)
        # The first events fill caches.
        await _drive(shape, target, _WARM_UP)
        tracemalloc.start()
        before, size = tracemalloc.get_traced_memory()[0], client.stats().pending_bytes
        await _drive(shape, target, events)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return grown / (client.stats().pending_bytes - size)
