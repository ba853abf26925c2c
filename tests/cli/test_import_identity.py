"""Identity events in files of `mixpanel-async import`: `$identify`, `$create_alias` and `$merge`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from import_command import NOW, read_rejects, run, write

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

MONTHS_AGO = NOW - 90 * 86_400


def anon(number: int) -> str:
    return str(UUID(int=number + (4 << 76) + (8 << 60), version=4))


@contextmanager
def project(id_merge: IdMerge) -> Iterator[Any]:
    emulator = Emulator(id_merge)
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(scope="module")
def original() -> Iterator[Any]:
    with project(IdMerge.ORIGINAL) as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(original: Any) -> None:
    original.reset()


def record(event: str, number: int = 0, /, **properties: Any) -> dict[str, Any]:
    stamps = {"time": MONTHS_AGO + number, "$insert_id": f"id-{number}"}
    return {"event": event, "properties": {**stamps, **properties}}


# Name, properties in the file, properties that are added, and the ids that are joined.
FORMS = [
    ("$identify", {"$identified_id": "u", "$anon_id": anon(1)}, {"distinct_id": "u"}, {"u", anon(1)}),
    ("$identify", {"distinct_id": "x", "$identified_id": "u", "$anon_id": anon(1)}, {}, {"u", anon(1)}),
    (
        "$identify",
        {"distinct_id": "u", "$anon_distinct_id": f"$device:{anon(1)}", "$device_id": anon(1), "$user_id": "u"},
        {"$identified_id": "u", "$anon_id": f"$device:{anon(1)}"},
        {"u", f"$device:{anon(1)}"},
    ),
    # Mixpanel may have replaced the id of an exported event by another one of the same person.
    (
        "$identify",
        {"distinct_id": anon(1), "$distinct_id_before_identity": "u", "$anon_distinct_id": anon(1)},
        {"$identified_id": "u", "$anon_id": anon(1)},
        {"u", anon(1)},
    ),
    ("$create_alias", {"distinct_id": "u", "alias": "new"}, {}, {"u", "new"}),
    (
        "$create_alias",
        {"distinct_id": "new", "$distinct_id_before_identity": "u", "alias": "new"},
        {"distinct_id": "u"},
        {"u", "new"},
    ),
    ("$merge", {"$distinct_ids": ["u", "v"]}, {"distinct_id": ""}, {"u", "v"}),
    ("$merge", {"distinct_id": "u", "$distinct_ids": ["u", "v"], "plan": {"a": [1, 2]}}, {}, {"u", "v"}),
    ("$merge", {"$distinct_ids": [17, "v"]}, {"distinct_id": "", "$distinct_ids": ["17", "v"]}, {"17", "v"}),
]  # fmt: skip


@pytest.mark.parametrize("form", ["nested", "flat"])
@pytest.mark.parametrize(("name", "given", "added", "joined"), FORMS)
def test_identity_event_is_imported_with_its_properties(
    name: str, given: dict[str, Any], added: dict[str, Any], joined: set[str], form: str, tmp_path: Path, original: Any
) -> None:
    one = record(name, **given, **{"$os": "Linux", "mp_lib": "web"})
    path = write(tmp_path / "a.ndjson", [one if form == "nested" else {"event": name, **one["properties"]}])
    assert run(path, "--dry-run").output == "1 event valid, 0 rejected\n"
    result = run(path, host=original.url)
    assert (result.status, result.output) == (0, "1 event imported, 0 rejected\n"), result
    assert joined in original.clusters()
    (stored,) = original.raw_events()
    expected = {**one["properties"], **added, "time": MONTHS_AGO * 1000}
    assert {key: value for key, value in stored["properties"].items() if key in expected} == expected
    assert {request.path for request in original.requests()} == {"/import"}


@pytest.mark.parametrize(
    ("name", "given", "field", "problem"),
    [
        ("$identify", {"distinct_id": "u"}, "properties.$identified_id", "is missing"),
        ("$identify", {"$identified_id": "u"}, "properties.$anon_id", "is missing"),
        ("$identify", {"distinct_id": "u", "$anon_distinct_id": ""}, "properties.$anon_distinct_id", "not be blank"),
        ("$identify", {"$anon_distinct_id": "a"}, "distinct_id", "is missing"),
        ("$create_alias", {"distinct_id": "u"}, "properties.alias", "is missing"),
        ("$create_alias", {"alias": "u"}, "distinct_id", "must be a string"),
        ("$create_alias", {"distinct_id": "u", "alias": [1]}, "properties.alias", "must be a string"),
        ("$merge", {"distinct_id": "u"}, "properties.$distinct_ids", "must be a list of two ids"),
        ("$merge", {"$distinct_ids": ["u"]}, "properties.$distinct_ids", "must be a list of two ids"),
        ("$merge", {"$distinct_ids": ["u", None]}, "properties.$distinct_ids", "is missing"),
        (["$merge"], {"distinct_id": "u"}, "event", "must be a string"),
    ],
)
def test_identity_event_without_its_ids_is_rejected(
    name: Any, given: dict[str, Any], field: str, problem: str, tmp_path: Path, original: Any
) -> None:
    path = write(tmp_path / "a.ndjson", [record(name, **given), record("e", distinct_id="u")])
    assert run(path, host=original.url).output.splitlines()[0] == "1 event imported, 1 rejected"
    (entry,) = read_rejects(path)
    assert (entry["line"], entry["field"]) == (1, field)
    assert problem in entry["message"]


def test_merges_without_time_are_imported_once(tmp_path: Path, original: Any) -> None:
    merges = [{"event": "$merge", "properties": {"$distinct_ids": ["u", f"v{number}"]}} for number in range(3)]
    path = write(tmp_path / "a.ndjson", merges)
    for _ in range(2):
        assert run(path, "--restart", host=original.url).status == 0
    assert original.cluster("u") == {"u", "v0", "v1", "v2"}
    assert len({one["properties"]["$insert_id"] for one in original.raw_events()}) == 3


def test_identity_events_of_a_table_are_imported(tmp_path: Path, original: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "what,user,when,anon,ids,other\n"
        f"$identify,17,{MONTHS_AGO},{anon(1)},,\n"
        f'$merge,,{MONTHS_AGO},,"[""17"", ""18""]",\n'
        f"$create_alias,18,{MONTHS_AGO},,,19\n"
    )
    mappings = (
        "event=what",
        "distinct_id=user",
        "time=when",
        "$anon_distinct_id=anon",
        "$distinct_ids=ids",
        "alias=other",
    )
    options = [word for mapping in mappings for word in ("--map", mapping)]
    assert run(path, *options, "--type", "ids=json", host=original.url).status == 0
    assert original.cluster("17") == {"17", anon(1), "18", "19"}


@pytest.mark.parametrize("fault", ["slow", "status"])
def test_identity_events_take_effect_in_the_order_of_the_file(fault: str, tmp_path: Path, original: Any) -> None:
    # The second claim on each anonymous id is refused, so another order would give other people.
    records: list[dict[str, Any]] = []
    for user in ("first", "second"):
        for number in range(20):
            ids = {"$identified_id": f"{user}{number}", "$anon_id": anon(number)}
            records.append(record("$identify", len(records), **ids))
            records += [record("e", len(records) + more, distinct_id=f"{user}{number}") for more in range(104)]
    path = write(tmp_path / "a.ndjson", records)
    delay_second_request(original, fault)
    result = run(path, host=original.url)
    assert (result.status, result.output) == (0, "4,200 events imported, 0 rejected\n"), result
    for number in range(20):
        assert original.cluster(anon(number)) == {f"first{number}", anon(number)}
    times = [one["properties"]["time"] for one in original.identity_log()]
    assert times == sorted(times)


def test_alias_applies_to_the_events_after_it_in_a_legacy_project(tmp_path: Path) -> None:
    records = [record("e", number, distinct_id="device") for number in range(600)]
    records.append(record("$create_alias", 600, distinct_id="device", alias="user"))
    records += [record("e", number, distinct_id="user") for number in range(601, 4_300)]
    path = write(tmp_path / "a.ndjson", records)
    with project(IdMerge.LEGACY) as emulator:
        delay_second_request(emulator, "slow")
        assert run(path, host=emulator.url).status == 0
        assert {event["properties"]["distinct_id"] for event in emulator.events()} == {"device"}


def delay_second_request(emulator: Any, fault: str) -> None:
    """Let later requests overtake the second one. The first one is sent alone, to check the credentials."""
    emulator.break_next("slow", seconds=0, before=True)
    emulator.break_next(fault, seconds=0.5, before=fault == "slow")


def test_project_that_refuses_identity_events_gets_the_others(tmp_path: Path) -> None:
    records = [record("e", number, distinct_id="u") for number in range(50)]
    records.insert(20, record("$identify", 50, **{"$identified_id": "u", "$anon_id": anon(1)}))
    path = write(tmp_path / "a.ndjson", records)
    with project(IdMerge.SIMPLIFIED) as emulator:
        result = run(path, host=emulator.url)
        assert (result.status, result.output.splitlines()[0]) == (3, "50 events imported, 1 rejected"), result
        (entry,) = read_rejects(path)
        assert entry["line"] == 21
        assert "simplified identity management" in entry["message"]
        assert entry["record"]["properties"]["$anon_id"] == anon(1)
        assert len(emulator.events()) == 50
