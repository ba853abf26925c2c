"""Inspection and repair through `SqliteSpool`, with live and with ended clients."""

from __future__ import annotations

import io
import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import AsyncMixpanel, BatchPolicy, ConfigurationError, DropReason, SpoolError, SqliteSpool
from mixpanel_async._spool.database import DeadLetter, lane_start, open_database
from mixpanel_async._spool.messages import ONCE, REPEATABLE, SENDING
from mixpanel_async.emulator import Emulator

NO_SHUTDOWN_WAIT: dict[str, Any] = {"shutdown_timeout": 0.0}
LINGERING = BatchPolicy(linger=3600.0)


def event(person: str, name: str = "E", **properties: object) -> bytes:
    message = {"event": name, "properties": {"token": "tok", "distinct_id": person, "time": 1_700_000_000_000}}
    message["properties"].update(properties)  # type: ignore[attr-defined]
    return orjson.dumps(message).replace(b'"tok"', b"\x01")


def update(person: str, operation: str = "$set") -> bytes:
    return orjson.dumps({"$token": "tok", "$distinct_id": person, operation: {"a": 1}}).replace(b'"tok"', b"\x01")


def make(
    path: Path,
    waiting: list[tuple[int, int, bytes]] = [],  # noqa: B006
    dead: list[tuple[str, bytes]] = [],  # noqa: B006
    *,
    project: bytes = b"p" * 16,
    died: float = 1_700_000_000.0,
) -> None:
    """Create the spool of an ended client: lane, state and body of waiting rows; reason and body of dead letters."""
    db = open_database(path, max_bytes=10**9, timeout=5.0, fsync=False)
    with db.transaction():
        owner = db.add_owner(project, 1_600_000_000.0)
        rows = [(lane_start(owner, lane) + at, state, body) for at, (lane, state, body) in enumerate(waiting, start=1)]
        db.insert(sorted(rows))
        letters = [
            DeadLetter(
                lane=0 if b"event" in body else 2,
                state=ONCE if b"$add" in body else REPEATABLE,
                reason=reason,
                message="no",
                body=body,
            )
            for reason, body in dead
        ]
        db.add_dead_letters(project, letters, died, 10_000)
    db.close()


def bytes_of(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in path.parent.iterdir() if one.name.startswith(path.name))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(25):
        while not condition():  # noqa: ASYNC110  a file changes without an event
            await anyio.sleep(0.01)


