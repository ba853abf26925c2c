"""Numeric times in project time, as in raw exports of older projects: `--project-timezone`, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_command import finish, read_checkpoint, run, start, write

from mixpanel_async.cli.importing.project_time import ObservedClock, OffsetEvidence, ZoneClock
from mixpanel_async.emulator import Emulator

UTC = timezone.utc
TOKYO = ZoneInfo("Asia/Tokyo")
LONDON = ZoneInfo("Europe/London")
ARRIVAL = "$mp_api_timestamp_ms"
DAY = timedelta(days=1)
JUNE = datetime(2022, 6, 1, tzinfo=UTC)

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def emulator() -> Any:
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


def exported(moment: datetime, zone: Any, *, late: float = 2.5, arrival: bool = True, **more: Any) -> dict[str, Any]:
    """Return an event as a raw export has it: the local time as if it were UTC, and the true time of arrival."""
    local = moment.astimezone(zone).replace(tzinfo=UTC)
    properties = {
        "distinct_id": "u",
        "time": int(local.timestamp()),
        # The true time in milliseconds, to compare with what is imported.
        "true": int(moment.timestamp()) * 1000,
        **({ARRIVAL: int((moment.timestamp() + late) * 1000)} if arrival else {}),
        **more,
    }
    return {"event": "e", "properties": properties}


def moments(start: datetime, count: int, step: timedelta) -> Iterable[datetime]:
    return (start + number * step for number in range(count))


def real_export(zone: Any, count: int = 300) -> list[dict[str, Any]]:
    """Return an export with late, backfilled and offline events, and events without the time of arrival."""
    chance = random.Random(7)
    records = [exported(moment, zone, late=chance.uniform(-20, 70)) for moment in moments(JUNE, count, DAY / 50)]
    for moment in moments(JUNE, count // 5, DAY / 10):
        records += [
            exported(moment, zone, late=chance.expovariate(1 / 900)),
            exported(moment, zone, late=chance.uniform(0, 14 * 3600)),
            exported(moment, zone, late=5 * 86_400),
            exported(moment, zone, late=36_000, **{"$import": True}),
            exported(moment, zone, arrival=False),
        ]
    chance.shuffle(records)
    return records


def assert_true_times(emulator: Any, count: int) -> None:
    events = emulator.raw_events()
    assert len(events) == count
    assert [one["properties"]["time"] for one in events] == [one["properties"]["true"] for one in events]


ZONES = ["Asia/Tokyo", "America/Los_Angeles", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", "+05:30"]


def zone_of(name: str) -> Any:
    return timezone(timedelta(hours=5, minutes=30)) if name.startswith("+") else ZoneInfo(name)


@pytest.mark.parametrize("name", ZONES)
def test_project_time_is_refused_until_the_zone_is_named(name: str, tmp_path: Path, emulator: Any) -> None:
    zone = zone_of(name)
    path = write(tmp_path / "export.ndjson", real_export(zone))
    offset = JUNE.astimezone(zone).strftime("%z")
    for options in ([], ["--dry-run"]):
        refused = run(path, *options, host=emulator.url)
        assert (refused.status, refused.output, refused.errors.count("\n")) == (2, "", 1), refused
        assert f"{ARRIVAL}, which is in UTC: by {offset[:3]}:{offset[3:]} in " in refused.errors
        assert " records" in refused.errors
        assert "--project-timezone" in refused.errors
    assert emulator.requests() == []
    assert [one.name for one in tmp_path.iterdir()] == ["export.ndjson"]
    for value in (name, "auto"):
        emulator.reset()
        result = run(path, "--project-timezone", value, "--restart", host=emulator.url)
        assert (result.status, result.output) == (0, "600 events imported, 0 rejected\n"), result
        assert_true_times(emulator, 600)


@pytest.mark.parametrize("zone", [UTC, ZoneInfo("Atlantic/Reykjavik")], ids=str)
def test_times_in_utc_need_no_option(zone: Any, tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "export.ndjson", real_export(zone))
    result = run(path, host=emulator.url)
    assert (result.status, result.output, result.errors) == (0, "600 events imported, 0 rejected\n", "")
    assert_true_times(emulator, 600)


@pytest.mark.parametrize(
    "late",
    [
        lambda chance: chance.expovariate(1 / 900),
        lambda chance: chance.expovariate(1 / 7_200),
        lambda chance: chance.uniform(0, 86_400),
        lambda chance: chance.choice([1.0, chance.uniform(3_000, 30_000)]),
    ],
)
def test_late_events_do_not_look_like_project_time(late: Callable[[random.Random], float]) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        evidence = OffsetEvidence()
        for moment in moments(JUNE, 2_000, DAY / 200):
            evidence.add(int(moment.timestamp()), (moment.timestamp() + late(chance)) * 1000)
        assert not any(evidence.offsets()), evidence.describe()


def test_part_of_a_file_in_project_time_is_noticed(tmp_path: Path) -> None:
    of_utc = [exported(moment, UTC) for moment in moments(JUNE, 3_000, DAY / 100)]
    of_tokyo = [exported(moment, TOKYO) for moment in moments(JUNE + 90 * DAY, 60, DAY / 60)]
    path = write(tmp_path / "mixed.ndjson", [*of_utc, *of_tokyo])
    result = run(path, "--dry-run")
    assert result.status == 2
    assert "by +00:00 in 3,000 and +09:00 in 60 of 3,060 records" in result.errors


def test_change_to_daylight_saving_time_inside_a_file(tmp_path: Path, emulator: Any) -> None:
    # In winter, the times of London agree with UTC.
    spring = [exported(moment, LONDON) for moment in moments(datetime(2022, 1, 1, tzinfo=UTC), 2_200, DAY / 25)]
    autumn = [exported(moment, LONDON) for moment in moments(datetime(2022, 10, 29, tzinfo=UTC), 96, DAY / 48)]
    path = write(tmp_path / "export.ndjson", [*spring, *autumn])
    refused = run(path, "--dry-run")
    assert refused.status == 2
    assert "+00:00 in " in refused.errors
    assert "+01:00 in " in refused.errors
    for value in ("Europe/London", "auto"):
        emulator.reset()
        # Also the hour that occurs twice is right, because of the time of arrival.
        assert run(path, "--project-timezone", value, "--restart", host=emulator.url).status == 0
        assert_true_times(emulator, 2_296)


@pytest.mark.parametrize(
    ("zone", "offset"), [("Europe/Vienna", "by +07:00"), ("Asia/Kolkata", "by +03:30"), ("Pacific/Auckland", "-03:00")]
)
def test_wrong_zone_is_refused(zone: str, offset: str, tmp_path: Path) -> None:
    path = write(tmp_path / "export.ndjson", real_export(TOKYO))
    result = run(path, "--dry-run", "--project-timezone", zone)
    assert result.status == 2
    assert f"converted with --project-timezone {zone} still differ" in result.errors
    assert offset in result.errors


def test_events_that_arrived_a_whole_hour_late_can_be_imported(tmp_path: Path, emulator: Any) -> None:
    records = [exported(moment, TOKYO, late=3_605) for moment in moments(JUNE, 50, DAY / 50)]
    path = write(tmp_path / "export.ndjson", records)
    zone = ("--project-timezone", "Asia/Tokyo")
    refused = run(path, *zone, host=emulator.url)
    assert (refused.status, emulator.raw_events()) == (2, [])
    assert "by -01:00 in 50 of 50 records. Set --project-timezone" in refused.errors
    assert f"if the events arrived that late, use --drop '{ARRIVAL}'" in refused.errors
    assert run(path, *zone, "--drop", ARRIVAL, host=emulator.url).status == 0
    assert_true_times(emulator, 50)


def test_utc_and_a_dropped_column_import_numbers_as_they_are(tmp_path: Path, emulator: Any) -> None:
    records = real_export(TOKYO)
    path = write(tmp_path / "export.ndjson", records)
    for options in (["--project-timezone", "UTC"], ["--drop", ARRIVAL]):
        emulator.reset()
        assert run(path, *options, "--restart", host=emulator.url).status == 0
        times = sorted(one["properties"]["time"] // 1000 for one in emulator.raw_events())
        assert times == sorted(one["properties"]["time"] for one in records)


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("form", ["flat", "csv"])
def test_other_forms_and_units_are_converted(form: str, scale: int, tmp_path: Path, emulator: Any) -> None:
    rows = [
        {"event": "e", **one["properties"], "time": one["properties"]["time"] * scale} for one in real_export(TOKYO, 50)
    ]
    path = tmp_path / f"a.{form}"
    if form == "flat":
        write(path, rows)
    else:
        names = ["event", "distinct_id", "time", "true", ARRIVAL, "$import"]
        path.write_text("\n".join([",".join(names), *(",".join(str(row.get(n, "")) for n in names) for row in rows)]))
    options = ["--type", "true=number"] if form == "csv" else []
    assert "by +09:00" in run(path, *options, host=emulator.url).errors
    assert run(path, *options, "--project-timezone", "Asia/Tokyo", host=emulator.url).status == 0
    assert_true_times(emulator, 100)


def test_small_file_is_compared_too(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [exported(JUNE, TOKYO)])
    assert "by +09:00 in 1 of 1 record." in run(path, host=emulator.url).errors
    # A late event alone says nothing.
    write(path, [exported(JUNE, UTC, late=5_000)])
    assert run(path, host=emulator.url).status == 0


def test_stream_is_refused_before_its_records_are_sent(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", real_export(TOKYO))
    results = []
    for options in (["--state-dir", tmp_path], ["--dry-run"], ["--project-timezone", "auto"]):
        with path.open("rb") as file:
            results.append(finish(start("-", *options, host=emulator.url, stdin=file)))
    sent, dry, auto = results
    assert (sent.status, dry.status, auto.status) == (1, 1, 2)
    assert "by +09:00 in " in sent.output
    assert "by +09:00 in " in dry.output
    assert "- can be read only once, so --project-timezone auto cannot be used" in auto.errors
    assert emulator.raw_events() == []
    with path.open("rb") as file:
        zone = ["--project-timezone", "Asia/Tokyo", "--state-dir", tmp_path]
        assert finish(start("-", *zone, host=emulator.url, stdin=file)).status == 0
    assert_true_times(emulator, 600)


def test_auto_needs_times_of_arrival(tmp_path: Path) -> None:
    records = [exported(moment, TOKYO, arrival=False) for moment in moments(JUNE, 20, DAY)]
    path = write(tmp_path / "a.ndjson", records)
    result = run(path, "--dry-run", "--project-timezone", "auto")
    assert result.status == 2
    assert "found no offset" in result.errors
    assert "name the project's time zone instead" in result.errors


def test_checkpoint_holds_for_one_project_time_zone(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [exported(JUNE, TOKYO, arrival=False)])
    assert run(path, "--project-timezone", "Asia/Tokyo", host=emulator.url).status == 0
    for options in ([], ["--project-timezone", "Asia/Seoul"]):
        refused = run(path, *options, host=emulator.url)
        assert refused.status == 2
        assert "with different options: --project-timezone" in refused.errors
    # A checkpoint of an earlier version, which has no such option, can be resumed.
    assert run(path, "--restart", host=emulator.url).status == 0
    assert "project-timezone" not in read_checkpoint(path)["options"]


@pytest.mark.parametrize(
    ("times", "option", "problem"),
    [
        ([1_654_000_000, 1_654_000_000.5], "--timezone", "for numbers in project time, use --project-timezone"),
        (["2022-06-01T00:00:00Z", "1654000000"], "--timezone", "--timezone Asia/Tokyo has no effect"),
        (["2022-06-01T00:00:00Z", "2022-06-01T00:00:00+02:00"], "--project-timezone", "no time is a number"),
    ],
)
def test_option_that_applies_to_no_time_is_refused(
    times: list[object], option: str, problem: str, tmp_path: Path, emulator: Any
) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "e", "distinct_id": "u", "time": time} for time in times])
    for extra in ([], ["--dry-run"]):
        result = run(path, option, "Asia/Tokyo", *extra, host=emulator.url)
        assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1), result
        assert problem in result.errors
    assert emulator.requests() == []
    if option == "--timezone":
        with path.open("rb") as file:
            streamed = finish(start("-", "--dry-run", option, "Asia/Tokyo", stdin=file))
        assert streamed.status == 0
        assert problem in streamed.output


def test_timezone_that_applies_to_one_time_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "e", "distinct_id": "u", "time": 1_654_000_000}] * 3_000)
    other = write(tmp_path / "b.ndjson", [{"event": "e", "distinct_id": "u", "time": "2022-06-01 12:00"}])
    assert run(path, other, "--timezone", "Asia/Tokyo", "--dry-run").status == 0
    people = write(tmp_path / "p.ndjson", [{"$distinct_id": "u", "$set": {}, "$time": 1_654_000_000}])
    assert run(people, "--kind", "people", "--timezone", "Asia/Tokyo", "--dry-run").status == 2
    refused = run(people, "--kind", "people", "--project-timezone", "Asia/Tokyo", "--dry-run")
    assert "--project-timezone applies to events only" in refused.errors


# The conversion itself.


def local_seconds(moment: datetime, zone: ZoneInfo) -> float:
    return moment.astimezone(zone).replace(tzinfo=UTC).timestamp()


@given(
    st.datetimes(datetime(1971, 1, 2), datetime(2030, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"]),
    st.sampled_from([1, 1000]),
)
def test_each_time_is_converted_back_with_its_arrival(moment: datetime, name: str, scale: int) -> None:
    moment, zone = moment.replace(microsecond=0), ZoneInfo(name)
    local = int(local_seconds(moment, zone))
    if local < 100_000_000_000 / 1000:
        scale = 1
    converted = ZoneClock(zone).to_utc(local * scale, moment.timestamp() * 1000 + 900, "")
    assert converted == int(moment.timestamp()) * scale
    assert type(converted) is int


def test_hours_that_occur_twice_or_never() -> None:
    clock = ZoneClock(ZoneInfo("Europe/Vienna"))
    twice = datetime(2022, 10, 30, 2, 30, tzinfo=UTC).timestamp()
    first, second = (datetime(2022, 10, 30, hour, 30, tzinfo=UTC).timestamp() for hour in (0, 1))
    # Without an arrival that fits, it is the first of the two.
    assert clock.to_utc(twice, None, "") == first
    assert clock.to_utc(twice, (first + 9_000) * 1000, "") == first
    assert clock.to_utc(twice, (first + 5) * 1000, "") == first
    assert clock.to_utc(twice, (second + 5) * 1000, "") == second
    # 2:30 does not occur on this day: it is 3:30 in summer time.
    never = datetime(2022, 3, 27, 2, 30, tzinfo=UTC).timestamp()
    assert clock.to_utc(never, None, "") == datetime(2022, 3, 27, 1, 30, tzinfo=UTC).timestamp()
    # What is out of range is left to the client, which rejects it.
    assert clock.to_utc(9e17, None, "") == 9e17


def test_auto_uses_the_offset_of_the_hour_for_records_without_arrival() -> None:
    evidence = OffsetEvidence()
    for moment in moments(datetime(2022, 3, 20, tzinfo=UTC), 24 * 14, DAY / 24):
        evidence.add(local_seconds(moment, LONDON), moment.timestamp() * 1000)
    clock = ObservedClock({"id": evidence})
    for moment in (
        datetime(2021, 12, 1, tzinfo=UTC),
        datetime(2022, 3, 26, 23, 40, tzinfo=UTC),
        datetime(2022, 3, 27, 1, 20, tzinfo=UTC),
        datetime(2022, 8, 1, tzinfo=UTC),
    ):
        for late in (None, 40_000):
            arrival = None if late is None else (moment.timestamp() + late) * 1000
            assert clock.to_utc(local_seconds(moment, LONDON), arrival, "id") == moment.timestamp()
    assert orjson.loads(orjson.dumps(evidence.offsets(), option=orjson.OPT_NON_STR_KEYS)) == {"0": 169, "3600": 167}
