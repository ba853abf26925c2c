"""An import in trouble: with Mixpanel, with the disk, with an earlier import, with those who read what it says."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from import_command import NOW, RUN, TOKEN, ended, event, rejects, run, started, state, until, write

from mixpanel_async.cli.importing.concurrency import ConcurrencyController, Meter
from mixpanel_async.emulator import Emulator

SECRET = "a-secret-that-nobody-may-show"
ACCOUNT = {
    "MIXPANEL_SERVICE_ACCOUNT_USERNAME": "user",
    "MIXPANEL_SERVICE_ACCOUNT_SECRET": SECRET,
    "MIXPANEL_PROJECT_ID": "12",
}

# Processes start slowly on a machine that is busy.
pytestmark = pytest.mark.timeout(90)


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_a_service_account_is_used_and_shown_nowhere(tmp_path: Path) -> None:
    emulator = Emulator(token=TOKEN, service_account=("user", SECRET, "12"))
    path = write(tmp_path / "a.ndjson", [event(0), b"{", event(1)])
    with emulator.serve() as server:
        result = run(path, host=server.url, **ACCOUNT)
        assert result.status == 3, result
        assert emulator.requests()[0].query["project_id"] == "12"
        options = ["--service-account", "user", "--project-id", "12", "--restart", "--service-account-secret"]
        assert run(path, *options, SECRET, host=server.url).status == 3
    assert SECRET not in result.output + result.errors
    assert SECRET.encode() not in everything_in(tmp_path)
    assert TOKEN.encode() not in everything_in(tmp_path)


@pytest.mark.parametrize("secret", ["wrong-secret", SECRET])
def test_wrong_credentials_stop_it_at_the_first_request(tmp_path: Path, secret: str) -> None:
    account = {**ACCOUNT, "MIXPANEL_SERVICE_ACCOUNT_SECRET": secret}
    emulator = Emulator(service_account=("user", SECRET, "13"))
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(10_000)])
    with emulator.serve() as server:
        result = run(path, host=server.url, **account)
    assert result.status == 1
    assert "stopped: /import: HTTP 401" in result.output
    assert len(emulator.requests()) == 1
    assert secret not in result.output + result.errors
    assert not path.with_name("a.ndjson.import-rejects").exists()
    with Emulator(service_account=("user", secret, "12")).serve() as server:
        assert (
            run(path, "--restart", host=server.url, **{**ACCOUNT, "MIXPANEL_SERVICE_ACCOUNT_SECRET": secret}).status
            == 0
        )


def test_another_endpoint_than_mixpanels_stops_it(tmp_path: Path) -> None:
    emulator = Emulator()
    path = write(tmp_path / "a.ndjson", [event(0)])
    with emulator.serve() as server:
        emulator.fail_next(status=404)
        result = run(path, host=server.url)
        assert (result.status, "HTTP 404" in result.output) == (1, True)
        emulator.break_next("redirect")
        assert run(path, host=server.url).status == 1


def test_a_mixpanel_that_is_down_is_waited_for_and_then_given_up_with_everything_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3_000)])
    result = run(path, "--patience", 1, host="http://127.0.0.1:1")
    assert result.status == 1
    assert "stopped: nothing was taken for 1 seconds; /import: no connection" in result.output
    assert "Give the same command again to go on from here." in result.output
    assert state(path)["position"]["line"] == 0
    emulator = Emulator()
    with emulator.serve() as server:
        result = run(path, host=server.url)
    assert (result.status, len(emulator.events())) == (0, 3_000)


def test_rate_limits_and_outages_cost_nothing_but_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n % 900, n=n) for n in range(9_000)])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.fail_next(status=429, times=1, retry_after=0)
        emulator.drop_connections(1)
        emulator.fail_next(status=413, times=1)
        result = run(path, host=server.url)
    assert (result.status, result.output) == (0, "9,000 events imported, 0 rejected\n"), result
    assert len(emulator.events()) == 9_000


def test_the_first_event_may_be_the_one_that_is_refused_or_has_to_wait(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(5)])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.break_next("partial")
        result = run(path, host=server.url)
        assert result.output.splitlines()[0] == "4 events imported, 1 rejected", result
        assert [entry["line"] for entry in rejects(path)] == [1]
        emulator.fail_next(status=429, times=1, retry_after=0)
        result = run(path, "--restart", host=server.url)
    assert (result.status, result.output) == (0, "5 events imported, 0 rejected\n")
    assert not path.with_name("a.ndjson.import-rejects").read_bytes()


def test_updates_of_which_nobody_knows_are_uncertain_and_not_sent_again(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.ndjson", [{"$distinct_id": "u", "$add": {"n": 1}}, {"$distinct_id": "u", "$set": {"a": 1}}]
    )
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.drop_connections(1, apply=True)
        result = run(path, "--kind", "people", host=server.url)
    assert result.status == 3
    assert result.output.startswith("1 people imported, 0 rejected, 1 uncertain")
    assert emulator.profile("u") == {"n": 1, "a": 1}
    assert [(entry["line"], entry["reason"]) for entry in rejects(path)] == [(1, "uncertain")]


# What an earlier import left.


def test_another_file_project_or_mapping_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3)])
    emulator = Emulator()
    with emulator.serve() as server:
        assert run(path, host=server.url).status == 0

        def refusal(*options: str, given: bool = False) -> str:
            result = run(path, *options, host="" if given else server.url)
            assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1), result
            assert "--restart" in result.errors
            return result.errors

        assert "had other options: map, set;" in refusal("--map", "a=b", "--set", "c=d")
        assert "had the same token and host, but another project id" in refusal("--project-id", "7")
        assert "went to another project or host" in refusal("--token=another", f"--api-host={server.url}", given=True)
        os.utime(path, ns=(0, NOW))
        assert "had this file before it was changed" in refusal()
        write(path, [event(n) for n in range(4)])
        assert "had a file of" in refusal()
        path.with_name("a.ndjson.import-state").write_bytes(b"{")
        assert "cannot be read" in refusal()
        assert len(emulator.raw_events()) == 3
        assert run(path, "--restart", host=server.url).status == 0
    assert len(emulator.events()) == 4


def test_two_imports_of_one_file_are_one_too_many(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3)])
    emulator = Emulator()
    emulator.latency = 100.0
    with emulator.serve() as server:
        process = started(path, host=server.url)
        until(lambda: bool(emulator.requests()), process)
        result = run(path, host=server.url)
        assert (result.status, result.errors) == (2, f"mixpanel-async import: another import of {path} is under way\n")
        process.kill()
        ended(process)
        emulator.latency = 0.0
        assert run(path, host=server.url).status == 0


def test_checkpoints_and_rejects_may_be_elsewhere_or_nowhere(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data" / "a.ndjson", [event(0), b"{"])
    emulator = Emulator()
    with emulator.serve() as server:
        assert run(path, "--state-dir", tmp_path / "state", host=server.url).status == 3
        assert [one.name for one in (tmp_path / "data").iterdir()] == ["a.ndjson"]
        names = sorted(one.name.rpartition(".")[2] for one in (tmp_path / "state").iterdir())
        assert names == ["import-rejects", "import-state"]
        written = tmp_path / "all.rejects"
        for _ in range(2):
            assert run(path, "--no-checkpoint", "--rejects", written, host=server.url).status == 3
    assert [one.name for one in (tmp_path / "data").iterdir()] == ["a.ndjson"]
    assert len(rejects(written)) == 1


def test_a_place_that_cannot_be_written_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0)])
    path.with_name("a.ndjson.import-state.new").mkdir()
    result = run(path, host="http://127.0.0.1:1")
    assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1)
    assert "choose a directory with --state-dir" in result.errors


def test_an_import_that_cannot_begin_leaves_everything_as_it_was(tmp_path: Path) -> None:
    good, other = write(tmp_path / "a.ndjson", [event(0)]), write(tmp_path / "b.ndjson", [event(1), b"{"])
    emulator = Emulator()

    def left() -> dict[str, bytes]:
        return {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}

    with emulator.serve() as server:
        before = left()
        # Without a token.
        assert run(good, "--state-dir", tmp_path / "state").status == 2
        assert run(good).status == 2
        assert (left(), (tmp_path / "state").exists()) == (before, False)
        assert run(other, host=server.url).status == 3
        before = left()
        assert run(good, other, "--restart").status == 2
        # With another file's checkpoint that does not fit.
        assert run(good, other, "--map", "a=b", host=server.url).status == 2
        assert left() == before
        # With one that cannot be written.
        third = write(tmp_path / "c.ndjson", [event(2)])
        third.with_name("c.ndjson.import-state.new").mkdir()
        before = left()
        assert run(good, other, third, "--restart", host=server.url).status == 2
        assert left() == before
    assert len(emulator.raw_events()) == 1


def test_what_comes_through_a_device_has_no_checkpoint_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0), b"{"])
    emulator = Emulator()
    with emulator.serve() as server, path.open("rb") as file:
        result = ended(started("/dev/stdin", "--state-dir", tmp_path / "state", host=server.url, stdin=file))
    assert (result.status, result.output.splitlines()[0]) == (3, "1 events imported, 1 rejected")
    assert [one.name for one in (tmp_path / "state").iterdir()] == ["stdin.import-rejects"]


# The disk, and those who read what it says.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to be had")
def test_what_is_rejected_must_be_written_down(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [*(event(n) for n in range(3)), *[b"x" * 1_000] * 100])
    emulator = Emulator()
    with emulator.serve() as server:
        result = run(path, "--rejects", "/dev/full", host=server.url)
        assert result.status == 1
        assert "No space left" in result.output + result.errors
        assert not state(path)["complete"]
        assert run(path, host=server.url).status == 3
    assert len(rejects(path)) == 100
    assert len(emulator.events()) == 3


def test_a_checkpoint_that_cannot_be_written_any_more_stops_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n % 900, n=n) for n in range(15_000)])
    emulator = Emulator()
    emulator.latency = 0.05
    with emulator.serve() as server:
        process = started(path, "--concurrency", 1, host=server.url)
        until(lambda: state(path)["position"]["line"] > 0, process)
        path.with_name("a.ndjson.import-state.new").mkdir()
        result = ended(process)
        assert result.status == 1
        assert "stopped: cannot write the checkpoint: Is a directory" in result.output
        assert 0 < state(path)["position"]["line"] < 15_000
        path.with_name("a.ndjson.import-state.new").rmdir()
        emulator.latency = 0.0
        assert run(path, host=server.url).status == 0
    assert len(emulator.events()) == 15_000


def test_a_reader_of_its_words_that_has_gone_away_does_not_stop_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3_000)])
    emulator = Emulator()
    with emulator.serve() as server:
        process = started(path, host=server.url)
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 0
    assert len(emulator.events()) == 3_000


def test_a_line_now_and_then_where_there_is_no_terminal_and_a_bar_where_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3_000)] + [b"{"])
    emulator = Emulator()
    with emulator.serve() as server:
        result = ended(started(path, host=server.url))
        assert result.status == 3
        assert result.errors.startswith("100%, 3,000 imported, 1 rejected, ")
        assert result.errors.endswith("/s\n")
        assert result.errors.count("\n") == 1
        shown = on_a_terminal([str(path), "--restart", "--token", TOKEN, "--api-host", server.url])
    assert "━" in shown
    assert "3,000 imported, 1 rejected" in shown
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2]


def on_a_terminal(arguments: list[str]) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*RUN, *arguments], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65_536):
            shown += data
    except OSError:
        # So the end of a terminal is told on Linux.
        pass
    os.close(ours)
    assert process.wait(60) == 3
    return shown.decode()


# The parts that decide how fast it goes.


def test_the_pace_grows_by_one_a_round_and_is_halved_once_a_trouble() -> None:
    pace = ConcurrencyController(10)
    assert pace.requests == 4
    for _ in range(4 + 5 + 1):
        pace.delivered(1)
    assert pace.requests == 6
    for _ in range(6):
        pace.delivered(2)
    assert pace.requests == 3
    pace.delivered(1)
    pace.delivered(5)
    pace.delivered(1)
    pace.delivered(2)
    pace.delivered(1)
    pace.delivered(2)
    assert pace.requests == 1
    for _ in range(200):
        pace.delivered(1)
    assert pace.requests == 10
    assert ConcurrencyController(1).requests == 1


def test_the_meter_tells_rate_and_time_left() -> None:
    meter = Meter(0.0)
    assert meter.left(0.0, 0.0) is None
    assert meter.left(0.1, 0.5) is None
    assert meter.rate(0.0, 0) == 0.0
    assert meter.rate(5.0, 5_000) == 1_000
    assert meter.rate(10.0, 5_000) == 500
    assert meter.rate(30.0, 25_000) == 1_000
    assert meter.left(10.0, 0.75) == 10.0
    assert meter.mean(30.0, 60_000) == 2_000
