"""Bucket of a user, 0 to 99: 64-bit FNV-1a of the user's id and a salt, modulo 100.

All Mixpanel SDKs hash the id first and then the salt, which is long and the same for all users. `Salt` replaces the
loop over its bytes by one multiplication. One step of the hash is `h' = (h ^ byte) * PRIME`. `^ byte` changes only the
lowest eight bits of `h`, by an amount that depends on these bits alone, and the lowest eight bits of `h'` depend on
nothing else either. Over a salt of n bytes the result is therefore `h * PRIME**n + c` modulo 2**64, where `c` depends
on the salt and on the lowest eight bits of `h`.
"""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 100
_OFFSET: Final = 0xCBF29CE484222325
_PRIME: Final = 0x100000001B3
_MASK: Final = 0xFFFFFFFFFFFFFFFF


def fnv1a64(data: bytes, state: int = _OFFSET) -> int:
    """Return the 64-bit FNV-1a hash. `state` continues the hash of an earlier part of the data."""
    # Local variables: most of the time of an evaluation is spent in this loop.
    prime, mask = _PRIME, _MASK
    for byte in data:
        state = ((state ^ byte) * prime) & mask
    return state


def state_of(user: str) -> int:
    """Return the hash of a user's id, before any salt.

    Raises:
        UnicodeEncodeError: the id contains a lone surrogate.
    """
    return fnv1a64(user.encode())


class Salt:
    """Last part of the hashed data. It is the same for all users.

    Args:
        text: the salt.
    """

    __slots__ = ("_addends", "_data", "_power")

    def __init__(self, text: str) -> None:
        self._data = text.encode()
        self._power = pow(_PRIME, len(self._data), _MASK + 1)
        # The constants `c` by the lowest eight bits. Computed on demand: most processes use few of their flags.
        self._addends: dict[int, int] = {}

    def bucket(self, state: int) -> int:
        """Return the bucket, 0 to 99, of a user's hash followed by this salt."""
        low = state & 0xFF
        added = self._addends.get(low)
        if added is None:
            added = self._addends[low] = (fnv1a64(self._data, low) - low * self._power) & _MASK
        return ((state * self._power + added) & _MASK) % BUCKETS
