"""Lookup tables of a project.

Sources: https://docs.mixpanel.com/reference/replace-lookup-table (read 2026-08-21), Mixpanel's OpenAPI description of
the ingestion API, and the requests of `mixpanel-import` 3.1.

Decisions where Mixpanel's documents are silent, or where the emulator differs
    - A table is created when it is first replaced, with its id as its name: there is no other way to create one here.
    - A table has at most 10 MiB, as other requests have, and all tables together 100 MiB. Mixpanel allows 100 MB each.
    - Tables are kept in memory only, also with `data_dir`. They change no events. Frequency is not limited.
    - The index of a failed record counts rows from 0, without the header.
    - The secret may also list the tables. Access is otherwise as in `export`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .bodies import MAX_BYTES, BadBodyError, gunzip
from .responses import EmulatorResponse, json_response

LOOKUP_TABLES: Final = "/lookup-tables"

# The default limit of the module csv, which other code of the process may have changed.
_MAX_FIELD_CHARACTERS: Final = 131_072
_MAX_TOTAL_BYTES: Final = 100 * 1024 * 1024
_MAX_TABLES: Final = 1_000
_MAX_FAILED: Final = 10
_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("Some data points in the request failed validation.", "Bad Request"),
    401: ("Invalid credentials", "Unauthorized"),
    404: ("Not found", "Not Found"),
    413: (f"request exceeds max limit of {MAX_BYTES} bytes", "Request Entity Too Large"),
}
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class LookupTables:
    """Lookup tables by id, as CSV in UTF-8."""

    def __init__(self) -> None:
        self._tables: dict[str, bytes] = {}

    def list_all(self) -> EmulatorResponse:
        """Return the response to a request for the names of all tables."""
        results = [{"id": table, "name": table} for table in self._tables]
        return json_response(200, {"code": 200, "status": "OK", "results": results})

    def replace(self, table_id: str, content: bytes) -> EmulatorResponse:
        """Replace a table, or create it, and return the response.

        Args:
            table_id: id of the table.
            content: the table as `decode_table` returns it.
        """
        others = {other: len(stored) for other, stored in self._tables.items() if other != table_id}
        if sum(others.values()) + len(content) > _MAX_TOTAL_BYTES or len(others) >= _MAX_TABLES:
            return lookup_error(
                413, f"the emulator keeps {_MAX_TABLES} lookup tables of {_MAX_TOTAL_BYTES} bytes together"
            )
        self._tables[table_id] = content
        return json_response(200, {"code": 200, "status": "OK"})

    def contents(self) -> dict[str, bytes]:
        """Return all tables by id, for `table_rows`."""
        return dict(self._tables)


def lookup_error(code: int, error: str = "", failed: list[dict[str, Any]] | None = None) -> EmulatorResponse:
    """Return the response that refuses a request.

    Args:
        code: HTTP status: 400, 401, 404 or 413.
        error: error text; by default that of Mixpanel's example for the status.
        failed: problems of invalid rows, at least one, or None.
    """
    text, status = _ERRORS[code]
    content: dict[str, Any] = {"code": code, "error": error or text, "status": status}
    if failed is None:
        return json_response(code, content, reason=error or text)
    return json_response(code, content | {"failed_records": failed}, reason=failed[0]["message"])


def decode_table(table_id: str, body: bytes, content_encoding: str) -> bytes | EmulatorResponse:
    """Return an uploaded table, uncompressed and checked, or the response that refuses it.

    Args:
        table_id: id of the table, from the path.
        body: the table as CSV, with a header. The first column is the key.
        content_encoding: value of the header; may be empty.
    """
    if not _ID.fullmatch(table_id):
        return lookup_error(404, f"Lookup table with id {table_id[:64]!r} was not found.")
    try:
        content = gunzip(body) if content_encoding.strip().lower() == "gzip" else body
    except BadBodyError as error:
        return lookup_error(error.status, error.message)
    if len(content) > MAX_BYTES:
        return lookup_error(413)
    try:
        failed = list(_failed_records(_text(content)))
    except UnicodeDecodeError:
        return lookup_error(400, "body is not valid UTF-8")
    except csv.Error as error:
        return lookup_error(400, f"body is not valid CSV: {error}")
    return lookup_error(400, failed=failed) if failed else content


def table_rows(content: bytes) -> list[dict[str, str]]:
    """Return the rows of a table, each as an object by column."""
    return list(csv.DictReader(io.StringIO(_text(content), newline="")))


def _text(content: bytes) -> str:
    # Without the mark that Excel puts at the start.
    return content.decode("utf-8-sig")


def _failed_records(text: str) -> Iterator[dict[str, Any]]:
    """Yield the problems of the first invalid rows."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    if not any(header):
        yield {"index": 0, "message": "header is missing"}
        return
    number = failed = 0
    for row in reader:
        if not row:
            continue
        if any(len(field) > _MAX_FIELD_CHARACTERS for field in row):
            raise csv.Error(f"field larger than field limit ({_MAX_FIELD_CHARACTERS})")
        message = (
            "invalid row: wrong number of fields"
            if len(row) != len(header)
            else "primary key is required and cannot be blank"
            if not row[0].strip()
            else None
        )
        if message is not None and failed < _MAX_FAILED:
            failed += 1
            yield {"index": number, "message": message}
        number += 1
