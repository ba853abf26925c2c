"""Persons whose records must not be sent any more (pure). The queue stores keyed hashes of their ids."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from .._encoding.stored_records import persons_of, stored_payload
from .packing import SpoiledBodyError, stored_form
from .protocol import Entry


class ErasedPersons:
    """Persons that were erased, and when.

    Args:
        salt: key of the hashes, which is random for each queue.
        times: seconds since 1970 of each erasure, by hash.
    """

    def __init__(self, salt: str, times: Mapping[str, float]) -> None:
        self._salt = salt
        self._times = times

    def positions(self, entry: Entry, since: float) -> tuple[int, ...]:
        """Return the positions of the records in an entry that name a person erased later.

        Args:
            entry: the entry.
            since: when it was accepted or put, whichever was first, in seconds since 1970.
        """
        later = self._erased_since(since)
        if not later:
            return ()
        try:
            records = stored_form(entry)
        except SpoiledBodyError:
            return ()
        return tuple(position for position, body in enumerate(records) if self._names_one_of(body, later))

    def names(self, body: bytes, since: float) -> bool:
        """Return whether an encoded record names a person erased at `since`, in seconds since 1970, or later."""
        later = self._erased_since(since)
        return bool(later) and self._names_one_of(body, later)

    def _erased_since(self, since: float) -> set[str]:
        return {person for person, time in self._times.items() if time >= since}

    def _names_one_of(self, body: bytes, hashes: set[str]) -> bool:
        payload = stored_payload(body)
        return payload is not None and any(hash_of(one, self._salt) in hashes for one in persons_of(payload))


def hash_of(text: str, salt: str) -> str:
    """Return the keyed hash of an id or token."""
    return hmac.new(salt.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]
