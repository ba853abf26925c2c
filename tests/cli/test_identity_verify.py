"""The command `mixpanel-async identity verify`: what an export says about the pairs of a plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from emulator_export import import_events
from import_command import run as run_import
from repair_command import PlanText, anonymous, run, write_export, write_lines

from mixpanel_async import IdMerge
from mixpanel_async.cli.identity.repair.plan_file import read_plan
from mixpanel_async.cli.identity.repair.verification import ReadBack
from mixpanel_async.cli.identity.repair.verify_command import verify_until
from mixpanel_async.emulator import Emulator

A1, A2, A3 = anonymous(1), anonymous(2), anonymous(3)
NOW = int(time.time())
DAY = 86_400
# Each further day is one more request, after a delay.
FIRST_DAY = ("--from-date", datetime.fromtimestamp(NOW - 3_600, timezone.utc).date())


def viewed(number: int = 0, **properties: Any) -> dict[str, Any]:
    own = {key.replace("dollar_", "$"): value for key, value in properties.items()}
    return {"event": "Viewed", "properties": {"time": NOW - 100 + number, "$insert_id": f"v-{number}", **own}}


def planned(folder: Path, emulator: Emulator, system: str, *pairs: str) -> Path:
    """Make a plan for lines of pairs, against the events of an emulator."""
    (folder / "pairs.csv").write_text("\n".join(["kind,first,second", *pairs]) + "\n")
    history = write_export(emulator, folder / "history.ndjson")
    run("plan", folder / "pairs.csv", "--against", history, "--id-merge", system)
    return folder / "pairs.csv.plan"


def verified(plan: Path, *arguments: object, host: str = "") -> tuple[int, list[str]]:
    """Return the exit status and the status of each pair."""
    result = run("verify", plan, "--json", *arguments, *(FIRST_DAY if host else ()), host=host)
    assert result.errors == ""
    return result.status, [orjson.loads(line)["status"] for line in result.output.splitlines()]


CASES: dict[str, tuple[Sequence[dict[str, Any]], Sequence[str], Sequence[str], Sequence[str]]] = {
    # Events before, pairs, and the status of each pair before and after `apply`.
    "original": (
        [viewed(1, distinct_id="u1"), viewed(2, distinct_id=A1), viewed(3, distinct_id="u2")],
        [f"merge,u1,{A1}", f"identify,u2,{A2}", f"identify,u1,{A3}", f"merge,{A1},{A3}"],
        ["unknown", "unknown", "apart", "unknown"],
        ["accepted", "accepted", "joined", "accepted"],
    ),
    "legacy": (
        [viewed(1, distinct_id="d1"), viewed(2, distinct_id=A1)],
        [f"auto,{A1},u1", f"auto,{A2},{A1}"],
        ["unknown", "unknown"],
        ["accepted", "accepted"],
    ),
    "simplified": (
        [viewed(1, dollar_device_id="d1"), viewed(2, dollar_device_id="d2"), viewed(3, dollar_user_id="u1")],
        ["identify,u1,d1", "auto,u1,d2", "identify,u2,d3"],
        ["apart", "apart", "unknown"],
        ["joined", "joined", "accepted"],
    ),
}


@pytest.mark.parametrize("system", CASES)
def test_pairs_are_joined_after_apply_and_not_before(tmp_path: Path, system: str) -> None:
    before, pairs, status_before, status_after = CASES[system]
    emulator = Emulator(IdMerge(system))
    import_events(emulator, before)
    plan = planned(tmp_path, emulator, system, *pairs)
    assert verified(plan, "--export", tmp_path / "history.ndjson") == (3, list(status_before))
    with emulator.serve() as server:
        assert run("apply", plan, "--yes", host=server.url).status == 0
        assert verified(plan, host=server.url) == (0, list(status_after))
        result = run("verify", plan, *FIRST_DAY, host=server.url)
    assert f"{len(pairs)} pairs of the plan:" in result.output
    after = write_export(emulator, tmp_path / "after.ndjson")
    assert verified(plan, "--export", after) == (0, list(status_after))


def test_commands_say_which_days_show_the_joins(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    import_events(emulator, [viewed(-200 * DAY, distinct_id="u1"), viewed(-90 * DAY, distinct_id="u1")])
    import_events(emulator, [viewed(-100 * DAY, distinct_id=A1), viewed(-101 * DAY, distinct_id=A1)])
    plan = planned(tmp_path, emulator, "original", f"identify,u1,{A1}")
    first = datetime.fromtimestamp(NOW - 100 - 101 * DAY, timezone.utc).date()
    with emulator.serve() as server:
        applied = run("apply", plan, "--yes", host=server.url)
        assert f"identity verify {plan} --from-date {first}\n" in applied.output
        unproven = run("verify", plan, *FIRST_DAY, host=server.url)
        assert "Not proven yet: 1 accepted pair." in unproven.output
        assert f"use --from-date {first}." in unproven.output
    after = run("verify", plan, "--export", write_export(emulator, tmp_path / "after.ndjson"))
    assert ("1 joined" in after.output, "Not proven" in after.output) == (True, False)


def test_days_are_not_named_if_an_id_has_no_event(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    import_events(emulator, [viewed(-90 * DAY, distinct_id="u1")])
    plan = planned(tmp_path, emulator, "original", f"identify,u1,{A1}")
    with emulator.serve() as server:
        assert run("apply", plan, "--yes", host=server.url).output.endswith(f"identity verify {plan}\n")
        result = run("verify", plan, *FIRST_DAY, host=server.url)
    assert "use --from-date and a day when both ids had events." in result.output


def test_legacy_alias_is_joined_by_later_events(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.LEGACY)
    import_events(emulator, [viewed(1, distinct_id=A1)])
    plan = planned(tmp_path, emulator, "legacy", f"alias,{A1},u1")
    with emulator.serve() as server:
        assert run("apply", plan, "--yes", host=server.url).status == 0
        import_events(emulator, [viewed(2, distinct_id="u1")])
        assert verified(plan, host=server.url) == (0, ["joined"])


def test_call_that_mixpanel_refused_is_reported_with_the_reason(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    plan = planned(tmp_path, emulator, "original", f"identify,u1,{A1}")
    # Another user identifies the visitor between the plan and its end.
    import_events(emulator, [{"event": "$identify", "properties": {"$identified_id": "u2", "$anon_id": A1}}])
    with emulator.serve() as server:
        assert run("apply", plan, "--yes", host=server.url).status == 0
        result = run("verify", plan, *FIRST_DAY, host=server.url)
    assert result.status == 3
    assert "pairs.csv:2: refused: errAnonDistinctIdAssignedAlready" in result.output


def test_device_of_another_user_is_reported(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    import_events(emulator, [viewed(1, dollar_device_id="d1")])
    plan = planned(tmp_path, emulator, "simplified", "identify,u1,d1")
    import_events(emulator, [viewed(2, dollar_device_id="d1", dollar_user_id="u2")])
    with emulator.serve() as server:
        assert run("apply", plan, "--yes", host=server.url).status == 0
        result = run("verify", plan, host=server.url)
    assert result.status == 3
    assert "refused: the device belongs to another user" in result.output


def test_delay_of_reports_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [float(NOW)]
    emulator = Emulator(IdMerge.ORIGINAL, propagation_delay=600.0, now=lambda: now[0])
    import_events(emulator, [viewed(1, distinct_id="u1"), viewed(2, distinct_id=A1)])
    plan = planned(tmp_path, emulator, "original", f"merge,u1,{A1}")
    with emulator.serve() as server:
        assert run("apply", plan, "--yes", host=server.url).status == 0
        assert verified(plan, host=server.url) == (3, ["pending"])

    def read(comparison: ReadBack) -> None:
        lines = write_export(emulator, tmp_path / "after.ndjson").read_bytes().splitlines()
        for line in lines:
            comparison.add(orjson.loads(line))

    def findings(seconds: float) -> list[str]:
        stored = read_plan(plan).plan
        found = verify_until(stored, read, seconds=seconds, clock=lambda: now[0], sleep=advance)
        return [one.status.value for one in found]

    def advance(seconds: float) -> None:
        now[0] += seconds

    assert findings(300.0) == ["pending"]
    assert now[0] == NOW + 300.0
    assert findings(3_600.0) == ["joined"]
    assert NOW + 600.0 <= now[0] <= NOW + 800.0
    assert "1 pair not joined yet, reading again in 180 s" in capsys.readouterr().err


def test_pairs_that_were_joined_before_need_no_event(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    import_events(emulator, [{"event": "$identify", "properties": {"$identified_id": "u1", "$anon_id": A1}}])
    plan = planned(tmp_path, emulator, "original", f"identify,u1,{A1}", f"merge,u1,{A2}")
    assert len(PlanText(plan).calls) == 1
    (tmp_path / "empty.ndjson").write_text("\n")
    assert verified(plan, "--export", tmp_path / "empty.ndjson") == (3, ["unknown", "accepted"])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "was not applied here; name the first day to read with --from-date"),
        (["--from-date", "1.2.2026"], 2, "--from-date must be a date such as 2026-11-30, not '1.2.2026'"),
        (["--from-date", "2026-01-02", "--to-date", "2026-01-01"], 2, "--to-date must not be before 2026-01-02"),
        (["--export", "x", "--wait", "1"], 2, "--export reads files once"),
        (["--export", "missing.ndjson"], 2, "cannot read missing.ndjson"),
        (["--from-date", "2026-01-01"], 1, "the export was refused with HTTP 401: check the credentials"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    plan = planned(tmp_path, Emulator(IdMerge.ORIGINAL), "original", f"merge,u1,{A1}")
    with Emulator(IdMerge.ORIGINAL, secret="s").serve() as server:
        result = run("verify", plan, *arguments, host=server.url)
    assert (result.status, message in result.errors) == (status, True), result


def test_profiles_of_people_are_read(tmp_path: Path) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    records = [
        {"$distinct_id": "u1", "$set": {"$email": "ann@example.com"}},
        {"$distinct_id": A1, "$set": {"$email": "a@example.com"}},
        {"$distinct_id": "u3", "$set": {"$email": "c@example.com"}},
    ]
    (tmp_path / "pairs.csv").write_text(f"u1,{A1}\n")
    people = write_lines(tmp_path / "people.ndjson", records)
    with emulator.serve() as server:
        assert run_import(people, "--kind", "people", "--no-checkpoint", host=server.url).status == 0
        result = run(
            "plan", tmp_path / "pairs.csv", "--without-history", "--id-merge", "original", "--read-profiles",
            host=server.url,
        )  # fmt: skip
    assert result.status == 0, result
    assert PlanText(tmp_path / "pairs.csv.plan").findings == [
        f'conflict "u1" "$email": "{A1}"="a@example.com" "u1"="ann@example.com"'
    ]
