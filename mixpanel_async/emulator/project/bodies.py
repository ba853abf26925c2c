"""Decoding of request bodies from all official clients into lists of records.

Pure, and bounded: a compressed body is expanded only up to the size limit, so that a hostile request cannot exhaust
memory.

Sources: https://docs.mixpanel.com/reference/import-events and /reference/track-event (read 2026-08-21), and requests of
the official Python (form, raw JSON), Node (form, base64 not percent-encoded; GET with `?data=`), Go (JSON array, gzip)
and Java (form, gzip) clients.

Decisions where Mixpanel's documents are silent
    - The uncompressed limit is 10 MiB on every endpoint (the documents say 10 MB in one place and 2 MiB in another). A
      form may be three times as long because of percent-encoding, but not the data in it.
    - gzip is accepted on every endpoint. The documents exclude it for `/engage`, to which the Java SDK sends it.
    - A gzip body is one member without trailing data.
    - A body that begins with `[` or `{` is JSON, whatever the content type.
    - An invalid line of NDJSON, and a record of a JSON array with invalid UTF-8, fail without the other records.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import unquote_to_bytes

import orjson

MAX_RECORDS: Final = 2_000
MAX_BYTES: Final = 10 * 1024 * 1024
MAX_WIRE_BYTES: Final = 3 * MAX_BYTES + 64 * 1024

_MAX_FIELDS: Final = 32
_CHUNK: Final = 64 * 1024
# The Node and PHP SDKs do not percent-encode base64, so a plus sign arrives as a space. Tracking URLs of the Ruby SDK
# use the alphabet for URLs.
_BASE64: Final = bytes.maketrans(b" -_", b"++/")


class BadBodyError(Exception):
    """The whole request is unreadable.

    Args:
        status: HTTP status of the response, 400 or 413.
        message: description of the problem, without any data of the request.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBody:
    """Records of a request, not yet validated.

    Args:
        records: items of the array, objects of the lines, or the single object.
        fields: other fields of a form (`verbose`, `ip`, ...); empty for JSON.
        is_form: whether the data came in a form or a query string.
    """

    records: list[Any]
    fields: Mapping[str, str]
    is_form: bool


def decode_body(raw: bytes, *, content_type: str, content_encoding: str) -> DecodedBody:
    """Decode the body of a POST request.

    Args:
        raw: bytes as received, at most `MAX_WIRE_BYTES`.
        content_type: value of the header; may be empty.
        content_encoding: value of the header: empty, `identity` or `gzip`.

    Raises:
        BadBodyError: if the body is too large or does not match the headers.
    """
    encoding = content_encoding.strip().lower()
    if encoding == "gzip":
        raw = gunzip(raw)
    elif encoding not in {"", "identity"}:
        raise BadBodyError(400, "unsupported content encoding")
    kind = content_type.partition(";")[0].strip().lower()
    start = raw[:64].lstrip()[:1]
    if kind == "application/x-ndjson":
        _check_size(raw)
        return DecodedBody(records=_parse_lines(raw), fields={}, is_form=False)
    if start not in {b"[", b"{"} and (kind == "application/x-www-form-urlencoded" or raw.startswith(b"data=")):
        fields = _parse_form(raw)
        return DecodedBody(records=decode_data(fields.pop("data", b"")), fields=_decode_fields(fields), is_form=True)
    _check_size(raw)
    return DecodedBody(records=_parse_records(raw), fields={}, is_form=False)


def decode_data(data: bytes) -> list[Any]:
    """Decode a `data` field: a JSON object or array, in plain text or in base64.

    Raises:
        BadBodyError: if the data is neither, or too large.
    """
    data = data.strip()
    if not data:
        raise BadBodyError(400, "no data")
    if data[:1] not in {b"[", b"{"}:
        compact = data.translate(_BASE64).rstrip(b"=")
        try:
            data = base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise BadBodyError(400, "data is neither JSON nor base64") from None
    _check_size(data)
    return _parse_records(data)


def too_large() -> BadBodyError:
    """Return the error for a body beyond the size limit, in Mixpanel's words."""
    return BadBodyError(413, f"request exceeds max limit of {MAX_BYTES} bytes")


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_BYTES:
        raise too_large()


def gunzip(raw: bytes) -> bytes:
    """Return the content of a body in gzip, of at most `MAX_WIRE_BYTES`.

    Raises:
        BadBodyError: if the body is not one complete gzip member, or its content is too large.
    """
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        body = inflater.decompress(raw, MAX_WIRE_BYTES + 1)
    except zlib.error:
        raise BadBodyError(400, "body is not gzip") from None
    if len(body) > MAX_WIRE_BYTES:
        raise too_large()
    if not inflater.eof or inflater.unused_data:
        raise BadBodyError(400, "body is not one complete gzip member")
    return body


def _parse_form(raw: bytes) -> dict[str, bytes]:
    parts = raw.split(b"&", _MAX_FIELDS)
    if len(parts) > _MAX_FIELDS:
        raise BadBodyError(400, "form has too many fields")
    fields: dict[str, bytes] = {}
    for part in parts:
        name, _, value = part.partition(b"=")
        fields[_unquote(name[:256]).decode("utf-8", "replace")] = _unquote(value)
    return fields


def _decode_fields(fields: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value[:1024].decode("utf-8", "replace") for name, value in fields.items()}


def _unquote(value: bytes) -> bytes:
    """Undo form encoding chunk by chunk. The library function creates one object per escape, which bounds its input."""
    if b"%" not in value:
        return value.replace(b"+", b" ")
    plain = bytearray()
    start = 0
    while start < len(value):
        end = min(start + _CHUNK, len(value))
        if end < len(value):
            end -= next((back for back in (1, 2) if value[end - back] == 0x25), 0)
        plain += unquote_to_bytes(value[start:end].replace(b"+", b" "))
        start = end
    return bytes(plain)


def _parse_records(raw: bytes) -> list[Any]:
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        parsed = _loads_invalid_utf8(raw)
    if type(parsed) is list:
        records: list[Any] = parsed
    elif type(parsed) is dict:
        records = [parsed]
    else:
        raise BadBodyError(400, "body must be a JSON array or object")
    return _check_count(records)


def _parse_lines(raw: bytes) -> list[Any]:
    lines = raw.split(b"\n", 2 * MAX_RECORDS)
    return _check_count([_parse_line(line) for line in lines if line and not line.isspace()])


def _parse_line(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _check_count(records: list[Any]) -> list[Any]:
    if len(records) > MAX_RECORDS:
        raise BadBodyError(400, f"request has more than {MAX_RECORDS} records")
    return records


def _loads_invalid_utf8(raw: bytes) -> Any:
    """Parse JSON that contains invalid UTF-8, so that only the affected records are refused.

    Invalid text is returned with lone surrogates, which validation refuses.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if text.isascii() and b"\\ud" not in raw.lower():
        raise BadBodyError(400, "body is not valid JSON")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadBodyError(400, "body is not valid JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
