"""Helpers of the multi-process tests: client processes, and checks that no record is lost or repeated."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from forked_python import popen

from mixpanel_async.emulator import Emulator

SPOOL_PROCESS = Path(__file__).with_name("spool_process.py")


class ClientProcess:
    """Running process of `spool_process.py`.

    Args:
        program: the function that it runs.
        is_child: start a child of this process, which can wait for its stop, rather than one of the fork server.
        given: arguments of the function.
    """

    def __init__(self, program: str, *, is_child: bool = False, **given: Any) -> None:
        start: Callable[..., Any] = subprocess.Popen if is_child else partial(popen, modules=())
        self.process: Any = start(
            [sys.executable, "-W", "error", str(SPOOL_PROCESS), program, json.dumps(given, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_json(self) -> dict[str, Any]:
        """Return the next JSON line that the process prints."""
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        values: dict[str, Any] = json.loads(line)
        return values

    @property
    def is_alive(self) -> bool:
        return bool(self.process.poll() is None)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def wait(self, timeout: float = 60.0) -> str:
        """Wait until the process exits. Return its standard error output."""
        errors: str = self.process.communicate(timeout=timeout)[1]
        assert self.process.returncode == 0, errors
        return errors


@contextmanager
def client_process(program: str, **given: Any) -> Iterator[ClientProcess]:
    process = ClientProcess(program, **given)
    try:
        yield process
    finally:
        process.kill()


def drain(url: str, path: Path, **given: Any) -> dict[str, Any]:
    """Deliver the spool in a new process, which logs only updates that are uncertain and events that were set aside.

    Returns:
        Its stats.
    """
    with client_process("drain", url=url, path=path, **given) as process:
        stats: dict[str, Any] = process.read_json()["stats"]
        losses = [line for line in process.wait().splitlines() if not _SET_ASIDE.fullmatch(line)]
        lost = stats["uncertain"]
        records = "record" if lost == 1 else "records"
        assert len(losses) == (lost > 0)
        assert not lost or losses[0].startswith(f"people: {lost} {records} lost (uncertain), ")
    return stats


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM records").fetchone()[0])


def dead_letters(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return reason and payload of the dead letters."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        letters = db.execute("SELECT reason, body FROM dead ORDER BY id").fetchall()
    return [(reason, json.loads(body.replace(b"\x01", b'"token"'))) for reason, body in letters]


_SET_ASIDE: Final = re.compile(r"events: \d+ records? lost \(crashed\), \d+ so far")


@dataclass
class Totals:
    """Totals of the records of some processes."""

    receipts: int = 0
    events: int = 0
    increments: int = 0
    uncertain: int = 0
    crashed: int = 0
    raw_duplicates: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def audit(receipts: Path, emulator: Emulator, path: Path, round: str) -> Totals:
    """Compare the emulator's data with the receipts: no record is lost or repeated.

    Dead letters of other rounds stay in the file. A killed task may have process accepted record without a receipt; no
    other extra record is allowed.
    """
    acknowledged = _acknowledged(receipts)
    events = emulator.events("E")
    stored, applied, uncertain_numbers = _stored(events), _applied(emulator), _uncertain(path, round)
    crashed = _crashed(path, round)
    for who in {*acknowledged, *stored, *applied, *uncertain_numbers}:
        have = stored[who] | applied[who] | uncertain_numbers[who] | crashed[who]
        lost = set(range(acknowledged[who])) - have
        assert not lost, f"{len(lost)} of {who} were lost"
        assert have <= set(range(acknowledged[who] + 1)), f"more of {who} than was ever tracked"
    return Totals(
        receipts=sum(acknowledged.values()),
        events=len(events),
        increments=sum(map(len, applied.values())),
        uncertain=sum(len(numbers - applied[who]) for who, numbers in uncertain_numbers.items()),
        crashed=sum(len(numbers - stored[who]) for who, numbers in crashed.items()),
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


def _uncertain(path: Path, round: str) -> dict[str, set[int]]:
    uncertain_numbers: dict[str, set[int]] = defaultdict(set)
    for reason, letter in dead_letters(path):
        assert reason == ("uncertain" if "$add" in letter else "crashed")
        if "$add" in letter and letter["$distinct_id"].startswith(round):
            uncertain_numbers[letter["$distinct_id"]] |= {int(name[1:]) for name in letter["$add"]}
    return uncertain_numbers


def _crashed(path: Path, round: str) -> dict[str, set[int]]:
    """Return the events that were set aside because process after process was killed while it sent them."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for _, letter in dead_letters(path):
        if "event" in letter and letter["properties"]["distinct_id"].startswith(round):
            numbers[letter["properties"]["distinct_id"]].add(letter["properties"]["n"])
    return numbers
