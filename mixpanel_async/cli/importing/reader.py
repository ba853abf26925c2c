"""Reader thread: reads chunks of records ahead of the sender, so that a slow pipe does not block sending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .file_import import FileImport
from .inputs import DamagedError, InputError
from .record_source import Position, Row
from .source_factory import ReadOptions, open_source

_CHUNKS_AHEAD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive records of one file.

    Args:
        file: the file.
        rows: the records; may be empty.
        position: position after the records.
        bytes_read: bytes of the file that were read so far.
        is_last: whether the file ends after this chunk.
        damage: reason why the rest of the file cannot be read, or None.
    """

    file: FileImport
    rows: Sequence[Row]
    position: Position
    bytes_read: int
    is_last: bool = False
    damage: str | None = None


class ChunkReader:
    """Reader of the chunks of several files, one file after another.

    Args:
        files: the files, each with its start position.
        read_options: options for reading them.
        chunk_records: maximum number of records per chunk.
    """

    def __init__(self, files: Sequence[FileImport], read_options: ReadOptions, chunk_records: int) -> None:
        self._files = files
        self._read_options = read_options
        self._chunk_records = chunk_records
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        self._free_slots = threading.Semaphore(_CHUNKS_AHEAD)
        self._is_stopped = False

    def start(self) -> None:
        # A daemon thread, because a read from a pipe without a writer's data cannot be interrupted.
        threading.Thread(target=self._run, name="mixpanel-async reader", daemon=True).start()

    def stop(self) -> None:
        """Stop reading. Call it from the event loop."""
        self._is_stopped = True
        self._chunks.put_nowait(None)
        self._free_slots.release()

    async def next(self) -> Chunk | None:
        """Return the next chunk, or None after the last one and after `stop`."""
        if self._is_stopped:
            return None
        chunk = await self._chunks.get()
        self._free_slots.release()
        if isinstance(chunk, BaseException):
            raise chunk
        return None if self._is_stopped else chunk

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for file in self._files:
                self._read(file)
        except BaseException as error:  # noqa: BLE001  `next` raises it in the event loop
            end = error
        self._put(end)

    def _read(self, file: FileImport) -> None:
        try:
            source = open_source(file.input, self._read_options, file.start)
        except InputError as error:
            self._put(Chunk(file=file, rows=(), position=file.start, bytes_read=0, damage=str(error)))
            return
        try:
            while not self._is_stopped:
                rows: Sequence[Row] = ()
                damage = None
                try:
                    rows = source.take(self._chunk_records)
                except DamagedError as error:
                    damage = str(error)
                chunk = Chunk(
                    file=file,
                    rows=rows,
                    position=source.position,
                    bytes_read=source.bytes_read(),
                    is_last=damage is None and source.is_exhausted,
                    damage=damage,
                )
                self._put(chunk)
                if chunk.is_last or chunk.damage is not None:
                    return
        finally:
            source.close()

    def _put(self, chunk: Chunk | BaseException | None) -> None:
        self._free_slots.acquire()
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:
            # The event loop is closed.
            self._is_stopped = True
