"""Base class of writers, inboxes and commands of `RedisOutbox`: opening the queue, and running scripts on it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .._model.errors import OutboxError, raise_configuration_error
from .._runtime.environment import real_environment
from .._runtime.event_loop import EventLoop, current_loop, in_trio
from .._runtime.fork import ForkMarker
from .._runtime.log_events import log_event
from .erasure import hash_of
from .redis_connection import LoginRefusedError, QueueLostError, RedisConnection, make_client
from .redis_keys import Keys
from .redis_scripts import OPEN, VERSION

_EVICTING: Final = "allkeys-"
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """Options of `RedisOutbox` that its connections use."""

    url: str | None = field(repr=False)
    client: Any = field(repr=False)
    name: str
    partitions: int
    max_bytes: int
    max_records: int | None
    keep_dead: int
    replicas: int
    timeout: float

    def connect(self) -> RedisConnection:
        """Return a connection; call it in an event loop.

        Raises:
            ConfigurationError: in trio.
        """
        if in_trio():
            raise_configuration_error("RedisOutbox needs asyncio: the package redis does not run on trio")
        is_own = self.client is None
        client = make_client(self.url or "", self.timeout) if is_own else self.client
        return RedisConnection(client, owns_client=is_own, timeout=self.timeout)


class RedisQueue:
    """Queue in Redis, as one writer or inbox sees it.

    Args:
        settings: options of the outbox.
        token: token of the project.
    """

    def __init__(self, settings: RedisSettings, token: str) -> None:
        self.settings = settings
        self.keys = Keys(settings.name, settings.partitions)
        self.epoch = ""
        """Random name of the queue's content; another one after the queue was removed."""
        self.salt = ""
        """Key of the hashes in the queue."""
        self._last_waiting: int | None = None
        self._losses = self._lost_records = 0
        self._token = token
        self._new_id = real_environment().new_id
        self._connection: RedisConnection | None = None
        self._is_checked = False
        self._loop: EventLoop | None = None
        self._marker = ForkMarker()
        # Connections of an ended event loop or of the parent process. Collecting them would use that event loop.
        self._forgotten: list[tuple[RedisConnection, EventLoop | None, ForkMarker]] = []

    async def open(self) -> None:
        """Connect and check the queue; create it if it does not exist. The errors are those of `EntryWriter.open`."""
        if self._connection is None:
            self._connection, self._loop, self._marker = self.settings.connect(), current_loop(), ForkMarker()
        connection = self._connection
        if not self._is_checked:
            await check_policy(connection, *self.keys("meta"))
            self._is_checked = True
        new_salt = self._new_id()
        project = hash_of(self._token, new_salt)
        args: list[str | int] = [VERSION, self._new_id(), self.settings.partitions, new_salt, project, *self.keys.lanes]
        found = await connection.script(OPEN, self.keys.all_lanes("none", "meta"), args)
        version, epoch, partitions, salt, project = (str((one or b"").decode()) for one in found[:5])
        check_version(self.settings.name, version)
        if partitions != str(self.settings.partitions):
            raise_configuration_error(
                f"the queue {self.settings.name!r} has {partitions} partitions, not {self.settings.partitions}: pass"
                f" partitions={partitions}, or use another name"
            )
        if project != hash_of(self._token, salt):
            raise_configuration_error(
                f"the queue {self.settings.name!r} holds records of another project: use another name for each token"
            )
        self._note_epoch(epoch, salt, lost=int(found[5]) if len(found) > 5 else 0)

    def _note_epoch(self, epoch: str, salt: str, *, lost: int) -> None:
        was_removed = self.epoch not in ("", epoch)
        self.epoch, self.salt = epoch, salt
        if was_removed or lost:
            count = self._last_waiting if was_removed else lost
            self._losses += 1
            self._lost_records += count or 0
            log_event(
                logging.ERROR,
                "outbox_lost",
                "The queue %r or a part of it was removed from Redis; waiting records lost: %s",
                self.settings.name,
                _UNKNOWN if count is None else count,
                queue=self.settings.name,
                records=count,
            )

    def take_losses(self) -> tuple[int, int]:
        """Return how often the queue or a part of it was removed since the last call, and the records lost with it."""
        taken = self._losses, self._lost_records
        self._losses = self._lost_records = 0
        return taken

    def note_waiting(self, records: int) -> None:
        """Note the number of waiting records, for the message if the queue is removed."""
        self._last_waiting = records

    async def script(
        self, source: str, keys: Sequence[str], args: Sequence[str | bytes | int], *, on_lost: Callable[[], None]
    ) -> list[Any]:
        """Run a script whose first argument is the epoch. If the queue was removed, open it again and repeat.

        Args:
            source: the script.
            keys: its keys.
            args: its arguments after the epoch.
            on_lost: called before it is repeated.
        """

        def run(connection: RedisConnection) -> Awaitable[list[Any]]:
            return connection.script(source, keys, [self.epoch, *args])

        return await self.repeat_if_lost(run, on_lost)

    async def repeat_if_lost(
        self, run: Callable[[RedisConnection], Awaitable[list[Any]]], on_lost: Callable[[], None]
    ) -> list[Any]:
        """Call a function with the connection. If the queue was removed, open it again and repeat."""
        connection, epoch = self.connection, self.epoch
        try:
            return await run(connection)
        except QueueLostError:
            on_lost()
            if self.epoch == epoch:
                await self.open()
            return await run(self.connection)

    @property
    def connection(self) -> RedisConnection:
        """The connection.

        Raises:
            OutboxError: if it is not open.
        """
        if self._connection is None or not self.epoch:
            raise OutboxError("the connection to the outbox is not open: call open() first")
        return self._connection

    def forget(self) -> None:
        """Drop the connection without closing it."""
        if self._connection is not None:
            self._forgotten.append((self._connection, self._loop, self._marker))
        self._connection = None

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()
        for old, loop, marker in self._forgotten:
            if loop is not None and loop.is_current() and marker.is_current:
                await old.aclose()


