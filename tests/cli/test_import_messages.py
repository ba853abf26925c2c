"""Messages of `mixpanel-async import` and `spool`: they are correct and name the fix."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from import_command import NOW, event, finish, read_rejects, run, start, wait_for_message, wait_until, write
from typer.testing import CliRunner

from mixpanel_async import SqliteSpool
from mixpanel_async._spool.database import lane_start, open_database
from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator

ACCOUNT = {
    "MIXPANEL_SERVICE_ACCOUNT_USERNAME": "user",
    "MIXPANEL_SERVICE_ACCOUNT_SECRET": "a-secret",
    "MIXPANEL_PROJECT_ID": "12",
}
RESUME = "Rerun the command to resume."

# Child processes start slowly on a busy machine.
pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--no-checkpoint"], ["--state-dir", "new/state"]])
@pytest.mark.parametrize(
    ("place", "problem"),
    [("nodir/x", "No such file or directory"), ("a.ndjson/x", "Not a directory"), ("folder", "Is a directory")],
)
def test_unwritable_rejects_file_is_reported_before_anything_is_sent(
    options: list[str], place: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.ndjson", [event(0), b"{"])
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    emulator = Emulator()
    with emulator.serve() as server:
        result = run(path, "--rejects", place, *options, host=server.url)
    assert (result.status, result.output) == (2, "")
    assert result.errors == (
        f"mixpanel-async import: cannot write rejected records to {place}: {problem}; "
        "choose another file with --rejects\n"
    )
    assert (emulator.requests(), sorted(tmp_path.rglob("*"))) == ([], before)


def test_check_of_the_rejects_file_changes_nothing(tmp_path: Path) -> None:
    path, written = write(tmp_path / "a.ndjson", [event(0)]), tmp_path / "all.rejects"
    with Emulator().serve() as server:
        assert run(path, "--rejects", written, host=server.url).status == 0
        assert not written.exists()
        written.write_text('{"file": "another", "line": 1}\n')
        assert run(path, "--restart", "--rejects", written, host=server.url).status == 0
    assert written.read_text() == '{"file": "another", "line": 1}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_reported_with_its_fix(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [*(event(n) for n in range(3)), *[b"x" * 1_000] * 100])
    with Emulator().serve() as server:
        result = run(path, "--rejects", "/dev/full", host=server.url)
    assert result.status == 1
    assert "stopped: cannot write rejected records to /dev/full: No space left on device" in result.output
    assert RESUME not in result.output


@pytest.mark.parametrize("first", ["bad", "good"])
def test_counts_of_a_stopped_import_agree(first: str, tmp_path: Path) -> None:
    records = [event(0), b"{", event(1)]
    path = write(tmp_path / "a.ndjson", records if first == "good" else [b"{", event(0), event(1)])
    result = finish(start(path, "--patience", 2, host="http://127.0.0.1:1"))
    assert result.status == 1
    assert "0 imported, 1 rejected, " in result.errors.splitlines()[-1]
    lines = result.output.splitlines()
    assert lines[0] == "0 events imported, 1 rejected"
    assert f"rejected records: {path}.import-rejects" in lines
    assert (lines[-1], len(read_rejects(path))) == (RESUME, 1)
    with Emulator().serve() as server:
        result = run(path, host=server.url)
    assert result.output.splitlines()[0] == "2 events imported, 1 rejected"
    assert len(read_rejects(path)) == 1


def test_records_accepted_before_an_import_was_stopped_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [b"{", *(event(n % 900, n=n) for n in range(15_000))])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.latency = 0.1
        process = start(path, "--concurrency", 1, host=server.url)
        wait_until(lambda: len(emulator.raw_events()) > 1, process)
        seen = len(emulator.requests())
        emulator.latency = 100.0
        wait_until(lambda: len(emulator.requests()) > seen, process)
        process.send_signal(signal.SIGINT)
        wait_for_message(process, "Stopping")
        process.send_signal(signal.SIGINT)
        result = finish(process)
    assert result.status == 130
    shown = re.findall(r"([0-9,]+) imported, 1 rejected", result.errors)[-1]
    assert shown != "0"
    assert result.output.splitlines()[0] == f"{shown} event{'' if shown == '1' else 's'} imported, 1 rejected"


@pytest.mark.parametrize(
    ("status", "cause"), [(401, "the token or the service account"), (404, "the region or the host")]
)
def test_permanent_error_names_the_fix_needed_before_a_rerun(status: int, cause: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0)])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.fail_next(status=status)
        result = run(path, host=server.url)
    assert result.status == 1
    assert result.output.splitlines()[-1] == f"Fix {cause}, then rerun the command to resume."
    assert RESUME not in result.output


def test_refused_profile_updates_name_the_fix_needed_before_a_rerun(tmp_path: Path) -> None:
    path = write(tmp_path / "p.ndjson", [{"$distinct_id": "u", "$set": {"a": 1}}])
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.fail_next(status=401, times=100)
        result = run(path, "--kind", "people", "--patience", 2, host=server.url)
    assert result.status == 1
    assert result.output.splitlines()[-1].startswith("Fix the token or the service account, then ")


def test_added_service_account_is_reported_as_the_difference(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0)])
    emulator = Emulator()
    with emulator.serve() as server:
        assert run(path, host=server.url).status == 0
        result = run(path, host=server.url, **ACCOUNT)
        assert result.status == 2
        assert "was written for the same token and host, but with another --project-id or without one." in result.errors
        # Another account of the same project makes no difference.
        assert run(path, "--restart", "--project-id=12", host=server.url).status == 0
        assert run(path, host=server.url, **ACCOUNT).status == 0


@pytest.mark.parametrize("cell", ["distinct_id", "name", "header"])
def test_wrong_encoding_names_the_encoding_option(cell: str, tmp_path: Path) -> None:
    head, values = ["event", "distinct_id", "time", "name"], ["Sold", "u", str(NOW), "x"]
    if cell == "header":
        head[3] = "näme"
    else:
        values[head.index(cell)] = "Jürgen"
    path = tmp_path / "a.csv"
    path.write_text(f"{','.join(head)}\n{','.join(values)}\n", encoding="latin-1")
    with Emulator().serve() as server:
        result = run(path, host=server.url)
        assert result.status == 3
        assert "is not valid in the file's encoding; for CSV, set --encoding" in result.output
        assert run(path, "--restart", "--encoding", "latin-1", host=server.url).status == 0


def test_errors_name_command_line_options(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(0)])
    result = run(path, host="http://mixpanel.example")
    assert result.status == 2
    assert "pass --allow-http, or set MIXPANEL_ALLOW_HTTP=1, to allow http://" in result.errors
    assert "allow_http" not in result.errors
    assert "--map must have the form NAME=COLUMN" in run(path, "--map", "time").errors
    assert "--set must have the form NAME=VALUE" in run(path, "--set", "time").errors
    assert "--type must have the form COLUMN=TYPE" in run(path, "--type", "time").errors


def test_missing_time_column_names_the_map_option(tmp_path: Path) -> None:
    hint = 'The time is read from the column "time". Use --map time=COLUMN to read it from another.'
    path = tmp_path / "a.csv"
    path.write_text("event,distinct_id,ts\n" + f"Sold,u,{NOW}\n" * 3)
    with Emulator().serve() as server:
        assert run(path, "--dry-run").output.count(hint) == 1
        assert run(path, host=server.url).output.count(hint) == 1
        assert hint not in run(path, "--restart", "--map", "time=when", host=server.url).output
        assert hint not in run(path, "--restart", "--map", "time=ts", host=server.url).output
    # If some records have a time, the column exists.
    assert hint not in run(write(tmp_path / "b.ndjson", [event(0), {"event": "Sold"}]), "--dry-run").output


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"$distinct_id": "u", "$set": {"a": 1}}, "people"),
        ({"$distinct_id": "u", "$properties": {"a": 1}}, "people"),
        ({"$group_key": "k", "$group_id": "g", "$set": {"a": 1}}, "groups"),
    ],
)
def test_profiles_read_as_events_name_the_kind_option(record: dict[str, object], kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.ndjson", [record])
    result = run(path, "--dry-run")
    assert f"looks like a profile update; use --kind {kind}" in result.output
    assert "--map" not in result.output
    assert run(path, "--dry-run", "--kind", kind).status == 0


def test_spool_commands_report_a_directory(tmp_path: Path) -> None:
    for command in (["status"], ["list"], ["retry"], ["purge", "--dead", "--yes"], ["export"]):
        found = CliRunner().invoke(app, ["spool", *command, str(tmp_path)], env={"COLUMNS": "300"})
        assert found.exit_code == 2
        assert "is a directory" in found.stderr


def test_spool_status_names_both_files_when_usage_exceeds_one(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    database = open_database(path, max_bytes=10**9, timeout=5.0, fsync=False)
    with database.transaction():
        owner = database.add_owner(b"p" * 16, 1_600_000_000.0)
        database.insert([(lane_start(owner, 0) + at, 0, b"x" * 1_000) for at in range(1, 400)])
    found = SqliteSpool(path).status()
    assert found.used_bytes > found.file_bytes
    lines = CliRunner().invoke(app, ["spool", "status", str(path)]).stdout
    database.close()
    assert (
        f"file\t{found.file_bytes:,} bytes; log {found.log_bytes:,} bytes; used in both {found.used_bytes:,} bytes"
    ) in lines
