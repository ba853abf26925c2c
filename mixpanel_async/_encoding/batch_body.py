"""The records of a batch: a sequence of their bytes that keeps neighbours in one piece.

Thousands of small objects, spread over the heap, cost more to join than to encode. Records that come many at a time
are therefore joined when they come, while the processor still has them at hand, and cut apart only if somebody asks for
one of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol, overload

from .fast_event import apart

_PIECE_BYTES: Final = 32 * 1024


class Packer(Protocol):
    """Compresses what it is fed, as `zlib.compressobj` does."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Parcel(Sequence[bytes]):
    """Grows at its end; what it is made of does not change.

    Args:
        items: what it holds at first.
        new_packer: makes what compresses records when they come, a little at a time, and forgets their types; None if
            that is not wanted.
    """

    __slots__ = (
        "_count",
        "_cuts",
        "_joined",
        "_loose",
        "_new_packer",
        "_out",
        "_packed",
        "_packer",
        "_pieces",
        "_sealed",
    )

    def __init__(self, items: Iterable[bytes] = (), new_packer: Callable[[], Packer] | None = None) -> None:
        self._new_packer = new_packer
        self._packer: Packer | None = None
        self._sealed: bytes | None = None
        # What the packer has given so far, and of how many pieces.
        self._out: list[bytes] = []
        self._packed = 0
        self._pieces = list(items)
        # Of each piece: what cuts it into its records, each with a comma before it; None if it is a record.
        self._cuts: list[Callable[[bytes], Iterable[bytes]] | None] = [None] * len(self._pieces)
        self._count = len(self._pieces)
        # How many pieces are as they stay, and the size of those behind them, which came one by one.
        self._joined = self._loose = 0

    def append(self, item: bytes) -> None:
        """Add one record."""
        self._pieces.append(item)
        self._cuts.append(None)
        self._count += 1
        self._sealed = None
        self._loose += len(item)
        if self._loose >= _PIECE_BYTES and self._new_packer is not None:
            at = self._joined
            items = self._pieces[at:]
            del self._pieces[at:], self._cuts[at:]
            self._add(b",".join((b"", *items)), partial(_cut, array("L", map(len, items))))

    def pack(self, records: bytes, count: int) -> int:
        """Add so many usual events that are `together`.

        Returns:
            By how many bytes a body grows, commas included.
        """
        self._count += count
        self._add(records, apart)
        return len(records)

    def _add(self, piece: bytes, cut: Callable[[bytes], Iterable[bytes]]) -> None:
        self._pieces.append(piece)
        self._cuts.append(cut)
        self._joined, self._loose, self._sealed = len(self._pieces), 0, None
        if self._new_packer is not None:
            if self._packer is None:
                self._packer = self._new_packer()
            self._feed(self._packer)

    def _feed(self, packer: Packer) -> None:
        for at in range(self._packed, len(self._pieces)):
            if at == 0:
                self._out.append(packer.compress(b"[" + self._with_comma(at)[1:]))
            else:
                self._out.append(packer.compress(self._with_comma(at)))
        self._packed = len(self._pieces)

    def _with_comma(self, at: int) -> bytes:
        # To feed a comma by itself would cost as much as a thousand bytes.
        return self._pieces[at] if self._cuts[at] else b"," + self._pieces[at]

    @property
    def size(self) -> int:
        """Bytes of the body of a request."""
        return sum(map(len, self._pieces)) + self._cuts.count(None) + 1

    @property
    def is_packed(self) -> bool:
        """Whether most of it has been compressed, so that the rest is quickly done."""
        return self._packer is not None or self._sealed is not None

    def seal(self) -> None:
        """End what was compressed as it came: what that takes is far more than what it gives."""
        packer, self._packer, self._new_packer = self._packer, None, None
        if packer is not None:
            self._feed(packer)
            self._sealed = b"".join((*self._out, packer.compress(b"]"), packer.flush()))
            self._out.clear()

    def compressed(self, new_packer: Callable[[], Packer]) -> bytes:
        """The body of a request, compressed."""
        self.seal()
        if self._sealed is not None:
            return self._sealed
        packer = new_packer()
        return packer.compress(self.body()) + packer.flush()

    def body(self) -> bytes:
        """The body of a request: all of them, with a comma between two, in brackets."""
        return b"[%b]" % b"".join(map(self._with_comma, range(len(self._pieces))))[1:]

    def pop_first(self) -> bytes:
        """Take the first record out."""
        self._packer = self._new_packer = self._sealed = None
        self._pieces = [*self]
        self._count -= 1
        self._cuts = [None] * self._count
        return self._pieces.pop(0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        for piece, cut in zip(self._pieces, self._cuts, strict=True):
            if cut is None:
                yield piece
            else:
                yield from cut(piece)

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        return [*self][at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]


def _cut(sizes: Iterable[int], piece: bytes) -> Iterator[bytes]:
    """Records of these sizes, with a comma before each."""
    at = 1
    for size in sizes:
        yield piece[at : at + size]
        at += size + 1
