"""Connection for inspecting a spool while clients use it. It creates no file and changes no foreign database."""

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
from .database import LANES, OWNER_SHIFT, Database, id_ranges, lane_start
from .files import is_text
from .messages import SENDING, SEQUENCE_BITS
from .report import SpoolCount
from .schema import APPLICATION_ID, is_damage

ROWS_PER_TRANSACTION: Final = 10_000
_PAGES_PER_TRANSACTION: Final = 2_000
# Seconds between two transactions, so that clients get the write lock.
_PAUSE_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Selection of dead letters.

    Args:
        reasons: dead letters with one of these reasons; None for all except `except_reasons`.
        except_reasons: reasons to leave out if `reasons` is None.
        ids: dead letters with one of these ids; None for all.
        died_before: seconds since 1970.

    Raises:
        ConfigurationError: if a reason is unknown.
    """

    reasons: Collection[str] | None = None
    except_reasons: Collection[str] = ()
    ids: Collection[int] | None = None
    died_before: float = inf

    def __post_init__(self) -> None:
        if isinstance(self.reasons, str) or isinstance(self.ids, (str, bytes)):
            raise_configuration_error("reasons and ids must be collections such as lists, not single values")
        known = {reason.value for reason in DropReason}
        if unknown := set(self.reasons or ()) - known:
            first = min(map(str, unknown))
            raise_configuration_error(f"unknown reason {first!r}; use one of DropReason: {', '.join(sorted(known))}")

    def matches(self, number: int, reason: str, died: float) -> bool:
        is_named = reason not in self.except_reasons if self.reasons is None else reason in self.reasons
        return is_named and died <= self.died_before and (self.ids is None or number in self.ids)


class AdminConnection(Database):
    """Connection for inspection and repair.

    Args:
        path: spool file.
        timeout: seconds to wait for a transaction of another process.
        erase: whether all deleted data is overwritten.

    Raises:
        ConfigurationError: if the path holds no spool.
        Damaged, sqlite3.Error: if the spool cannot be used.
    """

    def __init__(self, path: Path, *, timeout: float, erase: bool = False) -> None:
        self.path = path
        # The garbage collector may close an unfinished iterator in another thread.
        self._db = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            if self._number("PRAGMA application_id") != APPLICATION_ID:
                raise_configuration_error("the file is not a spool; check the path")
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
        """Return the errors found by SQLite's check; `ok` if it finds no error."""
        try:
            found = self.find_damage(3)[:3]
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return str(error)
        return "; ".join(" ".join(text.split()) for text in found) or "ok"

    def owner_lanes(self) -> Iterator[tuple[int, int]]:
        """Yield owners and their lanes that hold rows. Reads one row of each range."""
        after = 0
        while (number := self._number("SELECT id FROM records WHERE id > ? ORDER BY id LIMIT 1", after)) > after:
            yield number >> OWNER_SHIFT, number >> SEQUENCE_BITS & (LANES - 1)
            after = (number >> SEQUENCE_BITS << SEQUENCE_BITS) + (1 << SEQUENCE_BITS) - 1

    def count(self, owner: int, lane: int) -> tuple[int, int, int, bytes]:
        """Return the rows of a lane, their bytes, the number being sent, and the body of the first."""
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
        """Return id and body size of the selected dead letters."""
        found = self._db.execute("SELECT id, length(body), reason, died FROM dead ORDER BY id")
        return [(number, size) for number, size, reason, died in found if wanted.matches(number, reason, died)]

    def dead_letters(self, ids: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return those dead letters that exist: id, project, lane, state, reason, message, died, body."""
        columns = "id, project, lane, state, reason, message, died, body"
        return [
            row
            for span in id_ranges(ids)
            for row in self._db.execute(f"SELECT {columns} FROM dead WHERE id BETWEEN ? AND ?", span)  # noqa: S608
        ]

    def remove(self, table: str, ids: Iterable[int]) -> int:
        """Delete rows of `records` or `dead`. Return how many existed."""
        return sum(
            self._db.execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", span).rowcount  # noqa: S608
            for span in id_ranges(ids)
        )

    def remove_first(self, after: int, end: int) -> int:
        """Delete the first `ROWS_PER_TRANSACTION` rows between two ids. Return how many."""
        last = self._number(
            "SELECT max(id) FROM (SELECT id FROM records WHERE id > ? AND id < ? ORDER BY id LIMIT ?)",
            after,
            end,
            ROWS_PER_TRANSACTION,
        )
        return self._db.execute("DELETE FROM records WHERE id > ? AND id <= ?", (after, last)).rowcount

    def candidates(self, table: str, text: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield id and body of the rows of `records` or `dead` whose bodies contain `text`."""
        yield from self._db.execute(f"SELECT id, body FROM {table} WHERE instr(body, ?) > 0", (text,))  # noqa: S608

    def vacuum(self) -> None:
        """Return all free pages to the file system and truncate the log, so that deleted data is in neither."""
        before = 0
        while (free := self._number("PRAGMA freelist_count")) and free != before:
            before = free
            # `execute` would stop after the first page; only `executescript` runs the pragma to its end.
            self._db.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_TRANSACTION})")
            pause()
        self.checkpoint()


@contextmanager
def open_admin_connection(path: Path, timeout: float, *, erase: bool = False) -> Iterator[AdminConnection]:
    """Open a spool for inspection. Errors name the path."""
    try:
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise_configuration_error("the path is a symbolic link or not a regular file")
        except (FileNotFoundError, NotADirectoryError):
            raise_configuration_error("there is no spool at this path")
        db = AdminConnection(path, timeout=timeout, erase=erase)
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
                raise ConfigurationError(f"{path}: the file is a text file, not a spool; check the path") from None
            text = (
                f"{path}: the spool is damaged ({error}); start a client to set it aside and recover readable records"
            )
            raise SpoolError(text, uncertain=None, is_damaged=True) from None
        if isinstance(error, sqlite3.Error):
            raise SpoolError(f"{path}: cannot use the spool ({error})", uncertain=None) from None
        if isinstance(error, PermissionError):
            raise SpoolError(f"{path}: cannot use the spool (permission denied)", uncertain=None) from None
        raise


def pause() -> None:
    """Wait between two transactions: a writer without pauses would starve the clients."""
    threading.Event().wait(_PAUSE_SECONDS)
