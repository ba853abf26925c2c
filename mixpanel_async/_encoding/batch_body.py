"""Body of a batch: a sequence of encoded records that stores neighbours as joined chunks.

Joining thousands of small objects that are spread over the heap costs more than encoding them. Records that arrive
together are therefore joined at once, while they are in the processor's cache. They are split only on access to single
records.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Final, Protocol, overload

_CHUNK_BYTES: Final = 32 * 1024


class Compressor(Protocol):
    """Incremental compressor with the methods of `zlib.compressobj`."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def sizes_of(items: Iterable[bytes]) -> array[int]:
    """Return the sizes of records."""
    return array("I", map(len, items))


class BatchBody(Sequence[bytes]):
    """Append-only sequence of records. Records are immutable; only the first one can be removed.

    Args:
        items: initial records.
        new_compressor: returns a compressor for incremental compression of appended records. Records lose their
            subclass of `bytes` then. None disables incremental compression.
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
        # Output of the compressor so far, and the number of chunks that it covers.
        self._output: list[bytes] = []
        self._compressed_chunks = 0
        self._chunks = list(items)
        # For each chunk: a function that splits it into records, with a comma before each; None for a single record.
        self._splitters: list[Callable[[bytes], Iterable[bytes]] | None] = [None] * len(self._chunks)
        self._count = len(self._chunks)
        # Number of final chunks, and the size of the single records after them.
        self._joined_chunks = self._loose_bytes = 0

    def append(self, item: bytes) -> None:
        """Append one record."""
        self._chunks.append(item)
        self._splitters.append(None)
        self._count += 1
        self._finished = None
        self._loose_bytes += len(item)
        if self._loose_bytes >= _CHUNK_BYTES:
            items = self._chunks[self._joined_chunks :]
            self._add(self._joined_chunks, items, sizes_of(items))

    def extend(self, items: Sequence[bytes], sizes: array[int]) -> None:
        """Append records of these sizes."""
        self._count += len(items)
        self._add(len(self._chunks), items, sizes)

    def _add(self, at: int, items: Sequence[bytes], sizes: array[int]) -> None:
        """Store records of these sizes as one chunk, in the place of the chunks from this position on."""
        chunk = b",".join((b"", *items))
        # Only events are compressed. Their subclasses of `bytes` do not matter once they are in a batch.
        types: Iterable[type[bytes]] = repeat(bytes)
        if self._new_compressor is None:
            kinds = {*map(type, items)}
            # A tuple takes 7 % of the memory of small records.
            types = repeat(kinds.pop()) if len(kinds) == 1 else (*map(type, items),)
        splitter = partial(_split, sizes, types)
        # No call between these two, so that no signal handler can run between them.
        self._chunks[at:] = (chunk,)
        self._splitters[at:] = (splitter,)
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
        # Compressing a comma separately would cost as much as compressing a thousand bytes.
        return self._chunks[at] if self._splitters[at] else b"," + self._chunks[at]

    @property
    def size(self) -> int:
        """Size of the uncompressed body in bytes."""
        return sum(map(len, self._chunks)) + self._splitters.count(None) + 1

    @property
    def is_compressed(self) -> bool:
        """Whether most of the body is compressed already, so that finishing it is fast."""
        return self._compressor is not None or self._finished is not None

    def finish(self) -> None:
        """Finish incremental compression and release the compressor, which takes far more memory than its output."""
        compressor, self._compressor, self._new_compressor = self._compressor, None, None
        if compressor is not None:
            self._feed(compressor)
            self._finished = b"".join((*self._output, compressor.compress(b"]"), compressor.flush()))
            self._output.clear()

    def compressed(self, new_compressor: Callable[[], Compressor]) -> bytes:
        """Return the body, compressed with gzip."""
        self.finish()
        if self._finished is not None:
            return self._finished
        compressor = new_compressor()
        return compressor.compress(self.body()) + compressor.flush()

    def body(self) -> bytes:
        """Return the body as a JSON array."""
        parts = [self._with_comma(at) for at in range(len(self._chunks))]
        # Joined once: copies of a large body would double the memory at the peak.
        return b"".join((b"[", parts[0][1:], *parts[1:], b"]")) if parts else b"[]"

    def pop_first(self) -> bytes:
        """Remove and return the first record."""
        self._compressor = self._new_compressor = self._finished = None
        self._chunks = [*self]
        self._count -= 1
        self._splitters = [None] * self._count
        return self._chunks.pop(0)

    def salvage(self) -> list[bytes]:
        """Return the records, also if an error cut off `append` or `extend`: with the last record, or without it."""
        records: list[bytes] = []
        # The parts may differ in length. A chunk without a splitter is the last one.
        for chunk, splitter in zip(self._chunks, self._splitters, strict=False):
            records.extend((chunk,) if splitter is None else splitter(chunk))
        return records

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        for chunk, splitter in zip(self._chunks, self._splitters, strict=True):
            if splitter is None:
                yield chunk
            else:
                yield from splitter(chunk)

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        return [*self][at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]


def _split(sizes: Iterable[int], types: Iterable[type[bytes]], chunk: bytes) -> Iterator[bytes]:
    """Split a chunk, with a comma before each record, into records of these sizes and subclasses of `bytes`."""
    at = 1
    for size, kind in zip(sizes, types, strict=False):
        yield kind(chunk[at : at + size])
        at += size + 1
