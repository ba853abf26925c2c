"""Objects that backup tools and database browsers leave in a spool file: they change no record and lose none."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from spool_harness import SpoolHarness, fast_folder, record, spooled

from mixpanel_async import SqliteSpool
from mixpanel_async._model.outcomes import Delivered

pytestmark = pytest.mark.sample(every=4)

ROWS = 1_000

Change = Callable[[sqlite3.Connection], object]


def sql(*statements: str) -> Change:
    return lambda db: [db.execute(statement) for statement in statements]


def schema(statement: str, *values: object) -> Change:
    """Change the list of objects in the way that a faulty tool does."""

    def change(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA writable_schema=ON")
        db.execute(statement, values)
        db.execute("PRAGMA writable_schema=OFF")

    return change


def unknown_collation(db: sqlite3.Connection) -> None:
    db.create_collation("theirs", lambda left, right: (left > right) - (left < right))
    db.execute("CREATE INDEX i ON records (body COLLATE theirs)")
    db.execute("CREATE TABLE theirs (x TEXT COLLATE theirs UNIQUE)")


IGNORED: dict[str, Change] = {
    "table": sql("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)"),
    "backup tool": sql(
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)",
        "CREATE TABLE _litestream_lock (id INTEGER)",
        "INSERT INTO _litestream_seq VALUES (1, 1)",
    ),
    "statistics": sql("ANALYZE"),
    "table without row ids": sql("CREATE TABLE more (x PRIMARY KEY) WITHOUT ROWID"),
    "table with a foreign key": sql("CREATE TABLE more (x REFERENCES records (id) ON DELETE RESTRICT)"),
    "full text search": sql("CREATE VIRTUAL TABLE more USING fts5 (x)", "INSERT INTO more VALUES ('a')"),
    "unknown module": schema(
        "INSERT INTO sqlite_schema VALUES ('table', 'm', 'm', 0, 'CREATE VIRTUAL TABLE m USING no_such_module (x)')"
    ),
    "view": sql("CREATE VIEW v AS SELECT body FROM records"),
    "view that loads code": sql("CREATE VIEW v AS SELECT load_extension('evil')"),
    "trigger of a view": sql(
        "CREATE VIEW v AS SELECT id FROM records",
        "CREATE TRIGGER records INSTEAD OF DELETE ON v BEGIN DELETE FROM records; END",
    ),
    "index": sql("CREATE INDEX i ON records (state)"),
    "unique index": sql("CREATE UNIQUE INDEX i ON records (id, state)"),
    "index in capitals": sql("CREATE INDEX I ON RECORDS (STATE)"),
    "unique index of owners": sql("CREATE UNIQUE INDEX i ON owners (project)"),
    "index of an expression": sql("CREATE INDEX i ON records (abs(state))"),
    "unknown collation": unknown_collation,
    "trigger that deletes": sql("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END"),
    "trigger that repeats": sql(
        "CREATE TRIGGER t AFTER DELETE ON records BEGIN INSERT INTO records VALUES (old.id, 0, old.body); END"
    ),
    "trigger that refuses": sql("CREATE TRIGGER t BEFORE INSERT ON owners BEGIN SELECT RAISE(ABORT, 'no'); END"),
    "trigger that ignores": sql("CREATE TRIGGER t BEFORE DELETE ON RECORDS BEGIN SELECT RAISE(IGNORE); END"),
    "trigger with the name of a table": sql(
        "CREATE TRIGGER dead AFTER INSERT ON records BEGIN DELETE FROM dead; END",
    ),
    "audit": sql(
        "CREATE TABLE audit (old)", "CREATE TRIGGER a AFTER DELETE ON records BEGIN INSERT INTO audit VALUES (1); END"
    ),
}

# SQLite cannot read the list of objects, so that the file is set aside.
SET_ASIDE: dict[str, Change] = {
    "definition that is not SQL": schema(
        "INSERT INTO sqlite_schema VALUES ('view', 'v', 'v', 0, 'CREATE VIEW garbage')"
    ),
    "index name that is not text": lambda db: [
        db.execute("CREATE INDEX i ON records (state)"),
        schema("UPDATE sqlite_schema SET name=CAST(? AS TEXT) WHERE name='i'", b"\xff\xfe")(db),
    ],
    "table that was changed": sql("ALTER TABLE records ADD COLUMN note TEXT"),
    "table that was written differently": schema(
        "UPDATE sqlite_schema SET sql=replace(sql, 'records', '\"records\"') WHERE name='records'"
    ),
}

HOSTILE_NAMES = [
    'a"b',
    "a'b",
    "a`b]c[",
    "; DROP TABLE records; --",
    "line\nbreak",
    "",
    " ",
    "x" * 5_000,
    "\U0001f600",
    "\u202e\ufeff",
    "records ",
    "sqlite",
    "main.records",
    "%s %(a)s {0}",
]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def named(name: str) -> Change:
    """Add a table, a view, an index and a trigger whose names contain this text."""
    table, view, index, trigger = (quoted(name + end) for end in ("", "v", "i", "t"))
    return sql(
        f"CREATE TABLE {table} (x)",
        f"CREATE VIEW {view} AS SELECT * FROM {table}",
        f"CREATE INDEX {index} ON records (state)",
        f"CREATE TRIGGER {trigger} AFTER DELETE ON records BEGIN INSERT INTO {table} VALUES (1); END",
    )


def generated(seed: int) -> Change:
    """Add a random mixture of objects with random names."""
    chance = random.Random(seed)
    letters = "ab'\"`[];-%\n\t\u00e9\u4e2d"
    # SQLite compares names without regard to case.
    names = {"".join(chance.choices(letters, k=chance.randint(2, 12))).casefold() for _ in range(chance.randint(1, 8))}
    statements = ["CREATE TABLE other (x, y)"]
    for name in map(quoted, sorted(names)):
        on = chance.choice(["records", "RECORDS", "owners", "dead", "meta", "other"])
        column = {"records": "state", "RECORDS": "state", "owners": "born", "dead": "lane", "meta": "value"}.get(
            on, "x"
        )
        write = chance.choice(["INSERT", "DELETE", "UPDATE"])
        choices = [
            f"CREATE TABLE {name} (x, y UNIQUE)",
            f"CREATE VIEW {name} AS SELECT * FROM {on}",
            f"CREATE INDEX {name} ON {on} ({column})",
            f"CREATE TRIGGER {name} AFTER {write} ON {on} BEGIN DELETE FROM records WHERE id % 2; END",
        ]
        statements.append(chance.choice(choices))
    return sql(*statements)


KINDS = {
    **IGNORED,
    **SET_ASIDE,
    **{f"name {number}": named(name) for number, name in enumerate(HOSTILE_NAMES)},
    **{f"generated {seed}": generated(seed) for seed in range(20)},
}


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder) / "spool" / "spool.db"


def arrivals(harness: SpoolHarness) -> list[bytes]:
    """Deliver everything. Return the stored form of the records in order of arrival."""
    found: list[bytes] = []
    for _ in range(100):
        harness.now += 11.0
        harness.step()
        while (batch := harness.take()) is not None:
            found += [spooled(bytes(item)) for item in batch.items]
            harness.settle(batch, Delivered())
        if not harness.queue.pending and not harness.writer._has_more():
            break
    harness.run_until_idle()
    harness.check()
    return found


def change(path: Path, kind: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=1.0)) as db:
        KINDS[kind](db)


@pytest.mark.parametrize("moment", ["closed", "in the log", "open"])
@pytest.mark.parametrize("kind", KINDS)
def test_g9_foreign_objects_in_a_spool_change_and_lose_no_record(path: Path, kind: str, moment: str) -> None:
    first = SpoolHarness(path)
    items = [record(number, 100) for number in range(ROWS)]
    for item in items:
        first.offer(item)
    first.run_until_idle()
    if moment == "open":
        change(path, kind)
        more = [record(number) for number in range(ROWS, ROWS + 50)]
        for item in more:
            first.offer(item)
        items += more
        client = first
    elif moment == "closed":
        first.abandon()
        change(path, kind)
        client = SpoolHarness(path)
    else:
        change(path, kind)
        path = first.crash(path.parent.parent / "left")
        client = SpoolHarness(path)
    assert sorted(arrivals(client)) == sorted(map(spooled, items))
    client.abandon()
    # Objects that the running client did not have to notice may be noticed now.
    later = SpoolHarness(path)
    assert arrivals(later) == []
    assert later.rows() == {}
    later.abandon()
    assert (kind in SET_ASIDE) == any(path.parent.glob("*.corrupt-*"))
    assert SqliteSpool(path).status(check=True).integrity == "ok"


@pytest.mark.parametrize("kind", ["table", "view", "full text search", "statistics"])
def test_g9_foreign_tables_and_views_stay_in_the_spool(path: Path, kind: str) -> None:
    first = SpoolHarness(path)
    first.offer(record(1))
    first.run_until_idle()
    first.abandon()
    change(path, kind)
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("SELECT * FROM sqlite_schema ORDER BY name").fetchall()
    assert len(arrivals(SpoolHarness(path))) == 1
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM sqlite_schema ORDER BY name").fetchall() == before
