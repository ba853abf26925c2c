"""A guest's connection to a spool that clients use meanwhile: it makes no file and touches nobody else's database."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

from .._model.errors import ConfigurationError, SpoolError, raise_configuration_error
from .._model.records import DropReason
from .database import APPLICATION_ID, LANES, OWNER_SHIFT, Database, id_ranges, is_damage, lane_start
from .files import is_text
from .messages import SENDING, SEQUENCE_BITS
from .report import SpoolCount

ROWS_AT_ONCE: Final = 10_000
_PAGES_AT_ONCE: Final = 2_000
# Seconds between two transactions, in which others get their turn.
_PAUSE_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which dead letters.

    Args:
        reasons: with one of these; None for all but those `without`.
        without: with none of these.
        ids: with one of these numbers; None for all.
        died_before: seconds since 1970.

    Raises:
        ConfigurationError: if a reason is none.
    """

    reasons: Collection[str] | None = None
    except_reasons: Collection[str] = ()
    ids: Collection[int] | None = None
    died_before: float = inf

    def __post_init__(self) -> None:
        if isinstance(self.reasons, str) or isinstance(self.ids, (str, bytes)):
            raise_configuration_error("reasons and ids must be collections")
        known = {reason.value for reason in DropReason}
        if not known.issuperset(self.reasons or ()):
            raise_configuration_error("a reason must be the value of a DropReason")

    def matches(self, number: int, reason: str, died: float) -> bool:
        is_named = reason not in self.except_reasons if self.reasons is None else reason in self.reasons
        return is_named and died <= self.died_before and (self.ids is None or number in self.ids)


