"""An import that is interrupted, in every way there is, and begun again."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from import_command import TOKEN, ended, event, rejects, run, started, state, until, wait_for_message, write

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

# Processes start slowly on a machine that is busy.
pytestmark = pytest.mark.timeout(90)


def keys(emulator: Emulator) -> Counter[tuple[Any, ...]]:
    """How often each event arrived, by Mixpanel's duplicate key."""
    return Counter(
        (one["event"], one["properties"]["time"], one["properties"]["distinct_id"], one["properties"]["$insert_id"])
        for one in emulator.raw_events()
    )


def events(lines: int) -> Iterator[dict[str, Any]]:
    """Every second with an insert id of its own."""
    for number in range(lines):
        own = {"$insert_id": f"id-{number}"} if number % 2 else {}
        yield event(number % 1000, number=number, **own)


@pytest.mark.parametrize(
    ("lines", "latency", "timeout"),
    [
        pytest.param(30_000, 0.02, 60, id="short"),
        pytest.param(1_000_000, 0.0, 300, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_every_event_is_there_once_after_two_interrupts_and_a_kill(
    tmp_path: Path, lines: int, latency: float, timeout: float
) -> None:
    path = write(tmp_path / "events.ndjson", events(lines))
    emulator = Emulator(max_events=lines * 2, max_bytes=10 * lines * 400)
    emulator.latency = latency
    with emulator.serve() as server:
        for share, number in ((0.1, signal.SIGINT), (0.3, signal.SIGINT), (0.5, signal.SIGKILL)):
            process = started(path, "--concurrency", 2, host=server.url)
            before = state(path)["position"]["line"]
            goal = max(share * lines, before + 1)
            until(lambda goal=goal: state(path)["position"]["line"] >= goal, process, timeout)  # type: ignore[misc]
            process.send_signal(number)
            result = ended(process)
            assert result.status == (130 if number is signal.SIGINT else -signal.SIGKILL), result
            assert not state(path)["complete"]
            if number is signal.SIGINT:
                assert "Give the same command again to go on" in result.output
                # Whatever was sent is confirmed, and noted down.
                found = keys(emulator)
                assert set(found.values()) == {1}
                assert len(found) == state(path)["position"]["line"]
        result = ended(started(path, "--concurrency", 2, host=server.url), timeout)
    assert result.status == 0, result
    assert result.output.startswith(f"{lines:,} events imported, 0 rejected (")
    found = keys(emulator)
    assert len(found) == lines
    assert {key[3] for key in found} >= {f"id-{number}" for number in range(1, lines, 2)}
    # What the kill left unconfirmed, and nothing else, came twice.
    assert max(found.values()) <= 2
    assert sum(found.values()) - lines <= 30_000


def test_a_second_interrupt_ends_it_at_once_and_costs_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "events.ndjson", events(12_000))
    emulator = Emulator()
    emulator.latency = 0.02
    with emulator.serve() as server:
        process = started(path, "--concurrency", 1, host=server.url)
        until(lambda: state(path)["position"]["line"] > 0, process)
        # From now on nothing is answered, and the first interrupt waits for it.
        emulator.latency = 100.0
        process.send_signal(signal.SIGINT)
        wait_for_message(process, "Stopping when")
        process.send_signal(signal.SIGINT)
        result = ended(process)
        assert result.status == 130, result
        assert 0 < state(path)["position"]["line"] < 12_000
        emulator.latency = 0.0
        assert run(path, host=server.url).status == 0
    assert len(keys(emulator)) == 12_000


def test_a_pipe_that_says_nothing_can_be_interrupted_and_what_came_is_sent(tmp_path: Path) -> None:
    emulator = Emulator()
    with (
        emulator.serve() as server,
        started("-", "--state-dir", tmp_path, host=server.url, stdin=subprocess.PIPE) as process,
    ):
        for number in range(3):
            process.stdin.write(orjson.dumps(event(number)).decode() + "\n")
            process.stdin.flush()
            until(lambda number=number: len(emulator.raw_events()) == number + 1, process)  # type: ignore[misc]
        process.send_signal(signal.SIGTERM)
        # It ends although nobody closes the pipe.
        assert process.wait(60) == 143
        assert "the standard input cannot be resumed" in process.stdout.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at_least_once", [False, True])
def test_updates_that_are_not_idempotent_are_never_applied_twice_over_a_kill(
    tmp_path: Path, at_least_once: bool
) -> None:
    lines = 8_000
    path = write(
        tmp_path / "people.ndjson",
        (
            {"$distinct_id": f"u{n % 10}", **({"$add": {"n": 1}} if n % 2 else {"$set": {"last": n}})}
            for n in range(lines)
        ),
    )
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.latency = 0.05
    options = [path, "--kind", "people", *(["--at-least-once"] if at_least_once else [])]
    with emulator.serve() as server:
        process = started(*options, host=server.url)
        until(lambda: state(path)["position"]["line"] >= 2_000, process)
        # A range is applied, and nobody hears of it before the end.
        emulator.latency = 100.0
        applied = len(emulator.requests())
        until(lambda: state(path)["sending"] > 0 and len(emulator.requests()) > applied, process)
        process.kill()
        ended(process)
        emulator.latency = 0.0
        result = run(*options, host=server.url)
    profiles = emulator.profiles().values()
    total = sum(profile.get("n", 0) for profile in profiles)
    assert {profile["last"] for profile in profiles if "last" in profile} == set(range(lines - 10, lines, 2))
    assert state(path)["complete"]
    if at_least_once:
        assert result.status == 0
        assert total > lines // 2
        return
    assert result.status == 3
    assert "1,000 uncertain: they may have been applied and were not sent again" in result.output
    unsure = rejects(path)
    assert {(entry["reason"], *entry["record"]["$add"].items()) for entry in unsure} == {("uncertain", ("n", 1))}
    assert len(unsure) == 1_000
    assert total <= lines // 2 <= total + len(unsure)


def test_what_was_rejected_before_a_kill_is_written_down_once(tmp_path: Path) -> None:
    lines = 20_000
    bad = set(range(0, lines, 100))
    path = write(
        tmp_path / "events.ndjson",
        (b"no json" if number in bad else event(number, number=number) for number in range(lines)),
    )
    emulator = Emulator()
    emulator.latency = 0.03
    with emulator.serve() as server:
        process = started(path, "--concurrency", 2, host=server.url)
        until(lambda: state(path)["position"]["line"] > 0, process)
        process.kill()
        ended(process)
        emulator.latency = 0.0
        result = run(path, host=server.url)
    assert result.status == 3
    assert [entry["line"] for entry in rejects(path)] == sorted(number + 1 for number in bad)
    assert len(keys(emulator)) == lines - len(bad)
    assert state(path)["counts"] == {"read": lines, "rejected": len(bad), "uncertain": 0}
    assert TOKEN not in path.with_name(path.name + ".import-state").read_text()
