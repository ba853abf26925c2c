"""The command `mixpanel-async identity apply`: sending, asking, stopping and resuming."""

from __future__ import annotations

import os
import pty
import select
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from import_command import TOKEN, finish, wait_until
from repair_command import RUN, PlanText, anonymous, journal_lines, run, start, states

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator, Server

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(IdMerge.ORIGINAL)


@pytest.fixture
def server(emulator: Emulator) -> Iterator[Server]:
    with emulator.serve() as server:
        yield server


def planned(folder: Path, pairs: list[str], system: str = "original", *arguments: object) -> Path:
    """Make a plan for lines of pairs."""
    (folder / "pairs.csv").write_text("\n".join(["kind,first,second", *pairs]) + "\n")
    run("plan", folder / "pairs.csv", "--without-history", "--id-merge", system, *arguments)
    return folder / "pairs.csv.plan"


def merges(count: int) -> list[str]:
    return [f"merge,user-{number},{anonymous(number)}" for number in range(count)]


def sent(emulator: Emulator) -> Counter[tuple[str, ...]]:
    """Return how often each call arrived, by its ids."""
    arrived: Counter[tuple[str, ...]] = Counter()
    for entry in emulator.identity_log():
        properties = entry["properties"]
        ids = properties.get("$distinct_ids") or [properties[name] for name in ("distinct_id", "alias")]
        arrived[tuple(ids)] += 1
    return arrived


