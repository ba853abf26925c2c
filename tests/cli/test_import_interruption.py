"""Resuming an import after signals, a kill and a closed pipe."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from import_command import (
    TOKEN,
    event,
    finish,
    read_checkpoint,
    read_rejects,
    run,
    start,
    wait_for_message,
    wait_until,
    write,
)

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

# Child processes start slowly on a busy machine.
pytestmark = pytest.mark.timeout(90)


def event_counts(emulator: Emulator) -> Counter[tuple[Any, ...]]:
    """Return how often each event arrived, by Mixpanel's de-duplication key."""
    return Counter(
        (one["event"], one["properties"]["time"], one["properties"]["distinct_id"], one["properties"]["$insert_id"])
        for one in emulator.raw_events()
    )


def events(lines: int) -> Iterator[dict[str, Any]]:
    """Yield events. Every second one has an explicit insert id."""
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
def test_each_event_counts_once_after_two_interrupts_and_a_kill(
    tmp_path: Path, lines: int, latency: float, timeout: float
) -> None:
    path = write(tmp_path / "events.ndjson", events(lines))
    emulator = Emulator(max_events=lines * 2, max_bytes=10 * lines * 400)
    emulator.latency = latency
    with emulator.serve() as server:
        for share, number in ((0.1, signal.SIGINT), (0.3, signal.SIGINT), (0.5, signal.SIGKILL)):
            process = start(path, "--concurrency", 2, host=server.url)
            before = read_checkpoint(path)["position"]["line"]
            goal = max(share * lines, before + 1)
            wait_until(lambda goal=goal: read_checkpoint(path)["position"]["line"] >= goal, process, timeout)  # type: ignore[misc]
            process.send_signal(number)
            result = finish(process)
            assert result.status == (130 if number is signal.SIGINT else -signal.SIGKILL), result
            assert not read_checkpoint(path)["complete"]
            if number is signal.SIGINT:
                assert "Rerun the command to resume." in result.output
                # Every event that was sent is confirmed and covered by the checkpoint.
                found = event_counts(emulator)
                assert set(found.values()) == {1}
                assert len(found) == read_checkpoint(path)["position"]["line"]
        result = finish(start(path, "--concurrency", 2, host=server.url), timeout)
    assert result.status == 0, result
    assert result.output.startswith(f"{lines:,} events imported, 0 rejected (")
    found = event_counts(emulator)
    assert len(found) == lines
    assert {key[3] for key in found} >= {f"id-{number}" for number in range(1, lines, 2)}
    # Only events that the kill left unconfirmed arrived twice.
    assert max(found.values()) <= 2
    assert sum(found.values()) - lines <= 30_000


def test_second_interrupt_ends_the_import_immediately_without_loss(tmp_path: Path) -> None:
    path = write(tmp_path / "events.ndjson", events(12_000))
    emulator = Emulator()
    emulator.latency = 0.02
    with emulator.serve() as server:
        process = start(path, "--concurrency", 1, host=server.url)
        wait_until(lambda: read_checkpoint(path)["position"]["line"] > 0, process)
        # The server stops responding, so the first interrupt keeps waiting.
        emulator.latency = 100.0
        process.send_signal(signal.SIGINT)
        wait_for_message(process, "Stopping after")
        process.send_signal(signal.SIGINT)
        result = finish(process)
        assert result.status == 130, result
        assert 0 < read_checkpoint(path)["position"]["line"] < 12_000
        emulator.latency = 0.0
        assert run(path, host=server.url).status == 0
    assert len(event_counts(emulator)) == 12_000


def test_idle_pipe_can_be_interrupted_after_its_records_were_sent(tmp_path: Path) -> None:
    emulator = Emulator()
    with (
        emulator.serve() as server,
        start("-", "--state-dir", tmp_path, host=server.url, stdin=subprocess.PIPE) as process,
    ):
        for number in range(3):
            process.stdin.write(orjson.dumps(event(number)).decode() + "\n")
            process.stdin.flush()
            wait_until(lambda number=number: len(emulator.raw_events()) == number + 1, process)  # type: ignore[misc]
        process.send_signal(signal.SIGTERM)
        # The process ends although the pipe is still open.
        assert process.wait(60) == 143
        assert "standard input cannot be resumed" in process.stdout.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at_least_once", [False, True])
def test_non_idempotent_updates_are_not_applied_twice_after_a_kill(tmp_path: Path, at_least_once: bool) -> None:
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
        process = start(*options, host=server.url)
        wait_until(lambda: read_checkpoint(path)["position"]["line"] >= 2_000, process)
        # The server applies a range but does not respond before the kill.
        emulator.latency = 100.0
        applied = len(emulator.requests())
        wait_until(lambda: read_checkpoint(path)["sending"] > 0 and len(emulator.requests()) > applied, process)
        process.kill()
        finish(process)
        emulator.latency = 0.0
        result = run(*options, host=server.url)
    profiles = emulator.profiles().values()
    total = sum(profile.get("n", 0) for profile in profiles)
    assert {profile["last"] for profile in profiles if "last" in profile} == set(range(lines - 10, lines, 2))
    assert read_checkpoint(path)["complete"]
    if at_least_once:
        assert result.status == 0
        assert total > lines // 2
        return
    assert result.status == 3
    assert "1,000 uncertain: may have been applied, not sent again" in result.output
    uncertain = read_rejects(path)
    assert {(entry["reason"], *entry["record"]["$add"].items()) for entry in uncertain} == {("uncertain", ("n", 1))}
    assert len(uncertain) == 1_000
    assert total <= lines // 2 <= total + len(uncertain)


def test_record_rejected_before_a_kill_has_one_entry_in_the_rejects(tmp_path: Path) -> None:
    lines = 20_000
    invalid = set(range(0, lines, 100))
    path = write(
        tmp_path / "events.ndjson",
        (b"no json" if number in invalid else event(number, number=number) for number in range(lines)),
    )
    emulator = Emulator()
    emulator.latency = 0.03
    with emulator.serve() as server:
        process = start(path, "--concurrency", 2, host=server.url)
        wait_until(lambda: read_checkpoint(path)["position"]["line"] > 0, process)
        process.kill()
        finish(process)
        emulator.latency = 0.0
        result = run(path, host=server.url)
    assert result.status == 3
    assert [entry["line"] for entry in read_rejects(path)] == sorted(number + 1 for number in invalid)
    assert len(event_counts(emulator)) == lines - len(invalid)
    assert read_checkpoint(path)["counts"] == {"read": lines, "rejected": len(invalid), "uncertain": 0}
    assert TOKEN not in path.with_name(path.name + ".import-state").read_text()
