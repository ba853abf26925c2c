"""Scenario of `mixpanel-async demo --redis`: two producers and two workers as processes, one of which is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

import anyio

from .output import DemoOutput

if TYPE_CHECKING:
    from rich.console import Console

    from mixpanel_async.emulator import Emulator
    from mixpanel_async.outbox import QueueAdmin, QueueStatus, RedisOutbox

TOKEN: Final = "demo-token"  # noqa: S105  names no real project
_HOSTS: Final = ("web-1", "web-2")
_WORKERS: Final = ("worker-1", "worker-2")
_PEOPLE: Final = 10
# A worker counts as dead after 15 s, and the queue is then drained in a second.
_DRAIN_TIMEOUT: Final = 60.0
_POLL_SECONDS: Final = 0.1
_WORKER: Final = "from mixpanel_async.cli import main; main()"
_PRODUCER: Final = "from mixpanel_async.cli.demo.producer import main; main()"


def run_many_hosts(console: Console, outbox: RedisOutbox, *, events: int, steps: int = 40) -> bool:
    """Run the whole scenario with an emulator in this process.

    Args:
        console: receives the output.
        outbox: options of a queue that does not exist yet. It is removed at the end.
        events: number of events of both producers together; at least 1.
        steps: number of updates of each person; the producers take 0.1 s for each.

    Returns:
        Whether every expectation holds.

    Raises:
        PartFailedError: if a process fails.
        OutboxError: if Redis cannot be used.
    """
    from mixpanel_async.emulator import Emulator

    output, emulator = DemoOutput(console), Emulator(token=TOKEN)
    with emulator.serve() as server:
        output.print_introduction(server.url)
        scenario = ManyHostsDemo(emulator, output, outbox=outbox, api_host=server.url, events=events, steps=steps)
        anyio.run(scenario.run)
    all_hold = output.print_result()
    output.print_next_steps()
    return all_hold


class PartFailedError(Exception):
    """A process of the demo did not do its part."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Running process, and the file with what it prints."""

    name: str
    process: subprocess.Popen[bytes]
    printed: IO[bytes]

    def read(self) -> str:
        """Return what the process has printed."""
        self.printed.seek(0)
        return self.printed.read().decode(errors="replace")


