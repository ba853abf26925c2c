"""Trials of records whose sending may end the process: a crash in native code, `os._exit` in a hook, out of memory.

A client notes on disk which rows are in its first requests after a takeover, and removes the note when these requests
have ended. If it dies before, the client that takes over raises the suspicion against these rows:

1. More than `MAX_GROUP` rows were in flight. They are sent again in groups of the square root of their number.
2. Fewer were in flight. They are sent again one by one.
3. The row was sent alone. It is the first that the next client sends.
4. The row was sent first and alone, and the process died again. It becomes a dead letter.

Suspects are sent while no other row is. A request that ends in any way, also without a response, or that takes longer
than `PROVEN_AFTER`, clears its rows. So a process that is killed for another reason convicts a row only if that happens
three times in a row, the last time within the first request after the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from .database import Database, id_ranges

# Levels of suspicion; the third is between these.
IN_CROWD: Final = 1
IN_GROUP: Final = 2
CONVICTED: Final = 4
# Largest number of rows that are sent one by one after a death.
MAX_GROUP: Final = 100
# Seconds in a request after which its rows are not to blame for the end of the process.
PROVEN_AFTER: Final = 5.0
_TRIAL: Final = "trial "
_SUSPICION: Final = "suspicion "


class Trials:
    """Rows of one client that are on trial. Use it in the writer thread.

    Attributes:
        suspects: level of suspicion of rows, by their id in the file. Rows without suspicion are left out.
    """

    def __init__(self) -> None:
        self.suspects: dict[int, int] = {}
        # Rows in the first requests, and when these began.
        self._rows: dict[int, float] = {}
        self._is_noted = False

    @property
    def is_running(self) -> bool:
        """Whether rows are on trial."""
        return bool(self._rows)

    def change(self, db: Database, owner: int, ids: Sequence[int], began: float | None) -> None:
        """Begin the trial of rows at a time in monotonic seconds, or end it. Call it within a transaction.

        Args:
            db: open spool.
            owner: owner number of this client.
            ids: ids of rows in this file.
            began: when their request begins; None if it has ended.
        """
        if began is None:
            db.remove_notes([_SUSPICION + str(row) for row in ids])
        for row in ids:
            if began is not None:
                self._rows[row] = began
            else:
                self._rows.pop(row, None)
                self.suspects.pop(row, None)
        self._write(db, owner)

    def _write(self, db: Database, owner: int) -> None:
        name = f"{_TRIAL}{owner}"
        if self._rows:
            db.set_note(name, ",".join(f"{first}-{last}" for first, last in id_ranges(self._rows)))
        elif self._is_noted:
            db.remove_notes([name])
        self._is_noted = bool(self._rows)

    def old(self, now: float) -> list[int]:
        """Return the rows whose request takes so long that they are not to blame if the process ends."""
        return [row for row, began in self._rows.items() if now - began >= PROVEN_AFTER]

    def end_all(self, db: Database, owner: int) -> None:
        """Note that the client closes, with its rows unproven. Call it outside of a transaction."""
        self._rows.clear()
        if self._is_noted:
            with db.transaction():
                self._write(db, owner)

    def take_over(self, db: Database, owners: Iterable[int]) -> None:
        """Raise the suspicion against the rows that ended clients were sending.

        Call it with the locks of these clients held, outside of a transaction.
        """
        noted = db.notes(_TRIAL)
        dead = [owner for owner in owners if f"{_TRIAL}{owner}" in noted]
        if dead:
            with db.transaction():
                levels = _numbers(db.notes(_SUSPICION))
                for owner in dead:
                    rows = _rows_of(noted[f"{_TRIAL}{owner}"])
                    for row in db.present(rows):
                        db.set_note(_SUSPICION + str(row), _raised(levels.get(row, 0), len(rows)))
                db.remove_notes([f"{_TRIAL}{owner}" for owner in dead])
        levels = _numbers(db.notes(_SUSPICION))
        present = db.present(levels) if levels else set()
        self.suspects = {row: level for row, level in levels.items() if row in present}
        if gone := levels.keys() - present:
            with db.transaction():
                db.remove_notes([_SUSPICION + str(row) for row in gone])

    def convicted(self, first: int, end: int) -> list[int]:
        """Return the rows between two ids that must not be sent again."""
        return sorted(row for row, level in self.suspects.items() if level >= CONVICTED and first < row < end)


def _raised(level: int, in_flight: int) -> int:
    """Return the next level of suspicion, as the process died while this number of rows was in flight."""
    if level < IN_GROUP:
        return IN_GROUP if in_flight <= MAX_GROUP else IN_CROWD
    return level + 1 if in_flight == 1 else IN_GROUP


def _numbers(notes: dict[str, object]) -> dict[int, int]:
    """Return the levels by row. Notes that are not of this form are left out."""
    found = {}
    for name, value in notes.items():
        row = name.removeprefix(_SUSPICION)
        if row.isdecimal() and isinstance(value, int):
            found[int(row)] = value
    return found


def _rows_of(note: object) -> list[int]:
    rows: list[int] = []
    for span in note.split(",") if isinstance(note, str) else ():
        first, _, last = span.partition("-")
        # No client has more rows in flight; a damaged note must not exhaust the memory.
        if first.isdecimal() and last.isdecimal() and int(last) - int(first) < 1_000_000:
            rows.extend(range(int(first), int(last) + 1))
    return rows
