"""Detection of a file's format by its content. The file name decides only between formats that the content allows.

Pure: works on the first bytes of the decompressed content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from .option_values import Format

SAMPLE_BYTES: Final = 64 * 1024
"""Number of bytes that detection needs, if the file has as many."""
PARQUET_MAGIC: Final = b"PAR1"

_COMPRESSION_SUFFIXES: Final = (".gz", ".gzip", ".zst", ".zstd", ".zip")
_FORMAT_BY_SUFFIX: Final[Mapping[str, Format]] = {
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
}
_JSON_FORMATS: Final = frozenset({Format.NDJSON, Format.JSON})
_TABLE_FORMATS: Final = frozenset({Format.CSV, Format.TSV})
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
# Beginnings of a JSON object and of a JSON array. A header such as `[id],[name]` is no array.
_OBJECT_START: Final = re.compile(rb'\{\s*(?:["}]|$)')
_ARRAY_START: Final = re.compile(rb'\[\s*(?:["{\[\]\d-]|true|false|null|$)')
_QUOTED: Final = re.compile(rb'"[^"]*"?')
# In a CSV cell the quote would be doubled.
_OBJECT_LINE: Final = re.compile(rb'^[ \t]*\{\s*"[^"]', re.MULTILINE)


class FormatError(ValueError):
    """The format cannot be detected, or is not the given one. The message begins with a verb: "is ..."."""


class UnknownFormatError(FormatError):
    """The content has no known format."""


def detect_format(sample: bytes, name: str, given: Format = Format.AUTO, delimiter: str | None = None) -> Format:
    """Return the format of a file.

    Args:
        sample: first bytes of the decompressed content, at least `SAMPLE_BYTES` unless there are fewer.
        name: name of the file.
        given: value of `--format`.
        delimiter: value of `--delimiter`.

    Raises:
        UnknownFormatError: if the content has no known format.
        FormatError: if it clearly has not the given one, or is UTF-16.
    """
    if sample.startswith(PARQUET_MAGIC):
        return _confirm(Format.PARQUET, given)
    _check_encoding(sample)
    text = sample.removeprefix(_UTF8_BOM).lstrip()
    named = _format_from_name(name)
    likely = _likely_format(text, named, delimiter)
    if given is not Format.AUTO:
        return given if likely is None else _confirm(likely, given)
    if likely is not None:
        return likely
    is_explained = named in _TABLE_FORMATS or (named in _JSON_FORMATS and _may_be_json(text))
    if text and not is_explained:
        raise UnknownFormatError(
            "is neither JSON nor a table with a header of several columns; if it is a table with one column, use "
            "--format csv"
        )
    return Format.JSON if named in {Format.AUTO, Format.PARQUET} else named


def _likely_format(text: bytes, named: Format, delimiter: str | None) -> Format | None:
    """Return the format that the content has, or None if the content allows several or none."""
    if _OBJECT_START.match(text):
        return _object_format(text, named)
    if _ARRAY_START.match(text):
        return _array_format(text)
    # A damaged first line does not make a table of a file with objects in its other lines.
    if not text or _OBJECT_LINE.search(text) or b"\0" in text:
        return None
    header = _QUOTED.sub(b"", text.partition(b"\n")[0])
    if delimiter is not None and delimiter.encode(errors="surrogateescape") in header:
        return named if named in _TABLE_FORMATS else Format.CSV
    commas, tabs = header.count(b","), header.count(b"\t")
    if (named is Format.CSV and commas) or (named is Format.TSV and tabs):
        return named
    if commas or tabs:
        return Format.CSV if commas >= tabs else Format.TSV
    # The CSV reader names the option for another delimiter.
    return Format.CSV if b";" in header or b"|" in header else None


def _may_be_json(text: bytes) -> bool:
    """Return whether text that does not begin with valid JSON may contain it: a line of it is damaged."""
    return text[:1] in {b"{", b"["} or _OBJECT_LINE.search(text) is not None


def _object_format(text: bytes, named: Format) -> Format:
    """Return the format of content that begins with an object: one on each line, or any number over several lines."""
    line, newline, rest = text.partition(b"\n")
    # An object over several lines has a line break right after its opening brace.
    if not newline or _is_json(line):
        return Format.NDJSON
    text_line, decoded = line.decode(errors="surrogateescape"), text.decode(errors="surrogateescape")
    try:
        _, end = json.JSONDecoder().raw_decode(decoded)
    except (ValueError, RecursionError):
        # The first line is damaged, or the object continues after the sample.
        is_by_line = named is Format.NDJSON or (line.strip() != b"{" and _OBJECT_LINE.match(rest) is not None)
    else:
        # The decoder accepts NaN, which makes only this line invalid.
        is_by_line = end <= len(text_line) and not decoded[end : len(text_line)].strip()
    return Format.NDJSON if is_by_line else Format.JSON


def _array_format(text: bytes) -> Format:
    """Return the format of content that begins with an array: usually JSON, or lines of which the first is an array."""
    line, _, rest = text.partition(b"\n")
    return Format.NDJSON if rest.strip() and _is_json(line) else Format.JSON


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def _check_encoding(sample: bytes) -> None:
    """Raise `FormatError` for UTF-16, with or without a byte order mark."""
    # An ASCII character in UTF-16 has one null byte, always in the same half of its pair.
    nulls = sorted((sample[:512:2].count(0), sample[1:512:2].count(0)))
    is_wide = nulls[0] * 4 < nulls[1] and nulls[1] * 4 > min(len(sample), 512)
    if sample[:2] in _UTF16_BOMS or is_wide:
        raise FormatError("is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8")


def _confirm(likely: Format, given: Format) -> Format:
    """Return the given format if it can read content of the likely one.

    Raises:
        FormatError: if it cannot.
    """
    is_table = likely in _TABLE_FORMATS and given in _TABLE_FORMATS
    # The reader of JSON also reads one object per line.
    is_json = likely is Format.NDJSON and given is Format.JSON
    if given in {Format.AUTO, likely} or is_table or is_json:
        return likely if given is Format.AUTO else given
    raise FormatError(f"is {_LABELS[likely]}, not {_LABELS[given]}; use --format {likely.value}, or leave --format out")


_LABELS: Final[Mapping[Format, str]] = {
    Format.NDJSON: "NDJSON (one JSON object per line)",
    Format.JSON: "JSON (an array, or objects over several lines)",
    Format.CSV: "CSV",
    Format.TSV: "TSV",
    Format.PARQUET: "Parquet",
}


def _format_from_name(name: str) -> Format:
    path = Path(name)
    if path.suffix.lower() in _COMPRESSION_SUFFIXES:
        path = path.with_suffix("")
    return _FORMAT_BY_SUFFIX.get(path.suffix.lower(), Format.AUTO)