def test_calls_of_every_kind_are_sent_and_journaled(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    pairs = [f"merge,u1,{anonymous(1)}", f"alias,{anonymous(1)},{anonymous(2)}", f"identify,u2,{anonymous(3)}"]
    plan = planned(tmp_path, pairs)
    result = run("apply", plan, "--yes", host=server.url)
    assert result.status == 0, result
    assert "3 accepted now, 3 of 3 in total" in result.output
    assert {frozenset(one) for one in emulator.clusters()} == set(PlanText(plan).persons)
    assert [entry["outcome"] for entry in emulator.identity_log()] == ["merged"] * 3
    lines = journal_lines(plan)
    assert Counter(line["state"] for line in lines) == {"started": 3, "accepted": 3}
    again = run("apply", plan, "--yes", host=server.url)
    assert again.status == 0
    assert len(emulator.identity_log()) == 3
    assert plan.with_name(plan.name + ".journal").stat().st_mode & 0o077 == 0


def test_simplified_project_gets_events_that_join(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    plan = planned(tmp_path, ["identify,u1,d1", "auto,$device:d2,u1"], "simplified", "--event", "Device linked")
    with emulator.serve() as server:
        result = run("apply", plan, "--yes", host=server.url)
    assert result.status == 0, result
    assert emulator.cluster("u1") == {"u1", "$device:d1", "$device:d2"}
    assert len(emulator.events("Device linked")) == 2


def test_without_terminal_it_needs_yes(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    result = run("apply", planned(tmp_path, merges(2)), host=server.url)
    assert result.status == 2
    assert "use --yes" in result.errors
    assert emulator.identity_log() == []


@pytest.mark.parametrize(
    ("answer", "status", "count"),
    [
        (b"y\n", 0, 1),
        # Control and C.
        (b"\x03", 130, 0),
        pytest.param(b"n\n", 2, 0, marks=pytest.mark.long),
        pytest.param(b"\x04", 2, 0, marks=pytest.mark.long),
    ],
)
def test_terminal_is_asked(
    tmp_path: Path, emulator: Emulator, server: Server, answer: bytes, status: int, count: int
) -> None:
    plan = planned(tmp_path, merges(1))
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update({"MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": server.url})
        os.execv(RUN[0], [*RUN, "apply", str(plan)])
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(terminal, 1024)
    shown += b"".join(answer_and_read(terminal, answer))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status, shown
    os.close(terminal)
    assert len(emulator.identity_log()) == count
    assert b"These calls cannot be undone" in shown
    assert (b"Nothing was sent." in shown) is (count == 0)


def answer_and_read(terminal: int, answer: bytes) -> Iterator[bytes]:
    """Type an answer, and yield the output of the terminal. Linux reports its end as an error.

    Ctrl-C is typed again until the terminal ends. `input()` misses a signal that arrives between the last check of the
    interpreter and the system call that reads.
    """
    os.write(terminal, answer)
    try:
        while True:
            if answer == b"\x03" and not select.select([terminal], [], [], 0.5)[0]:
                os.write(terminal, answer)
            elif data := os.read(terminal, 1024):
                yield data
            else:
                return
    except OSError:
        return


def test_limit_sends_the_first_calls_only(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    plan = planned(tmp_path, merges(5))
    result = run("apply", plan, "--yes", "--limit", 2, host=server.url)
    assert result.status == 0
    assert "Left: 3 calls; run the command again" in result.output
    assert set(states(plan)) == {1, 2}
    assert run("apply", plan, "--yes", host=server.url).status == 0
    assert set(sent(emulator).values()) == {1}
    assert len(emulator.identity_log()) == 5


@pytest.mark.parametrize("change", ["call", "end", "input"])
def test_changed_plan_is_refused_unless_accepted(
    tmp_path: Path, emulator: Emulator, server: Server, change: str
) -> None:
    plan = planned(tmp_path, merges(2))
    if change == "input":
        (tmp_path / "pairs.csv").write_text("other,pairs\n")
    elif change == "call":
        plan.write_text(plan.read_text().replace("user-1", "user-9"))
    else:
        plan.write_text(plan.read_text() + "\n")
    result = run("apply", plan, "--yes", host=server.url)
    assert result.status == 2
    assert "--accept-changed" in result.errors
    assert emulator.identity_log() == []
    assert run("apply", plan, "--yes", "--accept-changed", host=server.url).status == 0
    assert len(emulator.identity_log()) == 2


def test_plan_is_applied_when_its_inputs_are_gone(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    plan = planned(tmp_path, merges(1))
    (tmp_path / "pairs.csv").unlink()
    assert run("apply", plan, "--yes", host=server.url).status == 0
    assert len(emulator.identity_log()) == 1


def test_journal_is_valid_for_one_plan_and_project(tmp_path: Path, server: Server) -> None:
    plan = planned(tmp_path, merges(1))
    assert run("apply", plan, "--yes", host=server.url).status == 0
    with Emulator(IdMerge.ORIGINAL).serve() as other:
        assert "another project, token or host" in run("apply", plan, "--yes", host=other.url).errors
    plan.unlink()
    (tmp_path / "pairs.csv").unlink()
    journal = (tmp_path / "pairs.csv.plan.journal").rename(tmp_path / "aside")
    planned(tmp_path, merges(2))
    journal.rename(tmp_path / "pairs.csv.plan.journal")
    assert "another version of the plan" in run("apply", plan, "--yes", host=server.url).errors


def test_other_id_merge_in_the_environment_is_refused(tmp_path: Path, server: Server) -> None:
    plan = planned(tmp_path, merges(1))
    result = run("apply", plan, "--yes", host=server.url, MIXPANEL_ID_MERGE="legacy")
    assert result.status == 2
    assert "is for a project with original ID merge, but MIXPANEL_ID_MERGE is legacy" in result.errors


def test_refused_credentials_stop_the_run(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.ORIGINAL, secret="s")
    with emulator.serve() as server:
        plan = planned(tmp_path, merges(30))
        result = run("apply", plan, "--yes", "--concurrency", 1, host=server.url)
    assert result.status == 1
    assert "Fix the credentials" in result.output
    assert states(plan) == {1: "failed"}


def test_failures_stop_the_run_and_are_sent_again(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    plan = planned(tmp_path, merges(40))
    emulator.fail_next(400, 30)
    result = run("apply", plan, "--yes", "--concurrency", 2, "--rate", 1000, host=server.url)
    assert result.status == 1
    assert "more than --max-failures 0.05 allows" in result.output
    assert "pairs.csv:2: merge failed: /import: HTTP 400" in result.output
    failed = Counter(states(plan).values())["failed"]
    assert 20 <= failed <= 22
    emulator.stop_faults()
    end = run("apply", plan, "--yes", "--max-failures", 1, "--rate", 1000, host=server.url)
    while end.status == 3:
        end = run("apply", plan, "--yes", "--max-failures", 1, "--rate", 1000, host=server.url)
    assert end.status == 0
    assert Counter(states(plan).values()) == {"accepted": 40}
    assert set(sent(emulator).values()) == {1}


def test_uncertain_alias_is_repeated_on_demand_and_holds_its_person(
    tmp_path: Path, emulator: Emulator, server: Server
) -> None:
    pairs = [f"alias,{anonymous(1)},{anonymous(2)}", f"alias,{anonymous(2)},{anonymous(3)}", f"merge,u5,{anonymous(5)}"]
    plan = planned(tmp_path, pairs)
    assert run("apply", plan, "--yes", "--limit", 1, host=server.url).status == 0
    journal = plan.with_name(plan.name + ".journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    # As after a kill between the request and the end of the line, which is torn.
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:10])
    result = run("apply", plan, "--yes", host=server.url)
    assert result.status == 3
    assert "pairs.csv:2: alias uncertain: the run was interrupted before the answer" in result.output
    assert "Waiting for an uncertain call of the same person: 1 call" in result.output
    assert states(plan) == {1: "started", 3: "accepted"}
    result = run("apply", plan, "--yes", "--repeat-uncertain", host=server.url)
    assert result.status == 0, result
    assert emulator.cluster(anonymous(1)) == {anonymous(number) for number in (1, 2, 3)}


@pytest.mark.parametrize(
    ("count", "kills"),
    [
        pytest.param(40, 1, id="short"),
        pytest.param(600, 12, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_killed_run_resumes_without_repeating_a_confirmed_merge(tmp_path: Path, count: int, kills: int) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.latency = 0.01
    plan = planned(tmp_path, merges(count))
    confirmed: dict[int, int] = {}
    with emulator.serve() as server:
        for number in range(kills):
            process = start("apply", plan, "--yes", "--concurrency", 3, "--rate", 1000, "--quiet", host=server.url)
            goal = len(emulator.identity_log()) + count // (kills + 2) + number % 3
            wait_until(lambda goal=goal: len(emulator.identity_log()) >= goal, process)  # type: ignore[misc]
            process.kill()
            assert finish(process).status == -signal.SIGKILL
            check_not_repeated(confirmed, emulator)
            known = [call for call, state in states(plan).items() if state == "accepted"]
            assert confirmed.keys() <= {*known}
            arrived = sent(emulator)
            confirmed |= {call: arrived[ids_of(call)] for call in known if call not in confirmed}
        result = run("apply", plan, "--yes", "--rate", 1000, "--quiet", host=server.url)
    assert result.status == 0, result
    assert Counter(states(plan).values()) == {"accepted": count}
    check_not_repeated(confirmed, emulator)
    # Only calls that a kill cut are repeated: at most as many as were in flight.
    assert sum(sent(emulator).values()) - count <= 3 * kills
    assert all(emulator.cluster(f"user-{one}") == {f"user-{one}", anonymous(one)} for one in range(count))


def ids_of(call: int) -> tuple[str, str]:
    """Return the ids of a merge by number of the call."""
    return f"user-{call - 1}", anonymous(call - 1)


def check_not_repeated(confirmed: dict[int, int], emulator: Emulator) -> None:
    """Check that no call has arrived again since a journal confirmed it."""
    arrived = sent(emulator)
    assert {call: arrived[ids_of(call)] for call in confirmed} == confirmed


def test_interrupted_run_does_not_wait_for_the_rate(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    plan = planned(tmp_path, merges(20))
    # The next call would be sent after 10 s, and the tenth after 90 s.
    process: Any = start("apply", plan, "--yes", "--quiet", "--rate", 0.1, host=server.url)
    wait_until(lambda: len(emulator.identity_log()) == 1, process)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.status == 130, result
    assert states(plan) == {1: "accepted"}
    assert "Interrupted: no further call was sent" in result.output


def test_interrupted_run_ends_its_calls_in_flight(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    plan = planned(tmp_path, merges(200))
    emulator.latency = 0.02
    process: Any = start("apply", plan, "--yes", "--quiet", host=server.url)
    wait_until(lambda: len(emulator.identity_log()) >= 5, process)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.status == 130, result
    assert set(states(plan).values()) == {"accepted"}
    assert len(emulator.identity_log()) == len(states(plan)) < 200
    assert "run the command again" in result.output
