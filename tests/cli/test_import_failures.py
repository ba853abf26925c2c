"""Failures during an import: Mixpanel errors, an unusable disk, mismatching checkpoints and closed output."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from import_command import NOW, RUN, TOKEN, event, finish, read_checkpoint, read_rejects, run, start, wait_until, write

from mixpanel_async.cli.importing.concurrency import ConcurrencyController
from mixpanel_async.cli.importing.progress import RateMeter
from mixpanel_async.emulator import Emulator

SECRET = "a-secret-that-must-not-be-shown"
ACCOUNT = {
    "MIXPANEL_SERVICE_ACCOUNT_USERNAME": "user",
    "MIXPANEL_SERVICE_ACCOUNT_SECRET": SECRET,
    "MIXPANEL_PROJECT_ID": "12",
}

# Child processes start slowly on a busy machine.
pytestmark = pytest.mark.timeout(90)


def all_bytes_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_service_account_is_used_and_never_shown(tmp_path: Path) -> None:
    emulator = Emulator(token=TOKEN, service_account=("user", SECRET, "12"))
    path = write(tmp_path / "a.ndjson", [event(0), b"{", event(1)])
    with emulator.serve() as server:
        result = run(path, host=server.url, **ACCOUNT)
        assert result.status == 3, result
        assert emulator.requests()[0].query["project_id"] == "12"
        options = ["--service-account", "user", "--project-id", "12", "--restart", "--service-account-secret"]
        assert run(path, *options, SECRET, host=server.url).status == 3
    assert SECRET not in result.output + result.errors
    assert SECRET.encode() not in all_bytes_in(tmp_path)
    assert TOKEN.encode() not in all_bytes_in(tmp_path)


@pytest.mark.parametrize("secret", ["wrong-secret", SECRET])
def test_wrong_credentials_stop_the_import_at_the_first_request(tmp_path: Path, secret: str) -> None:
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


def test_wrong_endpoint_stops_the_import(tmp_path: Path) -> None:
    emulator = Emulator()
    path = write(tmp_path / "a.ndjson", [event(0)])
    with emulator.serve() as server:
        emulator.fail_next(status=404)
        result = run(path, host=server.url)
        assert (result.status, "HTTP 404" in result.output) == (1, True)
        emulator.break_next("redirect")
        assert run(path, host=server.url).status == 1


def test_outage_ends_the_import_after_patience_without_loss(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3_000)])
    result = run(path, "--patience", 1, host="http://127.0.0.1:1")
    assert result.status == 1
    assert "stopped: no record was accepted for 1 seconds; /import: no connection" in result.output
    assert "Rerun the command to resume." in result.output
    assert read_checkpoint(path)["position"]["line"] == 0
    emulator = Emulator()
    with emulator.serve() as server:
        result = run(path, host=server.url)
    assert (result.status, len(emulator.events())) == (0, 3_000)


def test_rate_limit_and_short_outage_lose_no_event(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n % 900, n=n) for n in range(9_000)])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.fail_next(status=429, times=1, retry_after=0)
        emulator.drop_connections(1)
        emulator.fail_next(status=413, times=1)
        result = run(path, host=server.url)
    assert (result.status, result.output) == (0, "9,000 events imported, 0 rejected\n"), result
    assert len(emulator.events()) == 9_000


def test_rejected_or_rate_limited_first_event_does_not_stop_the_import(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(5)])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.break_next("partial")
        result = run(path, host=server.url)
        assert result.output.splitlines()[0] == "4 events imported, 1 rejected", result
        assert [entry["line"] for entry in read_rejects(path)] == [1]
        emulator.fail_next(status=429, times=1, retry_after=0)
        result = run(path, "--restart", host=server.url)
    assert (result.status, result.output) == (0, "5 events imported, 0 rejected\n")
    assert not path.with_name("a.ndjson.import-rejects").read_bytes()


def test_update_with_unknown_outcome_is_uncertain_and_not_resent(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.ndjson", [{"$distinct_id": "u", "$add": {"n": 1}}, {"$distinct_id": "u", "$set": {"a": 1}}]
    )
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.drop_connections(1, apply=True)
        result = run(path, "--kind", "people", host=server.url)
    assert result.status == 3
    assert result.output.startswith("1 person imported, 0 rejected, 1 uncertain")
    assert emulator.profile("u") == {"n": 1, "a": 1}
    assert [(entry["line"], entry["reason"]) for entry in read_rejects(path)] == [(1, "uncertain")]


# Checkpoints of earlier imports.


def test_checkpoint_of_another_file_project_or_mapping_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3)])
    emulator = Emulator()
    with emulator.serve() as server:
        assert run(path, host=server.url).status == 0

        def refusal(*options: str, given: bool = False) -> str:
            result = run(path, *options, host="" if given else server.url)
            assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1), result
            assert "--restart" in result.errors
            return result.errors

        assert "was written with different options: --map, --set." in refusal("--map", "a=b", "--set", "c=d")
        assert "was written for the same token and host, but with another --project-id" in refusal("--project-id", "7")
        assert "was written for another project or host" in refusal(
            "--token=another", f"--api-host={server.url}", given=True
        )
        os.utime(path, ns=(0, NOW))
        assert "was written before the file was changed" in refusal()
        write(path, [event(n) for n in range(4)])
        assert "was written when the file had" in refusal()
        path.with_name("a.ndjson.import-state").write_bytes(b"{")
        assert "cannot read checkpoint" in refusal()
        assert len(emulator.raw_events()) == 3
        assert run(path, "--restart", host=server.url).status == 0
    assert len(emulator.events()) == 4


def test_concurrent_import_of_one_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3)])
    emulator = Emulator()
    emulator.latency = 100.0
    with emulator.serve() as server:
        process = start(path, host=server.url)
        wait_until(lambda: bool(emulator.requests()), process)
        result = run(path, host=server.url)
        assert (result.status, result.errors) == (2, f"mixpanel-async import: another import of {path} is running\n")
        process.kill()
        finish(process)
        emulator.latency = 0.0
        assert run(path, host=server.url).status == 0


def test_state_dir_rejects_and_no_checkpoint_options(tmp_path: Path) -> None:
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
    assert len(read_rejects(written)) == 1


def test_unwritable_checkpoint_is_reported_before_anything_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0)])
    path.with_name("a.ndjson.import-state.new").mkdir()
    result = run(path, host="http://127.0.0.1:1")
    assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1)
    assert "set --state-dir to a writable directory" in result.errors


def test_import_that_cannot_start_changes_no_file(tmp_path: Path) -> None:
    good, other = write(tmp_path / "a.ndjson", [event(0)]), write(tmp_path / "b.ndjson", [event(1), b"{"])
    emulator = Emulator()

    def files() -> dict[str, bytes]:
        return {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}

    with emulator.serve() as server:
        before = files()
        # Without a token.
        assert run(good, "--state-dir", tmp_path / "state").status == 2
        assert run(good).status == 2
        assert (files(), (tmp_path / "state").exists()) == (before, False)
        assert run(other, host=server.url).status == 3
        before = files()
        assert run(good, other, "--restart").status == 2
        # With a checkpoint of the second file that does not match.
        assert run(good, other, "--map", "a=b", host=server.url).status == 2
        assert files() == before
        # With a checkpoint that cannot be written.
        third = write(tmp_path / "c.ndjson", [event(2)])
        third.with_name("c.ndjson.import-state.new").mkdir()
        before = files()
        assert run(good, other, third, "--restart", host=server.url).status == 2
        assert files() == before
    assert len(emulator.raw_events()) == 1


def test_device_file_has_no_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0), b"{"])
    emulator = Emulator()
    with emulator.serve() as server, path.open("rb") as file:
        result = finish(start("/dev/stdin", "--state-dir", tmp_path / "state", host=server.url, stdin=file))
    assert (result.status, result.output.splitlines()[0]) == (3, "1 event imported, 1 rejected")
    assert [one.name for one in (tmp_path / "state").iterdir()] == ["stdin.import-rejects"]


def test_fingerprints_match_those_of_existing_checkpoints(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0)])
    with Emulator().serve() as server:
        assert run(path, host=server.url).status == 0
    assert read_checkpoint(path)["options"] == {
        "kind": "af4b8fa7f08ff00daf377dd7c15dfcd2",
        "format": "9b304af1916160b0606d5deb5580029d",
        "map": "de75f5edfabdb0477e652512e4287161",
        "set": "de75f5edfabdb0477e652512e4287161",
        "drop": "de75f5edfabdb0477e652512e4287161",
        "type": "de75f5edfabdb0477e652512e4287161",
        "infer-types": "c2b768f244a39a81c3b95f8654087594",
        "time-format": "bf359636e6c5af5c3b2783083c7a1b77",
        "timezone": "9781e576fbd9086ba1e97c87f1bd1575",
        "operation": "8fe62b4cef6df4678383d0e01b310b43",
        "insert-ids": "7214496ed30f55818b257255b440c46d",
        "delimiter": "9781e576fbd9086ba1e97c87f1bd1575",
        "encoding": "52d0695f28ea4f7e888ad2ec08126976",
    }


# Disk and output errors.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_for_rejects_stops_the_import(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [*(event(n) for n in range(3)), *[b"x" * 1_000] * 100])
    emulator = Emulator()
    with emulator.serve() as server:
        result = run(path, "--rejects", "/dev/full", host=server.url)
        assert result.status == 1
        assert "No space left" in result.output + result.errors
        assert not read_checkpoint(path)["complete"]
        assert run(path, host=server.url).status == 3
    assert len(read_rejects(path)) == 100
    assert len(emulator.events()) == 3


def test_checkpoint_write_failure_stops_the_import(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n % 900, n=n) for n in range(15_000)])
    emulator = Emulator()
    emulator.latency = 0.05
    with emulator.serve() as server:
        process = start(path, "--concurrency", 1, host=server.url)
        wait_until(lambda: read_checkpoint(path)["position"]["line"] > 0, process)
        path.with_name("a.ndjson.import-state.new").mkdir()
        result = finish(process)
        assert result.status == 1
        assert "stopped: cannot write the checkpoint: Is a directory" in result.output
        assert 0 < read_checkpoint(path)["position"]["line"] < 15_000
        path.with_name("a.ndjson.import-state.new").rmdir()
        emulator.latency = 0.0
        assert run(path, host=server.url).status == 0
    assert len(emulator.events()) == 15_000


def test_closed_output_does_not_stop_the_import(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3_000)])
    emulator = Emulator()
    with emulator.serve() as server:
        process = start(path, host=server.url)
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 0
    assert len(emulator.events()) == 3_000


def test_progress_is_a_line_without_a_terminal_and_a_bar_on_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(n) for n in range(3_000)] + [b"{"])
    emulator = Emulator()
    with emulator.serve() as server:
        result = finish(start(path, host=server.url))
        assert result.status == 3
        assert result.errors.startswith("100%, 3,000 imported, 1 rejected, ")
        assert result.errors.endswith("/s\n")
        assert result.errors.count("\n") == 1
        shown = run_on_terminal([str(path), "--restart", "--token", TOKEN, "--api-host", server.url])
    assert "━" in shown
    assert "3,000 imported, 1 rejected" in shown
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2]


def run_on_terminal(arguments: list[str]) -> str:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*RUN, *arguments], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(controller, 65_536):
            shown += data
    except OSError:
        # Linux reports the end of a terminal as an error.
        pass
    os.close(controller)
    assert process.wait(60) == 3
    return shown.decode()


# Concurrency and rate.


def test_concurrency_grows_by_one_per_round_and_halves_once_per_outage() -> None:
    controller = ConcurrencyController(10)
    assert controller.limit == 4
    for _ in range(4 + 5 + 1):
        controller.on_delivered(1)
    assert controller.limit == 6
    for _ in range(6):
        controller.on_delivered(2)
    assert controller.limit == 3
    controller.on_delivered(1)
    controller.on_delivered(5)
    controller.on_delivered(1)
    controller.on_delivered(2)
    controller.on_delivered(1)
    controller.on_delivered(2)
    assert controller.limit == 1
    for _ in range(200):
        controller.on_delivered(1)
    assert controller.limit == 10
    assert ConcurrencyController(1).limit == 1


def test_rate_meter_computes_rate_and_remaining_time() -> None:
    meter = RateMeter(0.0)
    assert meter.remaining(0.0, 0.0) is None
    assert meter.remaining(0.1, 0.5) is None
    assert meter.rate(0.0, 0) == 0.0
    assert meter.rate(5.0, 5_000) == 1_000
    assert meter.rate(10.0, 5_000) == 500
    assert meter.rate(30.0, 25_000) == 1_000
    assert meter.remaining(10.0, 0.75) == 10.0
    assert meter.mean_rate(30.0, 60_000) == 2_000
