"""Tests of storage on disk: confirmed data survives the process, and damaged files do not prevent the start."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from emulator_wire import TOKEN, Wire, imported
from forked_python import popen

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.storage.store import FILE_NAME, LOCK_NAME
from mixpanel_async.identity.systems import Link

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
A2 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"
A3 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0003"


def seen(emulator: Emulator) -> dict[str, Any]:
    """Return the result of every view, except requests."""
    ids = sorted(id_ for cluster in emulator.clusters() for id_ in cluster)
    return {
        "events": emulator.events(),
        "raw": emulator.raw_events(),
        "profiles": emulator.profiles(),
        "group": emulator.group("company", "acme"),
        "clusters": emulator.clusters(),
        "log": emulator.identity_log(),
        "canonical": {each: emulator.resolve(each) for each in ids},
    }


def fill(mixpanel: Wire) -> None:
    """Store data of every kind, in any ID merge system."""
    mixpanel.track(A1, time=1_700_000_000, price=1.5, tags=["ä", "\x00"])
    mixpanel.post("/import", [imported(distinct_id=A1), imported(**{"$device_id": "d1", "$user_id": "u1"})])
    mixpanel.identify("u1", A1)
    mixpanel.identify("u2", A1)
    mixpanel.alias("u1", A2)
    mixpanel.verb("/import", "$merge", {"$distinct_ids": ["u1", "u3"]})
    mixpanel.engage("u1", set={"plan": "pro", "list": [1, {"a": None}]})
    mixpanel.engage(A1, add={"n": 2})
    mixpanel.engage("gone", set={"a": 1})
    mixpanel.engage("gone", delete="")
    mixpanel.groups("company", "acme", set={"size": 3})
    mixpanel.groups("company", "gone", set={"size": 3})
    mixpanel.groups("company", "gone", delete="")


@pytest.mark.parametrize("id_merge", IdMerge)
def test_all_data_survives_restart(tmp_path: Path, id_merge: IdMerge) -> None:
    with Emulator(id_merge, data_dir=tmp_path) as emulator:
        fill(Wire(emulator))
        before = seen(emulator)
        assert len(before["events"]) >= 5
    for _ in range(2):
        with Emulator(id_merge, data_dir=str(tmp_path)) as again:
            assert seen(again) == before
            assert again.group("company", "gone") is None


@pytest.mark.parametrize("id_merge", IdMerge)
def test_identity_calls_behave_the_same_after_restart(tmp_path: Path, id_merge: IdMerge) -> None:
    def second_half(mixpanel: Wire) -> None:
        mixpanel.identify("u9", A1)
        mixpanel.alias("u9", A2)
        mixpanel.identify("u1", A3)
        mixpanel.alias("u8", A3)
        mixpanel.track(None, **{"$device_id": "d1", "$user_id": "u2"})
        mixpanel.track(A2, time=1_700_000_001)
        mixpanel.engage(A2, append={"list": 2})

    clock = 1_700_000_100.0
    straight = Emulator(id_merge, now=lambda: clock)
    with Emulator(id_merge, data_dir=tmp_path, now=lambda: clock) as first:
        for emulator in (straight, first):
            mixpanel = Wire(emulator)
            mixpanel.track(A1)
            mixpanel.track(None, **{"$device_id": "d1", "$user_id": "u1"})
            mixpanel.identify("u1", A1)
            mixpanel.alias("u1", A2)
            mixpanel.engage("u1", set={"list": [1]})
    with Emulator(id_merge, data_dir=tmp_path, now=lambda: clock) as second:
        second_half(Wire(second))
        second_half(Wire(straight))
        assert seen(second) == seen(straight)


def test_restart_keeps_canonical_id(tmp_path: Path) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path, choose_canonical=lambda first, second: second) as emulator:
        Wire(emulator).identify("u1", A1)
        Wire(emulator).identify("u1", A2)
        assert emulator.resolve("u1") == A2
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path, cluster_limit=2) as again:
        assert again.resolve("u1") == A2
        assert again.cluster("u1") == {"u1", A1, A2}


def test_reset_deletes_data_on_disk(tmp_path: Path) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
        fill(Wire(emulator))
        emulator.reset()
        Wire(emulator).track("only")
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as again:
        assert [event["properties"]["distinct_id"] for event in again.events()] == ["only"]
        assert (again.profiles(), again.identity_log(), again.clusters()) == ({}, [], [{"only"}])
        again.reset()
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as once_more:
        assert once_more.events() == []


def rows(tmp_path: Path, table: str = "events") -> int:
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        count: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    db.close()
    return count


@pytest.mark.parametrize("bound", [{"max_events": 5}, {"max_bytes": 500}])
def test_limits_apply_on_disk(tmp_path: Path, bound: dict[str, Any]) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path, **bound) as emulator:
        for number in range(4):
            Wire(emulator).post("/import", [imported(distinct_id="u", n=7 * number + each) for each in range(7)])
        kept = emulator.raw_events()
        assert 1 <= len(kept) <= 6
    assert rows(tmp_path) == len(kept)
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path, **bound) as again:
        assert again.raw_events() == kept
        Wire(again).track("u")
        assert len(again.raw_events()) <= len(kept) + 1
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path, max_events=1) as smaller:
        assert len(smaller.raw_events()) == 1
    assert rows(tmp_path) == 1


def test_files_are_readable_by_owner_only(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with Emulator(data_dir=tmp_path / "deep" / "data") as emulator:
            Wire(emulator).track("u")
            files = list((tmp_path / "deep" / "data").iterdir())
            assert len(files) > 1
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "deep" / "data").stat().st_mode) == 0o700


def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=FILE_NAME):
        Emulator(data_dir=tmp_path)


def test_directory_is_used_by_one_emulator_at_a_time(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path) as emulator:
        with pytest.raises(OSError, match="in use by another emulator"):
            Emulator(data_dir=tmp_path)
        Wire(emulator).track("u")
    with Emulator(data_dir=tmp_path) as again:
        assert len(again.events()) == 1


def test_id_merge_of_directory_cannot_change(tmp_path: Path) -> None:
    Emulator(IdMerge.ORIGINAL, data_dir=tmp_path).close()
    with pytest.raises(ValueError, match="original"):
        Emulator(IdMerge.SIMPLIFIED, data_dir=tmp_path)
    Emulator(IdMerge.ORIGINAL, data_dir=tmp_path).close()


def test_file_of_later_version_is_not_changed(tmp_path: Path) -> None:
    Emulator(data_dir=tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE_NAME)
    db.execute("PRAGMA user_version=2")
    db.close()
    with pytest.raises(ValueError, match="later version"):
        Emulator(data_dir=tmp_path)
    assert list(tmp_path.glob("*corrupt*")) == []


def test_close_is_idempotent_and_requests_are_refused_afterwards(tmp_path: Path) -> None:
    emulator = Emulator(data_dir=tmp_path)
    Wire(emulator).track("u")
    emulator.close()
    emulator.close()
    assert len(emulator.events()) == 1
    answer = Wire(emulator).post("/track", [{"event": "e", "properties": {"token": TOKEN}}])
    assert (answer.status_code, answer.json()["error"]) == (
        503,
        "the emulator is closed; create a new one for this data directory",
    )
    with pytest.raises(OSError, match="closed"):
        emulator.reset()
    with Emulator(data_dir=tmp_path) as again:
        assert len(again.events()) == 1
    with Emulator() as in_memory:
        in_memory.close()
        Wire(in_memory).track("u")
        assert len(in_memory.events()) == 1


def test_unwritten_changes_are_not_confirmed_and_written_later(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path) as emulator:
        db = emulator._state.store._db  # type: ignore[union-attr]
        assert db is not None
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count={pages + 1}")
        answer = Wire(emulator).post("/import", [imported(text=["x" * 200] * 100) for _ in range(10)])
        assert answer.status_code == 503
        assert "data directory" in answer.json()["error"]
        assert emulator.requests()[-1].status == 503
        db.execute("PRAGMA max_page_count=1000000")
        Wire(emulator).track("u")
        before = emulator.raw_events()
        assert len(before) == 11
    with Emulator(data_dir=tmp_path) as again:
        assert again.raw_events() == before


def damage(path: Path, how: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "header":
        data[:100] = b"\xff" * 100
    elif how == "pages":
        for _ in range(20):
            # Beyond the header, whose damage is a separate case.
            data[chance.randrange(min(100, len(data) - 1), len(data))] ^= 1 << chance.randrange(8)
    elif how == "shorter":
        del data[chance.randrange(1, len(data)) :]
    elif how == "other":
        path.unlink()
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE notes (a)")
        db.close()
        return
    elif how == "text":
        data = bytearray(b"not a database at all\n" * 100)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["header", "shorter", "other", "text"])
def test_damaged_file_is_renamed(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
            fill(Wire(emulator))
        damage(tmp_path / FILE_NAME, how, random.Random(number))
        caplog.clear()
        with caplog.at_level(logging.WARNING), Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as again:
            assert again.events() == []
            Wire(again).track("u")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"{FILE_NAME}.corrupt-{number}" in caplog.text
        assert (tmp_path / f"{FILE_NAME}.corrupt-{number}").exists()
    assert rows(tmp_path) == 1


def test_empty_file_is_used_as_new_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).touch()
    with Emulator(data_dir=tmp_path) as emulator:
        Wire(emulator).track("u")
    assert rows(tmp_path) == 1
    assert caplog.records == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE links",
        "DELETE FROM meta",
        "UPDATE events SET payload = x'7b'",
        "UPDATE events SET payload = '[]'",
        "UPDATE events SET payload = x'5b5d'",
        "UPDATE events SET name = x'ff'",
        "UPDATE events SET person = cast(x'ff' AS TEXT)",
        "UPDATE events SET arrived = 'then'",
        "UPDATE profiles SET properties = x'ff'",
        "UPDATE identity_log SET outcome = 1.5",
        "UPDATE links SET at = 'then'",
    ],
)
def test_file_with_invalid_content_is_renamed(tmp_path: Path, statement: str) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
        fill(Wire(emulator))
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute(statement.replace("SET name = x'ff'", "SET name = x'ff' WHERE seq = 1"))
    db.close()
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as again:
        assert again.events() == []
    assert (tmp_path / f"{FILE_NAME}.corrupt-1").exists()


def test_emulator_starts_after_any_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
        fill(Wire(emulator))
        # Like a killed process: part of the data is in the write-ahead log.
        whole = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != LOCK_NAME}
    assert set(whole) == {FILE_NAME, f"{FILE_NAME}-wal"}
    closed = {FILE_NAME: (tmp_path / FILE_NAME).read_bytes()}
    chance = random.Random(7)
    for _ in range(80):
        for left in tmp_path.iterdir():
            left.unlink()
        files = chance.choice([whole, closed])
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        damage(tmp_path / chance.choice(list(files)), chance.choice(["pages", "shorter"]), chance)
        with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as again:
            seen(again)
            Wire(again).track("u")
    assert "u1" not in caplog.text


CHILD = """
import sys
from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
with Emulator(IdMerge.ORIGINAL, data_dir=sys.argv[1]).serve() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def feed_until_killed(url: str, pid: int, sizes: dict[int, int], chance: random.Random) -> None:
    """Post numbered batches of the given sizes, each with a profile update, until requests fail."""
    killer = threading.Timer(0.02 * chance.random(), os.kill, [pid, signal.SIGKILL])
    last_safe = len(sizes) + chance.randrange(3, 15)
    with httpx.Client(base_url=url, trust_env=False, auth=(TOKEN, "")) as http:
        while True:
            if len(sizes) == last_safe:
                killer.start()
            number = len(sizes)
            batch = [imported(number=number) for _ in range(chance.randrange(1, 200))]
            sizes[number] = len(batch)
            assert http.post("/import?strict=1", json=batch).status_code == 200
            profile = {"$token": TOKEN, "$distinct_id": "u", "$append": {"numbers": number}}
            assert http.post("/engage", json=[profile]).text == "1"


