"""Packed records are unpacked as they were, and damaged bodies are noticed."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import orjson
import pytest
from conformance import TOKEN, entry_of
from hypothesis import given
from hypothesis import strategies as st

from mixpanel_async._encoding.requests import fastest_compressor, zlib_compressor
from mixpanel_async._model.records import IdentityRecord, NonIdempotentRecord, Record
from mixpanel_async.outbox import Entry
from mixpanel_async.outbox.packing import SpoiledBodyError, hide_token, pack, stored_form, unpack

TEXTS = st.text(max_size=50) | st.just(TOKEN) | st.just("\n\x01") | st.text("ab", min_size=1200, max_size=1300)


def entry_from(records: list[bytes], compressor: Any, lane: str = "events") -> Entry:
    packed = pack(records, TOKEN, compressor)
    once = tuple(at for at, one in enumerate(records) if isinstance(one, NonIdempotentRecord))
    return replace(
        entry_of(lane=lane),
        records=len(records),
        body=packed.body,
        is_compressed=packed.is_compressed,
        non_idempotent=once,
    )


@given(st.lists(st.tuples(TEXTS, st.booleans()), min_size=1), st.sampled_from([None, zlib_compressor]))
def test_records_are_unpacked_as_they_were(texts: list[tuple[str, bool]], compressor: Any) -> None:
    records = [
        (NonIdempotentRecord if once else Record)(orjson.dumps({"a": text, "token": TOKEN})) for text, once in texts
    ]
    entry = entry_from([*records], compressor)
    found = unpack(entry, TOKEN)
    assert found == records
    assert [*map(type, found)] == [*map(type, records)]
    assert stored_form(entry) == [hide_token(one, TOKEN) for one in records]
    assert not any(TOKEN.encode() in one for one in stored_form(entry))


def test_identity_records_keep_their_type() -> None:
    (found,) = unpack(entry_from([IdentityRecord(b'{"a":1}')], None, lane="identity"), TOKEN)
    assert type(found) is IdentityRecord


@pytest.mark.parametrize("size", [1023, 1024])
def test_only_bodies_from_1_kib_are_compressed(size: int) -> None:
    packed = pack([b"{%b}" % (b"a" * (size - 2))], TOKEN, fastest_compressor()[0])
    assert packed.is_compressed == (size == 1024)
    assert pack([b"{%b}" % (b"a" * 5000)], TOKEN).is_compressed is False


PLAIN = entry_from([b'{"a":1}', b'{"b":2}'], None)
GZIP = entry_from([b'{"a":"%b"}' % (b"a" * 2000)], zlib_compressor)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (replace(PLAIN, records=3), "2 records instead of 3"),
        (replace(PLAIN, body=b""), "1 records instead of 2"),
        (replace(PLAIN, body=b'{"a":1}\n{"b":'), "no JSON object"),
        (replace(PLAIN, is_compressed=True), "not valid gzip"),
        (replace(GZIP, body=GZIP.body[:-1]), "not one complete"),
        (replace(GZIP, body=GZIP.body + b"a"), "not one complete"),
        (replace(GZIP, body=GZIP.body[:20] + b"\xff\xff\xff" + GZIP.body[23:]), "gzip"),
        (replace(GZIP, body=gzip.compress(b"a" * 70_000_000, 1)), "more than 67108864 bytes"),
    ],
)
def test_spoiled_body_is_noticed(entry: Entry, words: str) -> None:
    with pytest.raises(SpoiledBodyError, match=words):
        unpack(entry, TOKEN)
