"""Reads files in a thread of its own, a little ahead of what is sent, so that a slow pipe does not stop the sending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .file_import import FileImport
from .inputs import DamagedError, InputError
from .open_source import Reading, source
from .source import Position, Row

_AHEAD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Records of one file that follow one another.

    Args:
        job: the file.
        rows: the records; there may be none.
        position: after them.
        done: bytes of the file that were read by then.
        ended: whether the file has ended.
        damage: why it cannot be read to its end.
    """

    job: FileImport
    rows: Sequence[Row]
    position: Position
    done: int
    ended: bool = False
    damage: str | None = None


class Reader:
    """The chunks of files, one file after another.

    Args:
        jobs: the files, each with the position to begin at.
        reading: how they are read.
        size: records of one chunk.
    """

    def __init__(self, jobs: Sequence[FileImport], reading: Reading, size: int) -> None:
        self._jobs = jobs
        self._reading = reading
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        self._is_stopped = False

    def start(self) -> None:
        # A daemon: nobody can end a read from a pipe into which nothing is written.
        threading.Thread(target=self._run, name="mixpanel-async reader", daemon=True).start()

    def stop(self) -> None:
        """Read no more. From the event loop."""
        self._is_stopped = True
        self._chunks.put_nowait(None)
        self._room.release()

    async def next(self) -> Chunk | None:
        """The next chunk; None after the last, or once it is stopped."""
        if self._is_stopped:
            return None
        chunk = await self._chunks.get()
        self._room.release()
        if isinstance(chunk, BaseException):
            raise chunk
        return None if self._is_stopped else chunk

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for job in self._jobs:
                self._read(job)
        except BaseException as error:  # noqa: BLE001  a fault of this program is told where it is noticed
            last = error
        self._put(last)

    def _read(self, job: FileImport) -> None:
        position = job.start
        try:
            file = source(job.input, self._reading, position)
        except InputError as error:
            self._put(Chunk(job=job, rows=(), position=position, done=0, damage=str(error)))
            return
        try:
            while not self._is_stopped:
                try:
                    rows = file.take(self._size)
                except DamagedError as error:
                    self._put(Chunk(job=job, rows=(), position=file.position, done=file.done(), damage=str(error)))
                    return
                chunk = Chunk(job=job, rows=rows, position=file.position, done=file.done(), ended=file.is_over)
                self._put(chunk)
                if chunk.ended:
                    return
        finally:
            file.close()

    def _put(self, chunk: Chunk | BaseException | None) -> None:
        self._room.acquire()
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:
            # The loop has ended.
            self._is_stopped = True
