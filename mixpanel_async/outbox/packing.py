r"""Form of the records of one entry: joined with line ends, without the token, compressed if they are large (pure).

JSON contains no raw line end and no raw control character, so that `\n` separates records, and `\x01` can stand for the
encoded token.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import orjson

from .._encoding import stored_records
from .._encoding.batch_body import Compressor
from .._encoding.requests import MIN_COMPRESSED_BYTES
from .._model.records import IdentityRecord, NonIdempotentRecord, Record, RecordKind
from .lanes import kind_of
from .protocol import Entry

# A batch has at most 10 MB. A compressed body of some kB could otherwise fill the memory.
_MAX_UNPACKED_BYTES: Final = 64 * 1024 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


class Packed(NamedTuple):
    """Packed records.

    Args:
        body: the bytes to store.
        is_compressed: whether they are compressed with gzip.
    """

    body: bytes
    is_compressed: bool


class SpoiledBodyError(ValueError):
    """The body of an entry is not what `pack` returned. The message contains no payload."""


def pack(records: Iterable[bytes], token: str, new_compressor: Callable[[], Compressor] | None = None) -> Packed:
    """Pack the encoded records of one entry.

    Args:
        records: encoded records; at least one.
        token: token of the project.
        new_compressor: returns a gzip compressor for bodies of at least 1 KiB, as `fastest_compressor` does; None to
            compress nothing.
    """
    body = stored_records.hide_token(b"\n".join(records), orjson.dumps(token))
    if new_compressor is None or len(body) < MIN_COMPRESSED_BYTES:
        return Packed(body, is_compressed=False)
    compressor = new_compressor()
    return Packed(compressor.compress(body) + compressor.flush(), is_compressed=True)


def unpack(entry: Entry, token: str) -> list[bytes]:
    """Return the encoded records of an entry, with the types that they had before they were packed.

    Raises:
        SpoiledBodyError: if the body is damaged, or has another number of records than the entry says.
    """
    body = stored_records.show_token(_plain_body(entry), orjson.dumps(token))
    once_only = frozenset(entry.non_idempotent)
    usual = IdentityRecord if kind_of(entry.lane) == RecordKind.IDENTITY.value else Record
    return [
        NonIdempotentRecord(item) if position in once_only else usual(item)
        for position, item in enumerate(_split(body, entry.records))
    ]


def stored_form(entry: Entry) -> list[bytes]:
    """Return the records of an entry with the token still replaced, as in `DeadEntry.records`.

    Raises:
        SpoiledBodyError: as in `unpack`.
    """
    return _split(_plain_body(entry), entry.records)


def hide_token(record: bytes, token: str) -> bytes:
    """Return an encoded record with the token replaced, for `DeadEntry.records`."""
    return stored_records.hide_token(bytes(record), orjson.dumps(token))


def positions_of_non_idempotent(records: Sequence[bytes]) -> tuple[int, ...]:
    """Return the positions of the records that must not be sent twice."""
    return tuple(at for at, item in enumerate(records) if isinstance(item, NonIdempotentRecord))


def _plain_body(entry: Entry) -> bytes:
    if not entry.is_compressed:
        return entry.body
    decompressor = zlib.decompressobj(_GZIP)
    try:
        body = decompressor.decompress(entry.body, _MAX_UNPACKED_BYTES)
    except zlib.error:
        raise SpoiledBodyError("the body is not valid gzip") from None
    if decompressor.unconsumed_tail:
        raise SpoiledBodyError(f"the body has more than {_MAX_UNPACKED_BYTES} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise SpoiledBodyError("the body is not one complete gzip member")
    return body


def _split(body: bytes, count: int) -> list[bytes]:
    records = body.split(b"\n")
    if len(records) != count:
        raise SpoiledBodyError(f"the body has {len(records)} records instead of {count}")
    if not all(item.startswith(b"{") and item.endswith(b"}") for item in records):
        raise SpoiledBodyError("the body has a record that is no JSON object")
    return records
