"""`EntryWriter` of `RedisOutbox`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .._model.errors import OutboxError
from .memory import check_entries
from .protocol import Entry, PutResult
from .redis_connection import NoRoomError, RedisConnection
from .redis_keys import push_args
from .redis_queue import RedisQueue
from .redis_scripts import PUSH

# A producer may repeat a put after an outage of this length, and the entry is still known.
_KEEP_SEQUENCES_MS: Final = 7 * 24 * 3600 * 1000


class RedisWriter:
    """Implementation of `EntryWriter`.

    Args:
        queue: the queue.
        producer: name under which the queue keeps the sequence numbers.
    """

    def __init__(self, queue: RedisQueue, producer: str) -> None:
        self._queue = queue
        self._producer = producer

    @property
    def partitions(self) -> int:
        """See `EntryWriter.partitions`."""
        return self._queue.settings.partitions

    async def open(self) -> None:
        """See `EntryWriter.open`."""
        await self._queue.open()

    async def put(self, entries: Sequence[Entry]) -> list[PutResult]:
        """See `EntryWriter.put`."""
        check_entries(entries, self.partitions)
        settings = self._queue.settings
        lanes = [*dict.fromkeys(entry.lane for entry in entries)]
        keys = self._queue.keys("meta", f"from:{self._producer}", *lanes)
        limits = [settings.max_bytes, settings.max_records or "", _KEEP_SEQUENCES_MS]
        values = [value for entry in entries for value in push_args(entry, 3 + lanes.index(entry.lane))]

        async def push(connection: RedisConnection) -> list[Any]:
            args = [self._queue.epoch, *limits, *values]
            if not settings.replicas:
                return await connection.script(PUSH, keys, args)
            found, reached = await connection.script_and_wait(PUSH, keys, args, settings.replicas)
            if reached < settings.replicas:
                raise OutboxError(f"{reached} of {settings.replicas} replicas have the records", uncertain=True)
            return found

        try:
            answers = await self._queue.repeat_if_lost(push, lambda: None)
        except NoRoomError:
            return [PutResult.FULL] * len(entries)
        return [PutResult[answer.decode()] for answer in answers]

    def forget(self) -> None:
        """See `EntryWriter.forget`."""
        self._queue.forget()

    async def aclose(self) -> None:
        """See `EntryWriter.aclose`."""
        await self._queue.aclose()
