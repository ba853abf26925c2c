"""Which of 100 buckets a person falls into: 64-bit FNV-1a of the person and a salt, modulo 100.

Every SDK of Mixpanel's hashes the person first and the salt, which is long and the same for everybody, behind it.
`Salt` gets over it in one multiplication. For a step is `h' = (h ^ byte) * PRIME`, and `^ byte` changes the lowest
eight bits of `h` only, by an amount that depends on them alone; and so do the lowest eight bits of `h'`. Over a salt
of n bytes that makes `h * PRIME**n + c`, all modulo 2**64, where `c` depends on the salt and on the lowest eight bits
of `h`.
"""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 100
_OFFSET: Final = 0xCBF29CE484222325
_PRIME: Final = 0x100000001B3
_MASK: Final = 0xFFFFFFFFFFFFFFFF


def fnv1a64(data: bytes, state: int = _OFFSET) -> int:
    """64-bit FNV-1a, from the beginning or from where an earlier part of the data left it."""
    # Locals, as this is where the time goes that evaluating a flag takes.
    prime, mask = _PRIME, _MASK
    for byte in data:
        state = ((state ^ byte) * prime) & mask
    return state


def state_of(person: str) -> int:
    """The hash of a person, before any salt.

    Raises:
        UnicodeEncodeError: if the text has a lone surrogate in it.
    """
    return fnv1a64(person.encode())


class Salt:
    """The end of what is hashed, the same for every person.

    Args:
        text: the salt.
    """

    __slots__ = ("_data", "_power", "_sums")

    def __init__(self, text: str) -> None:
        self._data = text.encode()
        self._power = pow(_PRIME, len(self._data), _MASK + 1)
        # At most 256, and each is made when it is needed: most flags are never asked for by most processes.
        self._sums: dict[int, int] = {}

    def bucket(self, state: int) -> int:
        """The bucket, 0 to 99, of a person's hash followed by this salt."""
        low = state & 0xFF
        added = self._sums.get(low)
        if added is None:
            added = self._sums[low] = (fnv1a64(self._data, low) - low * self._power) & _MASK
        return ((state * self._power + added) & _MASK) % BUCKETS
