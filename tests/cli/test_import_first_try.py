"""Rerun of `mixpanel-async import` after a first try in which every record was rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from import_command import NOW, read_checkpoint, read_rejects, run, write

from mixpanel_async.emulator import Emulator


@pytest.fixture(scope="module")
def emulator() -> Any:
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


@pytest.mark.parametrize("kind", ["events", "people"])
@pytest.mark.parametrize("count", [3, 6_500])
def test_rejected_file_is_imported_with_corrected_options(kind: str, count: int, tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "e", "who": f"u{number}", "time": NOW} for number in range(count)])
    first = run(path, "--kind", kind, host=emulator.url)
    assert (first.status, first.output.splitlines()[0]) == (3, f"0 {kind} imported, {count:,} rejected")
    assert len(read_rejects(path)) == count
    second = run(path, "--kind", kind, "--map", "distinct_id=who", host=emulator.url)
    assert (second.status, second.output) == (0, f"{count:,} {kind} imported, 0 rejected\n"), second
    assert read_rejects(path) == []
    # From then on the file is done, and other options need --restart.
    assert "is already imported" in run(path, "--kind", kind, "--map", "distinct_id=who", host=emulator.url).errors
    assert run(path, "--kind", kind, "--map", "distinct_id=event", host=emulator.url).status == 2


def test_records_refused_by_mixpanel_can_be_sent_again(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "e", "distinct_id": "u", "time": NOW}])
    # The first event is sent alone. It is refused, and then everything is accepted.
    emulator.break_next("partial")
    first = run(path, host=emulator.url)
    assert (first.status, first.output.splitlines()[0]) == (3, "0 events imported, 1 rejected")
    assert not read_checkpoint(path)["complete"]
    again = run(path, host=emulator.url)
    assert (again.status, again.output) == (0, "1 event imported, 0 rejected\n"), again
    assert len(emulator.raw_events()) == 1


def test_uncorrected_rerun_reports_the_same(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "e"}, b"{"])
    first, second = run(path, host=emulator.url), run(path, host=emulator.url)
    assert (first.status, second.status, first.output) == (3, 3, second.output)
    assert len(read_rejects(path)) == 2
