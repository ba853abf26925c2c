"""Cache of the encoded forms of recent names and ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

CACHED_NAMES: Final = 1_000
CACHED_IDS: Final = 4_000
_MAX_TEXT_LENGTH: Final = 255
# Longer fragments are not cached, which bounds the memory of the caches.
_MAX_CACHED_BYTES: Final = 512


class FragmentCache(dict[object, bytes]):
    """Cache of fragments by name or id. It is emptied when it is full.

    Args:
        encode: returns the fragment of a key, or raises if the key needs validation.
        max_entries: number of cached fragments.
    """

    __slots__ = ("_encode", "_max_entries")

    def __init__(self, encode: Callable[[str], bytes], max_entries: int) -> None:
        self._encode = encode
        self._max_entries = max_entries

    def __missing__(self, key: object) -> bytes:
        if type(key) is not str or not 0 < len(key) <= _MAX_TEXT_LENGTH or key.isspace():
            raise KeyError
        fragment = self._encode(key)
        if len(fragment) <= _MAX_CACHED_BYTES:
            if len(self) >= self._max_entries:
                self.clear()
            self[key] = fragment
        return fragment