@pytest.mark.parametrize("seed", range(3))
def test_confirmed_data_survives_kill(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    sizes: dict[int, int] = {}
    unanswered: set[int] = set()
    for _ in range(2):
        child = popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        with child.stdin, child.stdout:
            with pytest.raises(httpx.TransportError):
                feed_until_killed(url, child.pid, sizes, chance)
            child.wait()
        unanswered.add(len(sizes) - 1)
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
        stored = Counter(event["properties"]["number"] for event in emulator.events())
        appended = (emulator.profile("u") or {})["numbers"]
    # An unanswered request is stored completely or not at all.
    assert {**sizes, **{number: stored[number] for number in unanswered}} == {
        number: stored[number] for number in sizes
    }
    assert all(stored[number] in {0, sizes[number]} for number in unanswered)
    assert appended == sorted(set(appended))
    assert set(sizes) - unanswered <= set(appended) <= set(sizes)


@pytest.mark.anyio
async def test_concurrent_requests_are_each_written_completely(tmp_path: Path) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
        async with emulator.client() as mp:

            async def work(number: int) -> None:
                await mp.track_immediate(f"user-{number}", "Viewed", {"number": number})
                await mp.alias(f"alias-{number}", f"user-{number}")

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(work, number)
        before = seen(emulator)
        assert len(before["log"]) == 20
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as again:
        assert seen(again) == before


def test_links_are_stored_as_identity_calls(tmp_path: Path) -> None:
    with Emulator(IdMerge.ORIGINAL, data_dir=tmp_path) as emulator:
        mixpanel = Wire(emulator)
        mixpanel.identify("u1", A1)
        mixpanel.identify("u1", "no uuid")
        mixpanel.alias("u1", A1)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        links = [Link(*row) for row in db.execute("SELECT verb, first, second, kept FROM links ORDER BY seq")]
    db.close()
    assert links == [Link("$identify", "u1", A1, "u1"), Link("$create_alias", "u1", A1, None)]


def test_credentials_are_not_stored(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path, secret="s3cret-canary") as emulator:
        assert Wire(emulator).post("/import", [imported()], auth=("s3cret-canary", "")).status_code == 200
    assert all(b"canary" not in file.read_bytes() for file in tmp_path.iterdir())


def test_event_name_with_invalid_utf8_is_refused(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path) as emulator:
        body = json.dumps([{"event": "bad \ud800", "properties": {"token": TOKEN, "distinct_id": "u"}}]).encode()
        answer = Wire(emulator).post("/track?verbose=1", content=body, headers={"content-type": "application/json"})
        assert answer.json()["status"] == 0
        Wire(emulator).track("u")
    with Emulator(data_dir=tmp_path) as again:
        assert [event["event"] for event in again.events()] == ["Viewed"]


OTHER = (
    "import sys\n"
    "from mixpanel_async.emulator import Emulator\n"
    "try:\n"
    "    Emulator(data_dir=sys.argv[1])\n"
    "except OSError:\n"
    "    sys.exit(3)\n"
)


def test_second_attempt_in_process_keeps_directory_locked(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path):
        with pytest.raises(OSError, match="in use"):
            Emulator(data_dir=tmp_path)
        done = subprocess.run([sys.executable, "-c", OTHER, str(tmp_path)], check=False, timeout=20)
        assert done.returncode == 3
    Emulator(data_dir=tmp_path).close()


def test_access_error_does_not_rename_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(data_dir=tmp_path) as emulator:
        Wire(emulator).track("user")
    connect = sqlite3.connect

    def fail(*args: Any, **options: Any) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.raises(OSError, match="cannot open"):
        Emulator(data_dir=tmp_path)
    monkeypatch.setattr(sqlite3, "connect", connect)
    with Emulator(data_dir=tmp_path) as emulator:
        assert len(emulator.events()) == 1
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_retried_update_takes_effect_once_after_write_failure(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path) as emulator:
        mixpanel = Wire(emulator)
        mixpanel.engage("user", add={"n": 1})
        store = emulator._state.store
        assert store is not None
        store._db.execute("PRAGMA query_only=ON")  # type: ignore[union-attr]
        for _ in range(4):
            body = {"$token": TOKEN, "$distinct_id": "user", "$add": {"n": 1}}
            assert mixpanel.post("/engage", [body]).status_code == 503
        store._db.execute("PRAGMA query_only=OFF")  # type: ignore[union-attr]
        mixpanel.track("user")
        assert (emulator.profile("user") or {})["n"] == 2
    with Emulator(data_dir=tmp_path) as emulator:
        assert (emulator.profile("user") or {})["n"] == 2
