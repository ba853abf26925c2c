"""Encoded identity records: how to find them among other records, and where they are sent."""

from __future__ import annotations

from typing import Final

from .._model.records import RecordKind

# How the records of `RecordEncoder.encode_identity` begin. Ordinary events of these names begin with other properties.
_VERBS: Final = {
    b'{"event":"$create_alias","properties":{"distinct_id":': RecordKind.IDENTITY,
    b'{"event":"$identify","properties":{"$identified_id":': RecordKind.IDENTITY,
    b'{"event":"$merge","properties":{"$distinct_ids":': RecordKind.IMPORTS,
}
_VERB_STARTS: Final = tuple(_VERBS)


def identity_kind(record: bytes) -> RecordKind | None:
    """Return the kind that selects the endpoint of an identity record, or None for any other record.

    A merge has to go to `/import`. The others go to `/track`, also in a client with a service account: both endpoints
    take them, but Mixpanel does not document which fields `/import` requires of them.
    """
    if not is_identity(record):
        return None
    return next(kind for start, kind in _VERBS.items() if record.startswith(start))


def is_identity(record: bytes) -> bool:
    """Return whether a record is an identity record."""
    return record.startswith(_VERB_STARTS)
