"""What the tests of the spool across processes share: children, and the accounts that must hold after any death."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpanel_async.emulator import Emulator

CHILD = Path(__file__).with_name("spool_child.py")


class Child:
    """A process of `spool_child.py`."""

    def __init__(self, part: str, **given: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(CHILD), part, json.dumps(given, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def heard(self) -> dict[str, Any]:
        """Its next word."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        words: dict[str, Any] = json.loads(line)
        return words

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, timeout: float = 60.0) -> str:
        """Wait for its own end. Returns what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, errors
        return errors


@contextmanager
def child(part: str, **given: Any) -> Iterator[Child]:
    one = Child(part, **given)
    try:
        yield one
    finally:
        one.kill()


def drain(url: str, path: Path, **given: Any) -> dict[str, Any]:
    """Have a fresh process deliver what is in the spool. Returns its stats."""
    with child("drain", url=url, path=path, **given) as one:
        stats: dict[str, Any] = one.heard()["stats"]
        assert one.end() == ""
    return stats


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM records").fetchone()[0])


def dead(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The dead letters: reason and payload."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        letters = db.execute("SELECT reason, body FROM dead ORDER BY id").fetchall()
    return [(reason, json.loads(body.replace(b"\x01", b'"token"'))) for reason, body in letters]


@dataclass
class Account:
    """What became of the receipts of some lives."""

    receipts: int = 0
    events: int = 0
    increments: int = 0
    uncertain: int = 0
    raw_duplicates: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def audited(receipts: Path, emulator: Emulator, path: Path, round: str) -> Account:
    """Hold what the emulator has against the receipts: nothing lost, nothing twice.

    Dead letters of other rounds stay in the file. A task that was killed may have been accepted once more than it
    could put down; beyond that nothing may be extra.
    """
    acknowledged = _acknowledged(receipts)
    events = emulator.events("E")
    stored, applied, unsure = _stored(events), _applied(emulator), _unsure(path, round)
    for who in {*acknowledged, *stored, *applied, *unsure}:
        have = stored[who] | applied[who] | unsure[who]
        lost = set(range(acknowledged[who])) - have
        assert not lost, f"{len(lost)} of {who} were lost"
        assert have <= set(range(acknowledged[who] + 1)), f"more of {who} than was ever tracked"
    return Account(
        receipts=sum(acknowledged.values()),
        events=len(events),
        increments=sum(map(len, applied.values())),
        uncertain=sum(len(numbers - applied[who]) for who, numbers in unsure.items()),
        raw_duplicates=len(emulator.raw_events("E")) - len(events),
    )


def _acknowledged(receipts: Path) -> Counter[str]:
    count: Counter[str] = Counter()
    for line in receipts.read_text().splitlines():
        who, number = line.split()
        assert int(number) == count[who]
        count[who] += 1
    return count


def _stored(events: list[dict[str, Any]]) -> dict[str, set[int]]:
    stored: dict[str, set[int]] = defaultdict(set)
    for event in events:
        properties = event["properties"]
        assert properties["$insert_id"] == f"{properties['distinct_id']}-{properties['n']}"
        stored[properties["distinct_id"]].add(properties["n"])
    assert sum(map(len, stored.values())) == len(events), "stored twice after de-duplication"
    return stored


def _applied(emulator: Emulator) -> dict[str, set[int]]:
    applied: dict[str, set[int]] = defaultdict(set)
    for who, profile in emulator.profiles().items():
        for name, value in profile.items():
            if name.startswith("n"):
                assert value == 1, f"{who} was incremented {value} times instead of once"
                applied[who].add(int(name[1:]))
    return applied


def _unsure(path: Path, round: str) -> dict[str, set[int]]:
    unsure: dict[str, set[int]] = defaultdict(set)
    for reason, letter in dead(path):
        assert reason == "uncertain"
        if letter["$distinct_id"].startswith(round):
            unsure[letter["$distinct_id"]] |= {int(name[1:]) for name in letter["$add"]}
    return unsure
