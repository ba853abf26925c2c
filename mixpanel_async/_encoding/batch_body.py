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

from .fast_event import split_records

_CHUNK_BYTES: Final = 32 * 1024


class Compressor(Protocol):
    """Compresses what it is fed, as `zlib.compressobj` does."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class BatchBody(Sequence[bytes]):
    """Grows at its end; what it is made of does not change.

    Args:
        items: what it holds at first.
        new_packer: makes what compresses records when they come, a little at a time, and forgets their types; None if
            that is not wanted.
    """

    __slots__ = (
        "_chunks",
        "_compressed_chunks",
        "_compressor",
        "_count",
        "_finished",
        "_joined_chunks",
        "_loose_bytes",
        "_new_compressor",
        "_output",
        "_splitters",
    )

    def __init__(self, items: Iterable[bytes] = (), new_compressor: Callable[[], Compressor] | None = None) -> None:
        self._new_compressor = new_compressor
        self._compressor: Compressor | None = None
        self._finished: bytes | None = None
        # What the packer has given so far, and of how many pieces.
        self._output: list[bytes] = []
        self._compressed_chunks = 0
        self._chunks = list(items)
        # Of each piece: what cuts it into its records, each with a comma before it; None if it is a record.
        self._splitters: list[Callable[[bytes], Iterable[bytes]] | None] = [None] * len(self._chunks)
        self._count = len(self._chunks)
        # How many pieces are as they stay, and the size of those behind them, which came one by one.
        self._joined_chunks = self._loose_bytes = 0

    def append(self, item: bytes) -> None:
        """Add one record."""
        self._chunks.append(item)
        self._splitters.append(None)
        self._count += 1
        self._finished = None
        self._loose_bytes += len(item)
        if self._loose_bytes >= _CHUNK_BYTES and self._new_compressor is not None:
            at = self._joined_chunks
            items = self._chunks[at:]
            del self._chunks[at:], self._splitters[at:]
            self._add(b",".join((b"", *items)), partial(_split_by_size, array("L", map(len, items))))

    def extend(self, records: bytes, count: int) -> int:
        """Add so many usual events that are `together`.

        Returns:
            By how many bytes a body grows, commas included.
        """
        self._count += count
        self._add(records, split_records)
        return len(records)

    def _add(self, chunk: bytes, splitter: Callable[[bytes], Iterable[bytes]]) -> None:
        self._chunks.append(chunk)
        self._splitters.append(splitter)
        self._joined_chunks, self._loose_bytes, self._finished = len(self._chunks), 0, None
        if self._new_compressor is not None:
            if self._compressor is None:
                self._compressor = self._new_compressor()
            self._feed(self._compressor)

    def _feed(self, compressor: Compressor) -> None:
        for at in range(self._compressed_chunks, len(self._chunks)):
            if at == 0:
                self._output.append(compressor.compress(b"[" + self._with_comma(at)[1:]))
            else:
                self._output.append(compressor.compress(self._with_comma(at)))
        self._compressed_chunks = len(self._chunks)

    def _with_comma(self, at: int) -> bytes:
        # To feed a comma by itself would cost as much as a thousand bytes.
        return self._chunks[at] if self._splitters[at] else b"," + self._chunks[at]

    @property
    def size(self) -> int:
        """Bytes of the body of a request."""
        return sum(map(len, self._chunks)) + self._splitters.count(None) + 1

    @property
    def is_compressed(self) -> bool:
        """Whether most of it has been compressed, so that the rest is quickly done."""
        return self._compressor is not None or self._finished is not None

    def finish(self) -> None:
        """End what was compressed as it came: what that takes is far more than what it gives."""
        packer, self._compressor, self._new_compressor = self._compressor, None, None
        if packer is not None:
            self._feed(packer)
            self._finished = b"".join((*self._output, packer.compress(b"]"), packer.flush()))
            self._output.clear()

    def compressed(self, new_compressor: Callable[[], Compressor]) -> bytes:
        """The body of a request, compressed."""
        self.finish()
        if self._finished is not None:
            return self._finished
        packer = new_compressor()
        return packer.compress(self.body()) + packer.flush()

    def body(self) -> bytes:
        """The body of a request: all of them, with a comma between two, in brackets."""
        return b"[%b]" % b"".join(map(self._with_comma, range(len(self._chunks))))[1:]

    def pop_first(self) -> bytes:
        """Take the first record out."""
        self._compressor = self._new_compressor = self._finished = None
        self._chunks = [*self]
        self._count -= 1
        self._splitters = [None] * self._count
        return self._chunks.pop(0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        for piece, cut in zip(self._chunks, self._splitters, strict=True):
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


def _split_by_size(sizes: Iterable[int], piece: bytes) -> Iterator[bytes]:
    """Records of these sizes, with a comma before each."""
    at = 1
    for size in sizes:
        yield piece[at : at + size]
        at += size + 1
