"""Deeply nested values of events: `mixpanel-async import --nesting`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from import_command import event, read_checkpoint, read_rejects, run, write

from mixpanel_async.emulator import Emulator

DEEP = {"a": {"b": {"c": {"d": {"e": 1}}, "n": 2}}}
PROPERTY = {"deep": DEEP, "flat": "x"}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Any]:
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"a": {"b": {"c": '{"d":{"e":1}}', "n": 2}}}),
        (["--nesting", "text"], {"a": {"b": {"c": '{"d":{"e":1}}', "n": 2}}}),
        (["--nesting", "cut"], {"a": {"b": {"n": 2}}}),
    ],
)
def test_deep_values_are_changed_and_the_event_is_imported(
    options: list[str], expected: object, tmp_path: Path, emulator: Any
) -> None:
    path = write(tmp_path / "a.ndjson", [event(number, **PROPERTY) for number in range(3)])
    assert run(path, *options, "--dry-run").output == "3 events valid, 0 rejected\n"
    result = run(path, *options, host=emulator.url)
    assert (result.status, result.output) == (0, "3 events imported, 0 rejected\n"), result
    stored = emulator.raw_events()
    assert [(one["properties"]["deep"], one["properties"]["flat"]) for one in stored] == [(expected, "x")] * 3


def test_deep_values_are_kept_or_rejected_on_request(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(0, **PROPERTY), event(1)])
    # The emulator is as strict as Mixpanel's documents.
    assert run(path, "--nesting", "keep", "--dry-run").output == "2 events valid, 0 rejected\n"
    assert run(path, "--nesting", "keep", host=emulator.url).status == 3
    (refused,) = read_rejects(path)
    assert (refused["reason"], refused["record"]["properties"]["deep"]) == ("rejected", DEEP)
    for options in (["--dry-run", "--rejects", tmp_path / "a.rejects"], ["--restart"]):
        assert run(path, "--nesting", "reject", *options, host=emulator.url).status == 3
    for (entry,) in (read_rejects(tmp_path / "a.rejects"), read_rejects(path)):
        assert (entry["reason"], entry["line"]) == ("invalid", 1)
        assert "properties.deep.a.b.c" in entry["field"]


def test_insert_id_does_not_depend_on_the_option(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(0, **PROPERTY)])
    for option in ("text", "cut"):
        assert run(path, "--nesting", option, "--restart", host=emulator.url).status == 0
    assert (len(emulator.raw_events()), len(emulator.events())) == (2, 1)
    refused = run(path, "--nesting", "reject", host=emulator.url)
    assert (refused.status, "with different options: --nesting" in refused.errors) == (2, True)
    assert run(path, "--restart", host=emulator.url).status == 0
    # A checkpoint of an earlier version, which has no such option, can be resumed.
    assert "nesting" not in read_checkpoint(path)["options"]


def test_option_is_refused_for_profiles(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [{"$distinct_id": "u", "$set": {"deep": DEEP}}])
    assert "--nesting applies to events only" in run(path, "--kind", "people", "--nesting", "cut").errors
    assert run(path, "--kind", "people", host=emulator.url).status == 0
    assert emulator.profile("u") == {"deep": DEEP}