def test_status_counts_records_of_an_ended_client(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    make(
        path,
        [(0, REPEATABLE, event("a")), (0, REPEATABLE, event("b")), (2, SENDING, update("a", "$add"))],
        [("rejected", event("a")), ("uncertain", update("a", "$add"))],
    )
    found = SqliteSpool(path).status()
    assert {kind: count.records for kind, count in found.waiting.items()} == {"events": 2, "people": 1}
    assert found.waiting["events"].bytes == len(event("a")) + len(event("b"))
    assert found.waiting["events"].oldest == 1_700_000_000.0
    assert found.waiting["people"].oldest == 1_600_000_000.0
    assert {reason: (count.records, count.oldest) for reason, count in found.dead.items()} == {
        "rejected": (1, 1_700_000_000.0),
        "uncertain": (1, 1_700_000_000.0),
    }
    assert (found.held, found.is_in_use, found.sending, found.projects) == ({}, False, 1, 1)
    assert (found.integrity, found.schema, found.set_aside) == ("ok", 1, ())
    assert found.file_bytes == path.stat().st_size >= found.used_bytes
    assert SqliteSpool(path).status(check=False).integrity == "not checked"


@pytest.mark.anyio
async def test_status_distinguishes_live_and_ended_clients(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    emulator = Emulator()
    emulator.fail_next(status=503, times=1_000)
    async with emulator.client(spool=spool, batching=LINGERING, **NO_SHUTDOWN_WAIT) as mp:
        for number in range(3):
            await mp.track("user", "Event", {"number": number})
        alive = spool.status()
        assert alive.held["events"].records == alive.waiting["events"].records == 3
        assert alive.is_in_use
    dead = spool.status()
    assert (dead.waiting["events"].records, dead.held, dead.is_in_use) == (3, {}, False)


@pytest.mark.anyio
@pytest.mark.parametrize("is_running", [True, False])
async def test_retried_record_is_sent_with_the_same_insert_id(
    is_running: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixpanel_async._spool.writer._MAINTENANCE_INTERVAL", 0.05)
    spool = SqliteSpool(tmp_path / "s.db")
    emulator = Emulator()
    emulator.fail_next(status=400, times=1, path="/track")
    async with emulator.client(spool=spool) as mp:
        await mp.track("user", "Event", insert_id="id-1")
        await mp.flush()
        await until(lambda: [*spool.status().dead] == ["rejected"])
        if is_running:
            assert spool.retry() == 1
            await until(lambda: mp.stats().recovered == 1)
            await mp.flush()
    if not is_running:
        assert spool.retry(reasons=[DropReason.REJECTED]) == 1
        async with emulator.client(spool=spool) as mp:
            await until(lambda: mp.stats().delivered == 1)
            assert mp.stats().recovered == 1
    assert [one["properties"]["$insert_id"] for one in emulator.events("Event")] == ["id-1"]
    assert (spool.status().waiting, spool.status().dead) == ({}, {})
    assert spool.retry() == 0


def test_uncertain_records_are_retried_only_if_selected(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, dead=[("uncertain", update("a", "$add")), ("exhausted", event("a"))])
    assert spool.retry() == 1
    assert [*spool.status().dead] == ["uncertain"]
    assert spool.retry(reasons=["uncertain"]) == 1
    assert [(one.kind, one.is_once_only) for one in spool.records()] == [("events", False), ("people", True)]


def test_retry_by_id_keeps_records_in_their_projects(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, dead=[("rejected", event(f"a{number}")) for number in range(3)])
    make(spool.file, dead=[("rejected", event("other"))], project=b"q" * 16)
    one, *_, last = spool.dead_letters()
    assert spool.retry(ids=[one.id, last.id, 99]) == 2
    assert [letter.payload["properties"]["distinct_id"] for letter in spool.dead_letters() if letter.payload] == [
        "a1",
        "a2",
    ]
    with sqlite3.connect(f"{spool.file.as_uri()}?mode=ro", uri=True) as db:
        owners = dict(db.execute("SELECT id, project FROM owners").fetchall())
        bodies = db.execute("SELECT id, body FROM records").fetchall()
    db.close()
    assert {(owners[number >> 39], b"other" in body) for number, body in bodies} == {
        (b"p" * 16, False),
        (b"q" * 16, True),
    }


letters = st.lists(st.tuples(st.sampled_from([reason.value for reason in DropReason]), st.integers(0, 3)), max_size=12)
steps = st.lists(
    st.tuples(
        st.sampled_from(["retry", "purge"]),
        st.none() | st.lists(st.sampled_from([*DropReason]), min_size=1, max_size=3),
    ),
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(letters=letters, steps=steps)
def test_every_record_is_dead_or_waiting_or_purged(
    letters: list[tuple[str, int]], steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool = SqliteSpool(tmp_path_factory.mktemp("model") / "s.db")
    make(spool.file, dead=[(reason, event(f"user-{person}", number=at)) for at, (reason, person) in enumerate(letters)])
    dead = Counter(reason for reason, _ in letters)
    waiting = 0
    for step, reasons in steps:
        if step == "retry":
            chosen = {one for one in dead if one != "uncertain"} if reasons is None else {*reasons}
            moved = sum(dead.pop(reason, 0) for reason in {str(DropReason(one).value) for one in chosen})
            assert spool.retry(reasons=reasons) == moved
            waiting += moved
        else:
            gone = sum(dead.pop(reason.value, 0) for reason in {*(DropReason if reasons is None else reasons)})
            assert spool.purge(dead=True, reasons=reasons).dead == gone
    found = spool.status()
    assert {reason: count.records for reason, count in found.dead.items()} == dict(dead)
    assert sum(count.records for count in found.waiting.values()) == waiting == len([*spool.records(dead=False)])
    assert found.integrity == "ok"


@pytest.mark.parametrize(
    ("body", "is_theirs"),
    [
        (event("ada"), True),
        (event("x", **{"$user_id": "ada"}), True),
        (event("x", **{"$device_id": "ada"}), True),
        (event("$device:ada", **{"$device_id": "ada"}), True),
        (event("x", "$identify", **{"$identified_id": "ada"}), True),
        (event("x", "$create_alias", alias="ada"), True),
        (event("x", "$merge", **{"$distinct_ids": ["b", "ada"]}), True),
        (update("ada"), True),
        (event("ada2"), False),
        (event("x", note="ada"), False),
        (update("ada2"), False),
    ],
)
def test_person_is_found_by_every_identifier(body: bytes, is_theirs: bool, tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, body)], [("rejected", body)])
    gone = spool.purge(distinct_id="ada")
    assert (gone.waiting, gone.dead) == (is_theirs, is_theirs)
    assert len([*spool.records()]) == (0 if is_theirs else 2)


@settings(max_examples=12, deadline=None)
@given(person=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable() and text != "tok"))
def test_purged_person_leaves_no_bytes_in_the_files(person: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    spool = SqliteSpool(tmp_path_factory.mktemp("person") / "s.db")
    theirs = event(f"ada-{person}-lovelace", large="x" * 20_000)
    text = orjson.dumps(f"ada-{person}-lovelace")[1:-1]
    make(spool.file, [(0, REPEATABLE, theirs), (0, REPEATABLE, event("other"))] * 20, [("rejected", theirs)])
    assert text in bytes_of(spool.file)
    gone = spool.purge(distinct_id=f"ada-{person}-lovelace")
    assert (gone.waiting, gone.dead) == (20, 1)
    assert text not in bytes_of(spool.file)
    assert spool.status().waiting["events"].records == 20


@pytest.mark.anyio
async def test_person_is_purged_while_a_client_is_live(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    emulator = Emulator()
    async with emulator.client(spool=spool, batching=LINGERING) as mp:
        for number in range(40):
            await mp.track(f"user-{number % 2}", "Event")
        assert spool.purge(distinct_id="user-1").waiting == 20
        result = await mp.flush()
        assert result.delivered == 40
    # The client sent the records it held in memory; the spool has none of them.
    assert spool.status().waiting == {}
    assert spool.status().integrity == "ok"


@pytest.mark.anyio
async def test_purge_of_waiting_records_spares_live_clients(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("left"))] * 3)
    emulator = Emulator()
    emulator.fail_next(status=503, times=1_000)
    async with emulator.client(spool=spool, batching=LINGERING, **NO_SHUTDOWN_WAIT) as mp:
        await mp.track("user", "Event")
        assert spool.purge(waiting=True).waiting == 3
        assert spool.status().held["events"].records == 1
    assert spool.purge(waiting=True).waiting == 1
    assert spool.status().waiting == {}
    assert sorted(os.listdir(tmp_path)) == ["s.db"]


def test_purge_selects_dead_letters_by_age(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, dead=[("rejected", event("old"))], died=1_700_000_000.0)
    make(spool.file, dead=[("rejected", event("new"))], died=4_000_000_000.0)
    assert spool.purge(older_than=3600.0).dead == 1
    assert [one.died for one in spool.dead_letters()] == [4_000_000_000.0]


def test_changes_larger_than_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpanel_async._spool.admin.ROWS_PER_TRANSACTION", 7)
    monkeypatch.setattr("mixpanel_async._spool.inspection.ROWS_PER_TRANSACTION", 7)
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a"))] * 20, [("rejected", event("b", n=n)) for n in range(20)])
    assert len([*spool.dead_letters()]) == 20
    assert spool.retry() == 20
    assert spool.status().waiting["events"].records == 40
    assert spool.purge(waiting=True).waiting == 40


def test_export_contains_everything_except_the_token(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a", odd="\u0001"))], [("rejected", update("b"))])
    to = tmp_path / "out.ndjson"
    assert spool.export(to) == 2
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    lines = [orjson.loads(line) for line in to.read_bytes().splitlines()]
    assert [(line["state"], line["kind"], line["reason"]) for line in lines] == [
        ("waiting", "events", ""),
        ("dead", "people", "rejected"),
    ]
    assert "token" not in lines[0]["payload"]["properties"]
    assert lines[1]["payload"] == {"$distinct_id": "b", "$set": {"a": 1}}
    stream = io.BytesIO()
    assert spool.export(stream, waiting=False) == 1
    with pytest.raises(ConfigurationError, match="cannot create the export file"):
        spool.export(to)
    with pytest.raises(ConfigurationError, match="cannot create the export file"):
        spool.export(spool.file)


def test_failed_export_leaves_no_file(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a"))])
    damage_from(spool.file, 2 * 4096)
    with pytest.raises(SpoolError):
        spool.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage_from(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * (path.stat().st_size - at))


CALLS: list[Callable[[SqliteSpool], object]] = [
    lambda spool: spool.status(),
    lambda spool: [*spool.records()],
    lambda spool: [*spool.dead_letters()],
    lambda spool: spool.retry(),
    lambda spool: spool.purge(dead=True),
    lambda spool: spool.purge(waiting=True),
    lambda spool: spool.purge(distinct_id="a"),
    lambda spool: spool.export(io.BytesIO()),
]


@pytest.mark.parametrize("call", CALLS)
def test_file_that_is_not_a_spool_is_refused_and_unchanged(
    call: Callable[[SqliteSpool], object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="there is no spool at this path"):
        call(SqliteSpool(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="there is no spool at this path"):
        call(SqliteSpool(tmp_path / "no" / "folder"))
    with pytest.raises(ConfigurationError, match="not a regular file"):
        call(SqliteSpool(tmp_path))
    assert [*tmp_path.iterdir()] == []
    foreign = tmp_path / "app.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE users (name)")
    db.close()
    foreign.chmod(0o644)
    before = foreign.read_bytes()
    with pytest.raises(ConfigurationError, match="not a spool") as caught:
        call(SqliteSpool(foreign))
    assert str(caught.value).count(str(foreign)) == 1
    assert foreign.read_bytes() == before
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o644
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ConfigurationError, match="not a spool"):
        call(SqliteSpool(empty))
    assert empty.stat().st_size == 0
    link = tmp_path / "link"
    make(tmp_path / "s.db")
    link.symlink_to(tmp_path / "s.db")
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        call(SqliteSpool(link))


@pytest.mark.parametrize("call", CALLS)
def test_damaged_file_is_reported(call: Callable[[SqliteSpool], object], tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a"))] * 50, [("rejected", event("a"))])
    spool.file.write_bytes(b"not SQLite at all" + spool.file.read_bytes()[17:])
    with pytest.raises(SpoolError, match="damaged") as caught:
        call(spool)
    assert caught.value.is_damaged
    assert str(caught.value) == caught.value.message
    assert str(caught.value).count(str(spool.file)) == 1


def test_status_reports_errors_found_by_the_check(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a"))] * 2)
    # Two tables with the same root page: each is readable.
    with sqlite3.connect(spool.file) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute(
            "UPDATE sqlite_schema SET rootpage=(SELECT rootpage FROM sqlite_schema WHERE name='records')"
            " WHERE name='dead'"
        )
    db.close()
    assert spool.status(check=True).integrity != "ok"


def test_another_writer_is_waited_for_within_the_timeout(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db", timeout=0.1)
    make(spool.file, [(0, REPEATABLE, event("a"))], [("rejected", event("a"))])
    other = sqlite3.connect(spool.file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert spool.status().waiting["events"].records == 1
        with pytest.raises(SpoolError, match="locked") as caught:
            spool.retry()
        assert not caught.value.is_damaged
        assert str(caught.value).startswith(f"{spool.file}: ")
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert spool.retry() == 1


def test_newer_version_is_refused(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file)
    with sqlite3.connect(spool.file) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ConfigurationError, match="newer version"):
        spool.status()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distinct_id": ""},
        {"distinct_id": 7},
        {"distinct_id": "a", "dead": True},
        {"distinct_id": "a", "waiting": True},
        {"distinct_id": "a", "reasons": ["rejected"]},
        {"older_than": -1.0},
        {"older_than": float("nan")},
        {"reasons": "rejected"},
        {"reasons": ["unknown reason"]},
        {"ids": "12"},
    ],
)
def test_ambiguous_purge_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a"))], [("rejected", event("a"))])
    with pytest.raises(ConfigurationError):
        spool.purge(**options)
    assert len([*spool.records()]) == 2


def test_inspection_leaves_no_descriptor_open(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "s.db")
    make(spool.file, [(0, REPEATABLE, event("a"))] * 5, [("rejected", event("a"))])
    before = len(os.listdir("/proc/self/fd"))
    spool.status()
    found = spool.records()
    next(found)
    del found
    spool.retry()
    spool.purge(dead=True, waiting=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.anyio
async def test_inspection_keeps_the_locks_of_clients(tmp_path: Path) -> None:
    """POSIX locks are released when any descriptor of the file is closed, so only SQLite may open the file."""
    spool = SqliteSpool(tmp_path / "s.db")
    emulator = Emulator()

    async def write(mp: AsyncMixpanel) -> None:
        for number in range(200):
            await mp.track("user", "Event", {"number": number})

    async with emulator.client(spool=spool) as mp, anyio.create_task_group() as tg:
        tg.start_soon(write, mp)
        for _ in range(20):
            await anyio.to_thread.run_sync(spool.status)
            await anyio.to_thread.run_sync(lambda: [*spool.records()])
            await anyio.to_thread.run_sync(spool.retry)
    assert len(emulator.events("Event")) == 200
    assert spool.status().integrity == "ok"
