"""Records whose sending ends the process: set aside after three or four deaths, while the sound ones are delivered."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkedProcess, ForkServer, fork_server
from killer_row_program import KILLER
from spool_harness import SpoolHarness, record

from mixpanel_async import SqliteSpool
from mixpanel_async._spool.trials import PROVEN_AFTER
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=4)

RECORDS = 300
PROGRAM = Path(__file__).with_name("killer_row_program.py")


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with fork_server() as server:
        yield server


def begin(forks: ForkServer, program: str, **given: Any) -> ForkedProcess:
    return forks.start(PROGRAM, program, json.dumps(given))


def run(forks: ForkServer, program: str, **given: Any) -> tuple[int, str, str]:
    return forks.run(PROGRAM, program, json.dumps(given))


def delivered_numbers(emulator: Emulator, kind: str) -> list[int]:
    """Return the numbers of the sound records that arrived, without duplicates."""
    if kind == "people":
        found = list(emulator.profiles().values())
    elif kind == "groups":
        groups = [emulator.group("company", f"company-{number}") for number in range(RECORDS)]
        found = [one for one in groups if one]
    else:
        found = [event["properties"] for event in emulator.events()]
    return sorted(one["n"] for one in found if one["name"] != KILLER)


CASES = [
    pytest.param("events", "exit", "request", {150}, 2_000, id="events: os._exit before the request"),
    pytest.param("events", "SIGSEGV", "response", {299}, 2_000, id="events: SIGSEGV after the response"),
    pytest.param("events", "SIGKILL", "request", {0}, 50, id="events: SIGKILL in the first batch"),
    pytest.param("events", "SIGABRT", "request", {10, 200}, 50, id="events: two killers"),
    pytest.param("imports", "SIGSEGV", "request", {77}, 2_000, id="imports: SIGSEGV"),
    pytest.param("people", "exit", "response", {150}, 2_000, id="people: os._exit after the response"),
    pytest.param("groups", "SIGSEGV", "request", {5}, 2_000, id="groups: SIGSEGV"),
]


# Each case starts up to eleven processes: seconds on an idle machine, more on a busy one.
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "manner", "moment", "killers", "max_events"), CASES)
def test_g13_record_that_ends_the_process_is_set_aside_and_the_others_arrive(
    tmp_path: Path, forks: ForkServer, kind: str, manner: str, moment: str, killers: set[int], max_events: int
) -> None:
    emulator = Emulator(service_account=("user", "secret", "1"))
    path = tmp_path / "spool.db"
    with emulator.serve() as api:
        given = {"url": api.url, "path": str(path), "kind": kind, "records": RECORDS, "killers": sorted(killers)}
        given |= {"manner": manner, "moment": moment, "max_events": max_events}
        assert run(forks, "fill", **given)[0] == 0
        deaths = 0
        while (ended := run(forks, "drain", **given))[0] != 0:
            deaths += 1
            assert ended[0] in {9, *(-one for one in signal.Signals)}, ended[2]
            assert deaths <= 4 * len(killers), "the record still ends the process"
        assert deaths >= 3
        stats = json.loads(ended[1].splitlines()[-1])
        assert stats["accepted"] == stats["delivered"] + stats["failed"]
        assert delivered_numbers(emulator, kind) == [number for number in range(RECORDS) if number not in killers]
        letters = list(SqliteSpool(path).dead_letters())
        assert [letter.reason for letter in letters] == ["crashed"] * len(killers)
        assert all("again and again" in letter.message and KILLER in str(letter.payload) for letter in letters)

        # A version without the fault sends them.
        assert SqliteSpool(path).retry(reasons=["crashed"]) == len(killers)
        assert run(forks, "drain", **{**given, "manner": ""})[0] == 0
        assert SqliteSpool(path).status().waiting == {}
        assert list(SqliteSpool(path).dead_letters()) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("outage", ["refused", "slow"])
def test_g13_kills_of_a_healthy_process_set_no_record_aside(tmp_path: Path, forks: ForkServer, outage: str) -> None:
    """Four deploys in a row, each killed at a random moment: while the server is down, or while it is slow."""
    emulator = Emulator(service_account=("user", "secret", "1"))
    chance = random.Random(13)
    path = tmp_path / "spool.db"
    with emulator.serve() as api:
        given = {"url": api.url, "path": str(path), "kind": "events", "records": 400, "killers": []}
        given |= {"manner": "", "moment": "", "max_events": 20}
        assert run(forks, "fill", **given)[0] == 0
        if outage == "slow":
            emulator.latency = 0.05
        for _ in range(4):
            process = begin(forks, "drain", **{**given, "url": api.url if outage == "slow" else "http://127.0.0.1:9"})
            try:
                process.stdout.readline()
                if outage == "slow":
                    # The end of the first request clears the rows that are sent first.
                    before, limit = len(emulator.raw_events()), time.monotonic() + 10.0
                    while len(emulator.raw_events()) == before and process.poll() is None and time.monotonic() < limit:
                        time.sleep(0.001)
                time.sleep(chance.uniform(0.1, 0.4))
            finally:
                process.kill()
        emulator.latency = 0.0
        assert run(forks, "drain", **given)[0] == 0
    assert delivered_numbers(emulator, "events") == list(range(400))
    assert list(SqliteSpool(path).dead_letters()) == []


ANY_SERVER = [
    pytest.param(lambda url: url, id="any response"),
    pytest.param(lambda url: "http://127.0.0.1:9", id="no response"),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", ANY_SERVER)
def test_g13_request_that_ends_acquits_its_records(
    tmp_path: Path, forks: ForkServer, server: Callable[[str], str]
) -> None:
    """Only deaths in a row count: one start in which a request with the record ended makes it sound again."""
    emulator = Emulator()
    path = tmp_path / "spool.db"
    with emulator.serve() as api:
        given = {"url": api.url, "path": str(path), "kind": "events", "records": 1, "killers": [0]}
        given |= {"manner": "exit", "moment": "request", "max_events": 2_000}
        assert run(forks, "fill", **given)[0] == 0
        for _ in range(2):
            assert run(forks, "drain", **given)[0] == 9
            assert suspicions(path)
        emulator.fail_next(status=503, times=1_000)
        process = begin(forks, "drain", **{**given, "manner": "", "url": server(api.url)})
        try:
            limit = time.monotonic() + 15.0
            while suspicions(path):
                assert time.monotonic() < limit
                time.sleep(0.02)
        finally:
            process.kill()
        emulator.stop_faults()
        for _ in range(2):
            assert run(forks, "drain", **given)[0] == 9
        assert list(SqliteSpool(path).dead_letters()) == []
        assert run(forks, "drain", **{**given, "manner": ""})[0] == 0
    assert len(emulator.events()) == 1


def suspicions(path: Path) -> list[str]:
    """Return the notes about deaths of rows, and about rows on trial."""
    with closing(sqlite3.connect(path)) as db:
        return [name for (name,) in db.execute("SELECT name FROM meta WHERE name != 'salt'")]


def test_g13_request_that_takes_long_acquits_its_records(tmp_path: Path) -> None:
    """A server that never responds and a supervisor that kills the process after a while set nothing aside."""
    path = tmp_path / "a" / "spool.db"
    first = SpoolHarness(path)
    first.offer(record(1))
    first.step()
    path = first.crash(tmp_path / "left-0")
    for start in range(1, 6):
        waiting = SpoolHarness(path)
        waiting.step()
        waiting.run_until_idle()
        batch = waiting.take()
        while batch is None:
            waiting.step()
            batch = waiting.take()
        assert batch.is_on_trial
        assert not batch.suspicion
        waiting.begin_trial(batch)
        waiting.step()
        waiting.now += PROVEN_AFTER + 1.0
        waiting.step()
        path = waiting.crash(tmp_path / f"left-{start}")
    last = SpoolHarness(path)
    last.step()
    assert last.queue.stats().failed == 0
    assert last.queue.stats().pending == 1
    last.abandon()
