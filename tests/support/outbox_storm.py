"""Storm: producers and workers as processes, a real Redis, and a Mixpanel that remembers what was applied in order.

A test starts a storm, harms its parts while it runs, and lets it end. `StormResult` then has what was lost, applied
twice or applied in the wrong order.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from redis_server import RedisServer

from mixpanel_async.emulator import Emulator

TOKEN: Final = "0123456789abcdef0123456789abcdef"
PROGRAM: Final = Path(__file__).with_name("outbox_producer_program.py")
WORKER: Final = "from mixpanel_async.cli import main; main()"
KEYS: Final = "{mixpanel}:"
# Lets the time of a lease pass for workers whose name begins with one of the arguments, without waiting.
_END_LEASES: Final = """
local function is_named(worker)
  for _, name in ipairs(ARGV) do
    if string.sub(worker, 1, #name) == name then return true end
  end
  return false
end
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if is_named(worker) then redis.call('ZADD', KEYS[1], 1, worker) end
end
local leases = redis.call('HGETALL', KEYS[2])
for i = 1, #leases, 2 do
  local worker = string.match(leases[i + 1], '|(.*)$')
  if is_named(worker) then redis.call('HSET', KEYS[2], leases[i], '1|' .. worker) end
end
return 1
"""


@dataclass
class Applied:
    """What Mixpanel has applied, in order of arrival.

    Attributes:
        events: arrivals of each event, by its number.
        keys: de-duplication keys of each event.
        values: value of each person after each request that changed it. A request that was applied, and whose worker
            died before the response, is made again: the older values in it pass again, unseen by others.
        adds: arrivals of each `$add`.
    """

    events: Counter[str] = field(default_factory=Counter)
    keys: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    values: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    adds: Counter[str] = field(default_factory=Counter)

    def note(self, records: list[dict[str, Any]]) -> None:
        """Note the records of one request."""
        changed: dict[str, int] = {}
        for record in records:
            if "event" in record:
                properties = record["properties"]
                self.events[properties["number"]] += 1
                self.keys[properties["number"]].add((properties["$insert_id"], properties["time"]))
            elif "$set" in record:
                changed[record["$distinct_id"]] = record["$set"]["value"]
            else:
                self.adds.update(record["$add"].keys())
        for person, value in changed.items():
            self.values[person].append(value)


class RecordingApp:
    """ASGI application in front of the emulator. A request counts as applied if the emulator answers it with 200."""

    def __init__(self, inner: Any, applied: Applied) -> None:
        self._inner = inner
        self._applied = applied

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in {"/track", "/engage"}:
            await self._inner(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        is_read = False

        async def replay() -> Any:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._applied.note(json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body))
            await send(message)

        await self._inner(scope, replay, note)


@dataclass(frozen=True)
class StormResult:
    """Outcome of a storm. The numbers from `events_lost` to `not_handed_over` have to be 0."""

    events: int
    copies: int
    sets: int
    adds: int
    events_lost: int
    different_keys: int
    wrong_final_values: int
    steps_back: int
    adds_applied_twice: int
    adds_unaccounted: int
    uncounted: int
    not_handed_over: int
    uncertain: int
    workers_killed: int
    counters: dict[str, int]

    def check(self) -> None:
        """Check what holds for every storm, and show the figures."""
        sys.stderr.write(f"{self}\n")
        faults = {
            name: getattr(self, name)
            for name in (
                "events_lost", "different_keys", "wrong_final_values", "steps_back", "adds_applied_twice",
                "adds_unaccounted", "uncounted", "not_handed_over",
            )
        }  # fmt: skip
        assert not any(faults.values()), self
        assert self.counters.get("dead", 0) == 0, self
        assert self.counters.get("records", 0) == 0, self


class Storm:
    """Producers, workers, Redis and Mixpanel.

    Args:
        folder: directory for logs and data.
        producers: number of producers.
        workers: number of workers.
        rates: events, `$set` and `$add` per second, of all producers together.
        redis_options: options of the server.
        outbox_options: options of `RedisOutbox` in the producers.
        latency: seconds between the effect of a request and its response, in which a worker may be killed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        producers: int = 2,
        workers: int = 3,
        rates: tuple[float, float, float] = (3_000, 160, 100),
        redis_options: tuple[str, ...] = (),
        outbox_options: dict[str, Any] | None = None,
        latency: float = 0.2,
    ) -> None:
        self._folder = folder
        self._rates = [rate / producers for rate in rates]
        self._outbox_options = outbox_options or {}
        self.applied = Applied()
        self.emulator = Emulator(token=TOKEN)
        self.emulator.latency = latency
        self.emulator.app = RecordingApp(self.emulator.app, self.applied)
        self.redis = RedisServer(folder, *redis_options)
        self._server: Any = None
        self._producers: list[subprocess.Popen[str]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self._counts = (producers, workers)
        self._started = 0
        self._names: dict[int, str] = {}
        self._dead: list[str] = []

    def __enter__(self) -> Storm:  # noqa: PYI034  `Self` would need another dependency before Python 3.11
        self.redis.start()
        self._server = self.emulator.serve().__enter__()
        for _ in range(self._counts[1]):
            self.workers.append(self._start_worker())
        for number in range(self._counts[0]):
            self._producers.append(self._start_producer(number))
        for producer in self._producers:
            assert producer.stdout is not None
            assert producer.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        processes: list[subprocess.Popen[Any]] = [*self.workers, *self._producers]
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for producer in self._producers:
            for pipe in (producer.stdin, producer.stdout):
                if pipe is not None:
                    pipe.close()
        self.redis.stop()
        self._server.__exit__(None, None, None)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": self._server.url}

    def _start_worker(self) -> subprocess.Popen[bytes]:
        self._started += 1
        log = (self._folder / f"worker-{self._started}.log").open("wb")
        name = f"w{self._started}"
        command = [sys.executable, "-c", WORKER, "worker", "--from", self.redis.url, "--name", name]
        with log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())
        self._names[process.pid] = name
        return process

    def _log_of(self, worker: subprocess.Popen[bytes]) -> str:
        return (self._folder / f"worker-{self._names[worker.pid][1:]}.log").read_text()

    def _start_producer(self, number: int) -> subprocess.Popen[str]:
        given = {"number": number, "url": self.redis.url, "rates": self._rates, "options": self._outbox_options}
        log = (self._folder / f"producer-{number}.log").open("wb")
        with log:
            return subprocess.Popen(
                [sys.executable, str(PROGRAM), json.dumps(given)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment(),
            )  # fmt: skip

    def run(self, seconds: float, every: float, harm: Callable[[int], None]) -> None:
        """Call a function once in so many seconds for some time, with the number of the call."""
        began = time.monotonic()
        for number in range(int(seconds / every)):
            time.sleep(max(0.0, began + (number + 1) * every - time.monotonic()))
            harm(number)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "the storm has not got there within a minute"
            time.sleep(0.02)

    def kill_next_worker(self, _: int) -> None:
        """Kill the worker that has run longest, and start another. On a slow machine, all may still be starting."""
        up = [at for at, worker in enumerate(self.workers) if self._log_of(worker)]
        if up:
            self.kill_worker(min(up, key=lambda at: int(self._names[self.workers[at].pid][1:])))

    def kill_worker(self, at: int) -> None:
        """Kill a worker, and start another in its place."""
        self.workers[at].send_signal(signal.SIGKILL)
        self.workers[at].wait()
        self._dead.append(f"{self._names[self.workers[at].pid]}#")
        self.workers[at] = self._start_worker()

    def end_leases_of_the_dead(self) -> None:
        """Let the leases of killed workers end at once, so that a short test need not wait for 15 seconds."""
        answer = self.redis.command("EVAL", _END_LEASES, "2", f"{KEYS}workers", f"{KEYS}leases", *self._dead)
        assert answer.startswith(b":1"), answer

    def counters(self) -> dict[str, int]:
        """Return the counters of the queue."""
        answer = self.redis.command("HGETALL", f"{KEYS}meta").split(b"\r\n")[2::2]
        pairs = zip(answer[::2], answer[1::2], strict=False)
        return {name.decode(): int(value) for name, value in pairs if value.lstrip(b"-").isdigit()}

    def finish(self, timeout: float = 300.0) -> StormResult:
        """Let the producers end, wait until the workers have delivered everything, and return the outcome."""
        results = []
        for producer in self._producers:
            output, _ = producer.communicate(timeout=60)
            results.append(json.loads(output.splitlines()[-1]))
        end = time.monotonic() + timeout
        while self.counters().get("records", 1) and time.monotonic() < end:
            time.sleep(0.05)
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            status = worker.wait(timeout=20)
            # A worker that has just been started has not said so yet.
            assert status == 0 or (status < 0 and not self._log_of(worker)), self._log_of(worker)
        return self._result(results)

    def _result(self, results: list[dict[str, Any]]) -> StormResult:
        applied, counters = self.applied, self.counters()
        numbers = [f"{one['number']}-{at}" for one in results for at in range(one["events"])]
        adds = {f"add-{one['number']}-{at}" for one in results for at in range(one["adds"])}
        finals = {person: value for one in results for person, value in one["finals"].items()}
        letters = self.uncertain_adds()
        ended = sum(counters.get(name, 0) for name in ("out", "dead", "uncertain", "purged", "records"))
        return StormResult(
            events=len(numbers),
            copies=sum(applied.events.values()) - len(applied.events),
            sets=sum(one["sets"] for one in results),
            adds=len(adds),
            events_lost=sum(number not in applied.events for number in numbers),
            different_keys=sum(len(keys) > 1 for keys in applied.keys.values()),
            wrong_final_values=sum(applied.values[person][-1:] != [value] for person, value in finals.items()),
            steps_back=sum(
                later < earlier for values in applied.values.values() for earlier, later in pairwise(values)
            ),
            adds_applied_twice=sum(count > 1 for count in applied.adds.values()),
            adds_unaccounted=len(adds - applied.adds.keys() - letters),
            uncounted=counters.get("in", 0) - ended,
            not_handed_over=sum(one["accepted"] - one["delivered"] for one in results),
            uncertain=counters.get("uncertain", 0),
            workers_killed=len(self._dead),
            counters={name: count for name, count in counters.items() if count and ":" not in name},
        )

    def uncertain_adds(self) -> set[str]:
        """Return the `$add` updates that are dead letters."""
        found: set[str] = set()
        for body in self.redis.lines("XRANGE", f"{KEYS}dead", "-", "+"):
            if body.startswith(b"{") and b'"$add"' in body:
                found.update(json.loads(body.replace(b"\x01", b'""'))["$add"])
        return found
