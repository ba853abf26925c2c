"""Entries in an outbox in memory, a scripted Mixpanel, and time that jumps, for tests of the worker."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any, Final

import anyio
import anyio.lowlevel
import httpx
import trio
import trio.testing
from simulated import worker_in

from mixpanel_async._model.errors import OutboxError
from mixpanel_async._model.records import NonIdempotentRecord, Record
from mixpanel_async._runtime.environment import Environment, real_environment
from mixpanel_async.outbox import Entry, Held, Inbox, MemoryOutbox, Outbox, StoredEntry
from mixpanel_async.outbox.packing import pack, positions_of_non_idempotent
from mixpanel_async.worker import Worker

TOKEN: Final = "0123456789abcdef0123456789abcdef"
START: Final = 1_790_000_000.0
_SEQUENCES: Final = itertools.count(1)


def event(number: int, *, time: float = START) -> Record:
    properties = {
        "token": TOKEN,
        "time": int(time * 1000),
        "distinct_id": f"user-{number}",
        "$insert_id": f"id-{number}",
    }
    return Record(json.dumps({"event": "Order placed", "properties": properties}, separators=(",", ":")).encode())


def events(start: int, end: int) -> list[Record]:
    return [event(number) for number in range(start, end)]


def set_value(person: str, value: int) -> Record:
    update = {"$token": TOKEN, "$distinct_id": person, "$set": {"value": value}}
    return Record(json.dumps(update, separators=(",", ":")).encode())


def add_one(person: str) -> NonIdempotentRecord:
    update = {"$token": TOKEN, "$distinct_id": person, "$add": {"count": 1}}
    return NonIdempotentRecord(json.dumps(update, separators=(",", ":")).encode())


def entry(records: Sequence[bytes], lane: str = "events", *, at: float = START) -> Entry:
    packed = pack(records, TOKEN)
    return Entry(
        lane=lane,
        records=len(records),
        body=packed.body,
        is_compressed=packed.is_compressed,
        non_idempotent=positions_of_non_idempotent(records),
        accepted_at=at,
        sequence=next(_SEQUENCES) if lane.partition(":")[0] in {"people", "groups", "identity"} else None,
    )


async def put(outbox: Outbox, *entries: Entry) -> None:
    writer = outbox.writer(TOKEN)
    await writer.open()
    await writer.put(entries)
    await writer.aclose()


async def other_worker(outbox: MemoryOutbox, **options: Any) -> Inbox:
    """Return the inbox of a worker that a test plays itself."""
    inbox = outbox.inbox(TOKEN, "other", **options)
    await inbox.open()
    await inbox.heartbeat()
    return inbox


@dataclass
class Mixpanel:
    """Mixpanel that accepts everything, except where `answers` has another response or error for a request."""

    answers: list[httpx.Response | Exception | Callable[[], Awaitable[httpx.Response]]] = field(default_factory=list)
    requests: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    clock: Callable[[], float] = anyio.current_time

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.content
        records = json.loads(gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body)
        self.requests.append((request.url.path, records))
        self.times.append(self.clock())
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return accepted(request.url.path, len(records), START + self.clock())
        return answer if isinstance(answer, httpx.Response) else await answer()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self))

    @property
    def events(self) -> list[str]:
        """Ids of all events, in order."""
        return [one["properties"]["distinct_id"] for path, sent in self.requests if path == "/track" for one in sent]

    def updates(self, path: str = "/engage") -> list[dict[str, Any]]:
        return [one for other, sent in self.requests if other == path for one in sent]


def accepted(path: str, records: int, now: float) -> httpx.Response:
    headers = {"Date": formatdate(now, usegmt=True)}
    if path == "/import":
        return httpx.Response(200, headers=headers, json={"code": 200, "num_records_imported": records, "status": "OK"})
    return httpx.Response(200, headers=headers, json={"status": 1})


@asynccontextmanager
async def running(worker: Worker, *, until_empty: bool = False) -> AsyncIterator[None]:
    """Run a worker during the block, and let it hand over at the end."""
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await (worker.drain() if until_empty else worker.run())

        tasks.start_soon(run)
        yield
        worker.stop()


async def wait_until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(600):
        while not condition():  # noqa: ASYNC110  the condition has no event
            await anyio.sleep(0.1)


@dataclass
class Stage:
    """Outbox, Mixpanel and clock of one test."""

    outbox: MemoryOutbox
    mixpanel: Mixpanel
    environment: Environment
    clock: trio.testing.MockClock

    def worker(self, **options: Any) -> Worker:
        outbox = options.pop("outbox", self.outbox)
        return worker_in(self.environment, outbox, TOKEN, http_client=self.mixpanel.client(), **options)

    @property
    def counters(self) -> dict[str, int]:
        return {name: count for name, count in self.outbox._shared.state.counters.items() if count}

    def is_conserved(self) -> bool:
        """Whether every record that was handed over is counted once."""
        counted = self.counters
        ended = sum(counted.get(name, 0) for name in ("out", "dead", "uncertain", "purged"))
        return counted.get("in", 0) == ended + self.outbox._shared.state.records


def in_virtual_time(body: Callable[[Stage], Awaitable[None]], **options: Any) -> None:
    """Run a test on trio. Whenever all tasks sleep, the clock jumps to the next timer."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    environment = replace(
        real_environment(),
        wall_time=lambda: START + clock.current_time(),
        monotonic=clock.current_time,
        random=random.Random(7).random,
    )
    outbox = MemoryOutbox(clock=lambda: START + clock.current_time(), **options)
    stage = Stage(outbox, Mixpanel(), environment, clock)
    trio.run(body, stage, clock=clock)
    assert stage.is_conserved()


class Wrapped:
    """Outbox whose inboxes a test can take away: `fails` says which commands raise, `loses` which do so
    after they were carried out, `changes` changes the heartbeats."""

    def __init__(self, outbox: MemoryOutbox) -> None:
        self._outbox = outbox
        self.confirm = False
        self.fails: set[str] = set()
        self.loses: set[str] = set()
        self.calls: list[str] = []
        self.refused = False
        self.changes: Callable[[Held], Held] = lambda held: held
        self.renames: Callable[[Sequence[StoredEntry]], Sequence[StoredEntry]] = lambda found: found

    def inbox(self, token: str, worker: str, *, kinds: Collection[str] | None = None) -> Any:
        return WrappedInbox(self._outbox.inbox(token, worker, kinds=kinds), self)


class WrappedInbox:
    def __init__(self, inner: Inbox, owner: Wrapped) -> None:
        self._inner = inner
        self._owner = owner

    @property
    def partitions(self) -> int:
        return self._inner.partitions

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            self._owner.calls.append(name)
            if name in self._owner.fails:
                await anyio.lowlevel.checkpoint()
                raise OutboxError(f"{name} failed", refused=self._owner.refused)
            result = await getattr(self._inner, name)(*args, **options)
            if name in self._owner.loses:
                raise OutboxError(f"{name} failed")
            if name == "heartbeat":
                return self._owner.changes(result)
            return self._owner.renames(result) if name == "read" else result

        return call