class ManyHostsDemo:
    """Runs the processes and checks what reached Mixpanel.

    Args:
        emulator: an empty project.
        output: prints the steps and counts expectations.
        outbox: options with the URL of a queue that does not exist yet.
        api_host: URL of the emulator.
        events: number of events of both producers together.
        steps: number of updates of each person.
    """

    def __init__(
        self, emulator: Emulator, output: DemoOutput, *, outbox: RedisOutbox, api_host: str, events: int, steps: int
    ) -> None:
        self._emulator = emulator
        self._output = output
        self._outbox = outbox
        self._environment = {
            # The user's own settings, such as a service account, are about another project.
            **{name: value for name, value in os.environ.items() if not name.startswith("MIXPANEL_")},
            "MIXPANEL_OUTBOX": outbox.url or "",
            "MIXPANEL_TOKEN": TOKEN,
            "MIXPANEL_API_HOST": api_host,
            "NO_COLOR": "1",
        }
        self._events = [events // 2, events - events // 2]
        self._steps = steps
        self._parts: list[_Part] = []

    async def run(self) -> None:
        """Run all steps.

        Raises:
            PartFailedError: if a process fails.
            OutboxError: if Redis cannot be used.
        """
        async with self._outbox.admin() as queue:
            # Before the processes start: if Redis cannot be used, they would wait for it.
            await queue.remove()
            try:
                with self._ending_all_parts():
                    handed_over = await self._deliver(queue)
                self._check(await queue.status(), handed_over, [one async for one in queue.dead_letters()])
            finally:
                with anyio.CancelScope(shield=True):
                    await queue.remove()

    async def _deliver(self, queue: QueueAdmin) -> int:
        """Let the processes work, kill a worker, and return the number of records that were handed over."""
        self._output.print_step(
            "Two web processes hand records to Redis; two workers deliver them",
            'AsyncMixpanel(token, outbox=RedisOutbox("redis://..."))',
            "MIXPANEL_OUTBOX=redis://... mixpanel-async worker --name worker-1",
        )
        workers = [self._start_worker(name) for name in _WORKERS]
        producers = [self._start_producer(*one) for one in zip(_HOSTS, self._events, strict=True)]
        total = sum(self._events)
        await self._wait_until(lambda: _delivered_events(self._emulator) >= total / 3, "events reach Mixpanel")
        workers[0].process.kill()
        workers[0].process.wait()
        self._output.print_step("The first worker is killed", "kill -9 <pid of worker-1>")
        await self._wait_until(lambda: all(one.process.poll() == 0 for one in producers), "the producers end")
        handed_over = self._check_producers(producers)
        self._output.print_note("The second worker takes over 15 seconds after the last sign of life of the first.")
        await self._wait_until(lambda: _is_empty(queue), "the second worker delivers the rest")
        workers[1].process.terminate()
        await self._wait_until(lambda: workers[1].process.poll() is not None, "the second worker ends")
        self._output.expect("worker-2 ends after SIGTERM", expected=0, actual=workers[1].process.returncode)
        return handed_over

    def _check_producers(self, producers: Collection[_Part]) -> int:
        counts: list[dict[str, int]] = [json.loads(one.read().splitlines()[-1]) for one in producers]
        accepted, handed_over = (sum(one[name] for one in counts) for name in ("accepted", "handed_over"))
        self._output.expect(
            f"both producers have ended, and Redis has all {accepted:,} records", expected=accepted, actual=handed_over
        )
        return handed_over

    # Checks

    def _check(self, status: QueueStatus, handed_over: int, letters: Collection[Any]) -> None:
        self._output.print_step("Nothing is lost, and nothing is applied twice", "mixpanel-async queue status")
        self._check_events()
        uncertain = [dict(one.payload) for one in letters if one.payload is not None]
        self._check_people(uncertain)
        counters = status.counters
        ended = sum(counters[name] for name in ("out", "dead", "uncertain", "purged", "lost"))
        self._output.expect(
            f"the counters of the queue account for each of {handed_over:,} records",
            expected=(handed_over, handed_over, 0),
            actual=(counters["in"], ended, status.records),
        )
        if uncertain:
            self._output.print_note(
                f"{len(uncertain)} updates that must not be sent twice were in flight when the worker was killed. They"
                " are kept as dead letters: mixpanel-async queue list"
            )

    def _check_events(self) -> None:
        numbers = Counter(one["properties"]["number"] for one in self._emulator.events("Page viewed"))
        sent = {f"{host}-{at}" for host, count in zip(_HOSTS, self._events, strict=True) for at in range(count)}
        copies = len(self._emulator.raw_events("Page viewed")) - len(numbers)
        self._output.expect(f"each of {len(sent):,} events counts once", expected=Counter(sent), actual=numbers)
        if copies:
            self._output.print_note(f"{copies:,} events arrived twice; Mixpanel drops copies by their $insert_id.")

    def _check_people(self, uncertain: Collection[Mapping[str, Any]]) -> None:
        people = {name: self._emulator.profile(name) or {} for name in _people()}
        self._output.expect(
            f"the last $set of each of {len(people)} people won",
            expected=dict.fromkeys(people, self._steps - 1),
            actual={name: one.get("step") for name, one in people.items()},
        )
        expected = {name: [*range(self._steps)] for name in people}
        actual = {name: [*one.get("steps", ())] for name, one in people.items()}
        for letter in uncertain:
            for step in [letter["$append"]["steps"]] if "$append" in letter else []:
                # It may have been applied, in its order, or not.
                if step not in actual[letter["$distinct_id"]]:
                    expected[letter["$distinct_id"]].remove(step)
        self._output.expect("each $append is applied once, in order", expected=expected, actual=actual)
        doubtful = Counter(letter["$distinct_id"] for letter in uncertain if "$add" in letter)
        wrong = {
            name: one.get("visits", 0)
            for name, one in people.items()
            if not self._steps - doubtful[name] <= one.get("visits", 0) <= self._steps
        }
        self._output.expect(f"each person's $add sums to {self._steps}", expected={}, actual=wrong)

    # Processes

    def _start_worker(self, name: str) -> _Part:
        # The URL comes from the environment: other users of the machine can read the arguments.
        return self._start(name, "-c", _WORKER, "worker", "--queue", self._outbox.name, "--name", name)

    def _start_producer(self, host: str, events: int) -> _Part:
        options = {"queue": self._outbox.name, "token": TOKEN, "host": host, "events": events}
        return self._start(host, "-c", _PRODUCER, json.dumps({**options, "steps": self._steps, "people": _PEOPLE}))

    def _start(self, name: str, *arguments: str) -> _Part:
        printed = TemporaryFile()  # noqa: SIM115  closed with the process
        command = [sys.executable, *arguments]
        process = subprocess.Popen(  # noqa: S603  commands of this package
            command, env=self._environment, stdout=printed, stderr=subprocess.STDOUT
        )
        part = _Part(name, process, printed)
        self._parts.append(part)
        return part

    @contextmanager
    def _ending_all_parts(self) -> Iterator[None]:
        try:
            yield
        finally:
            for part in self._parts:
                if part.process.poll() is None:
                    part.process.kill()
                part.process.wait()
                part.printed.close()

    async def _wait_until(self, is_true: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        until = anyio.current_time() + _DRAIN_TIMEOUT
        while True:
            found = is_true()
            if found if isinstance(found, bool) else await found:
                return
            for part in self._parts:
                if part.process.poll() not in (None, 0, -9):
                    last = (part.read().strip().splitlines() or ["it printed nothing"])[-1]
                    raise PartFailedError(f"{part.name} ended with status {part.process.returncode}: {last}")
            if anyio.current_time() > until:
                raise PartFailedError(f"waited for {_DRAIN_TIMEOUT:g} s until {what}")
            await anyio.sleep(_POLL_SECONDS)


def _people() -> Iterator[str]:
    return (f"{host}-visitor-{one}" for host in _HOSTS for one in range(_PEOPLE))


def _delivered_events(emulator: Emulator) -> int:
    return sum(one.records for one in emulator.requests() if one.path in ("/track", "/import") and one.status == 200)


async def _is_empty(queue: QueueAdmin) -> bool:
    return (await queue.status()).records == 0