def check_version(name: str, version: str) -> None:
    """Check the version of a queue.

    Raises:
        ConfigurationError: if it is another one.
    """
    if version != str(VERSION):
        raise_configuration_error(
            f"the queue {name!r} has the format {version or _UNKNOWN}, and this version of mixpanel-async reads"
            f" {VERSION}: upgrade the workers before the producers, or use another name"
        )


async def check_policy(connection: RedisConnection, key: str) -> None:
    """Check that Redis does not remove waiting records when its memory is full.

    Raises:
        ConfigurationError: if it may.
    """
    policy = await policy_of(connection, key)
    if policy.startswith(_EVICTING):
        raise_configuration_error(
            f"Redis has the maxmemory-policy {policy}, which removes waiting records when its memory is full: set it to"
            " noeviction"
        )
    if policy == _UNKNOWN:
        log_event(
            logging.WARNING,
            "outbox_policy_unknown",
            "Redis does not say its maxmemory-policy; make sure that it is noeviction",
        )


async def policy_of(connection: RedisConnection, key: str) -> str:
    """Return the `maxmemory-policy` of the server with a key; `unknown` if it does not say it."""
    found = _policy_in(await permitted(connection, key, "CONFIG", "GET", "maxmemory-policy"))
    return found or _policy_in(await permitted(connection, key, "INFO", "memory")) or _UNKNOWN


async def permitted(connection: RedisConnection, key: str, *command: str) -> Any:
    """Return the answer to a command; None if Redis refuses it, as managed services and ACLs do."""
    try:
        return await connection.call_server_of(key, *command)
    except OutboxError as error:
        if not error.refused or isinstance(error, LoginRefusedError):
            raise
        return None


def _policy_in(answer: Any) -> str:
    """Return the policy in the answer of a command, which the client may have parsed."""
    if isinstance(answer, dict):
        # A client of a cluster answers for each node.
        values = [answer, *(one for one in answer.values() if isinstance(one, dict))]
        for one in values:
            for name in ("maxmemory-policy", b"maxmemory-policy", "maxmemory_policy"):
                if isinstance(found := one.get(name), (str, bytes)):
                    return found.decode() if isinstance(found, bytes) else found
    if isinstance(answer, list) and len(answer) > 1 and isinstance(answer[1], bytes):
        return answer[1].decode()
    return ""