class AdminConnection(Database):
    """A guest's connection.

    Args:
        path: the file.
        wait: seconds to wait for another process's transaction.
        erase: whether what is deleted is overwritten wherever it lay.

    Raises:
        ConfigurationError: if there is no spool.
        Damaged, sqlite3.Error: if there is one that cannot be used.
    """

    def __init__(self, path: Path, *, wait: float, erase: bool = False) -> None:
        self.path = path
        # An iterator that is dropped may be closed by another thread.
        self._db = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=wait, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            if self._number("PRAGMA application_id") != APPLICATION_ID:
                raise_configuration_error("the file is not a spool")
            self._check_or_make()
            self._page_bytes = self._number("PRAGMA page_size")
            if erase:
                self._db.execute("PRAGMA secure_delete=ON")
        except BaseException:
            self._db.close()
            raise

    @property
    def schema(self) -> int:
        return self._number("PRAGMA user_version")

    @property
    def file_bytes(self) -> int:
        return self._number("PRAGMA page_count") * self._page_bytes

    def check(self) -> str:
        """What SQLite finds wrong with the file; `ok` if nothing."""
        try:
            found = [str(text) for (text,) in self._db.execute("PRAGMA quick_check(3)")]
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return str(error)
        return "; ".join(" ".join(text.split()) for text in found)

    def owner_lanes(self) -> Iterator[tuple[int, int]]:
        """Owners and their lanes that hold rows, found by leaping from one range to the next."""
        after = 0
        while (number := self._number("SELECT id FROM records WHERE id > ? ORDER BY id LIMIT 1", after)) > after:
            yield number >> OWNER_SHIFT, number >> SEQUENCE_BITS & (LANES - 1)
            after = (number >> SEQUENCE_BITS << SEQUENCE_BITS) + (1 << SEQUENCE_BITS) - 1

    def count(self, owner: int, lane: int) -> tuple[int, int, int, bytes]:
        """Rows of a lane, their bytes, how many of them are being sent, and the body of the first."""
        low = lane_start(owner, lane)
        high = low + (1 << SEQUENCE_BITS) - 1
        records, size, sending = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(sum(state = ?), 0) FROM records"
            " WHERE id > ? AND id <= ?",
            (SENDING, low, high),
        ).fetchone()
        first = self._one("SELECT body FROM records WHERE id > ? AND id <= ? ORDER BY id LIMIT 1", low, high)
        return records, size, sending, first if isinstance(first, bytes) else b""

    def dead_counts(self) -> dict[str, SpoolCount]:
        found = self._db.execute("SELECT reason, count(*), sum(length(body)), min(died) FROM dead GROUP BY reason")
        return {reason: SpoolCount(records=records, bytes=size, oldest=died) for reason, records, size, died in found}

    def dead_projects(self) -> set[bytes]:
        return {project for (project,) in self._db.execute("SELECT DISTINCT project FROM dead")}

    def select_dead_letters(self, wanted: DeadLetterFilter) -> list[tuple[int, int]]:
        """Dead letters: number and size of the body."""
        found = self._db.execute("SELECT id, length(body), reason, died FROM dead ORDER BY id")
        return [(number, size) for number, size, reason, died in found if wanted.matches(number, reason, died)]

    def dead_letters(self, ids: Sequence[int]) -> list[tuple[Any, ...]]:
        """Those of these dead letters that are there: number, project, lane, state, reason, message, died, body."""
        columns = "id, project, lane, state, reason, message, died, body"
        return [
            row
            for span in id_ranges(ids)
            for row in self._db.execute(f"SELECT {columns} FROM dead WHERE id BETWEEN ? AND ?", span)  # noqa: S608
        ]

    def remove(self, table: str, ids: Iterable[int]) -> int:
        """Delete rows of `records` or `dead`. Returns how many were there."""
        return sum(
            self._db.execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", span).rowcount  # noqa: S608
            for span in id_ranges(ids)
        )

    def remove_first(self, after: int, end: int) -> int:
        """Delete the first `ROWS_AT_ONCE` rows between two numbers. Returns how many."""
        last = self._number(
            "SELECT max(id) FROM (SELECT id FROM records WHERE id > ? AND id < ? ORDER BY id LIMIT ?)",
            after,
            end,
            ROWS_AT_ONCE,
        )
        return self._db.execute("DELETE FROM records WHERE id > ? AND id <= ?", (after, last)).rowcount

    def candidates(self, table: str, text: bytes) -> Iterator[tuple[int, bytes]]:
        """Rows of `records` or `dead` whose bodies hold some bytes."""
        yield from self._db.execute(f"SELECT id, body FROM {table} WHERE instr(body, ?) > 0", (text,))  # noqa: S608

    def vacuum(self) -> None:
        """Give every page that lies idle back to the disk, and empty the log: what was deleted is in neither."""
        before = 0
        while (idle := self._number("PRAGMA freelist_count")) and idle != before:
            before = idle
            # As a script, which alone steps through all of it.
            self._db.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
            pause()
        self.checkpoint()


@contextmanager
def open_admin_connection(path: Path, wait: float, *, erase: bool = False) -> Iterator[AdminConnection]:
    try:
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise_configuration_error("the path of the spool is a link, or not a regular file")
        except (FileNotFoundError, NotADirectoryError):
            raise_configuration_error("there is no spool")
        db = AdminConnection(path, wait=wait, erase=erase)
        try:
            yield db
        finally:
            db.close()
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except SpoolError as error:
        raise SpoolError(f"{path}: {error.message}", uncertain=None, is_damaged=error.is_damaged) from None
    except Exception as error:
        if is_damage(error):
            if is_text(path):
                raise ConfigurationError(f"{path}: the file is a text, and not a spool") from None
            text = f"{path}: the spool is damaged ({error}); the next client sets it aside and saves what can be read"
            raise SpoolError(text, uncertain=None, is_damaged=True) from None
        if isinstance(error, sqlite3.Error):
            raise SpoolError(f"{path}: the spool cannot be used ({error})", uncertain=None) from None
        if isinstance(error, PermissionError):
            raise SpoolError(f"{path}: the spool cannot be used (permission denied)", uncertain=None) from None
        raise


def pause() -> None:
    """Let others have their turn: who writes without a pause keeps the lock from them."""
    threading.Event().wait(_PAUSE_SECONDS)
