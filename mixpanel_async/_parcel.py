"""The records of a batch: a sequence of their bytes that keeps neighbours in one piece.

Thousands of small objects, spread over the heap, cost more to join than to encode. Records that come many at a time
are therefore joined when they come, while the processor still has them at hand, and cut apart only if somebody asks for
one of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class Parcel(Sequence[bytes]):
    """Grows at its end; what it is made of does not change.

    Args:
        items: what it holds at first.
    """

    __slots__ = ("_count", "_pieces", "_sizes")

    def __init__(self, items: Iterable[bytes] = ()) -> None:
        self._pieces = list(items)
        # Of each piece: the sizes of its records, or None if it is one.
        self._sizes: list[array[int] | None] = [None] * len(self._pieces)
        self._count = len(self._pieces)

    def append(self, item: bytes) -> None:
        """Add one record."""
        self._pieces.append(item)
        self._sizes.append(None)
        self._count += 1

    def pack(self, items: Sequence[bytes]) -> None:
        """Add records in one piece; their types are forgotten."""
        self._pieces.append(b",".join(items))
        self._sizes.append(array("L", map(len, items)))
        self._count += len(items)

    def pop_first(self) -> bytes:
        """Take the first record out."""
        self._pieces = [*self]
        self._count -= 1
        self._sizes = [None] * self._count
        return self._pieces.pop(0)

    def joined(self) -> bytes:
        """All of them, with a comma between two."""
        return b",".join(self._pieces)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        for piece, sizes in zip(self._pieces, self._sizes, strict=True):
            if sizes is None:
                yield piece
                continue
            at = 0
            for size in sizes:
                yield piece[at : at + size]
                at += size + 1

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        return [*self][at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]
