"""`RedisOutbox`: public options of a queue in Redis or Valkey."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from .._model.config import check_count, check_number, check_switch
from .._model.errors import MixpanelException, raise_configuration_error, show_text, without_traceback
from .._runtime.environment import real_environment
from .lanes import check_kinds, check_partitions
from .redis_admin import QueueAdmin
from .redis_connection import check_url, require_redis
from .redis_inbox import RedisInbox
from .redis_queue import RedisQueue, RedisSettings
from .redis_writer import RedisWriter

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

_MAX_NAME: Final = 100


@dataclass(frozen=True, slots=True, init=False)
class RedisOutbox:
    """Queue in Redis or Valkey, to which many hosts hand their records, and from which workers deliver them.

    Needs the extra `redis`, asyncio, and Redis 6.2 or later or Valkey 7.2 or later, with the `maxmemory-policy`
    `noeviction` and at least `appendonly yes`. The object holds only options: clients, workers and event loops may
    share it. It connects when a client or worker starts.

    A user of Redis with an ACL needs `~{name}:*`, in braces as here, and `+@stream +@hash +@sortedset +del +exists
    +time +eval +evalsha +info +config|get +wait`.

    Example:
        ```python
        import asyncio

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.outbox import RedisOutbox


        async def main() -> None:
            outbox = RedisOutbox("redis://queue:6379/0")
            async with AsyncMixpanel("PROJECT_TOKEN", outbox=outbox) as mp:
                await mp.track("user-1", "Order placed", {"amount": 19.99})
            async with outbox.admin() as queue:
                print((await queue.status()).records, "records wait for a worker")


        asyncio.run(main())
        ```

    Args:
        url: `redis://`, `rediss://` or `unix://` URL. Pass either this or `client`.
        client: client of `redis.asyncio` that you made, for Sentinel, a cluster or other credentials, with
            `decode_responses=False`. It is never closed, and must be used in one event loop only.
        name: name of the queue, and prefix of all its keys; up to 100 characters without braces. Default `mixpanel`. A
            queue holds the records of one project.
        partitions: number of lanes for profile updates, and of lanes for group updates, which workers serve in
            parallel; 1 to 256, default 8. The queue keeps the number with which it was created.
        max_bytes: largest sum of the packed bodies of the waiting entries in bytes, of all hosts; at least 1, default
            1 GiB. Beyond it, producers keep records in memory and apply their `overflow` policy. Dead letters may take
            as much again.
        max_records: largest number of waiting records; at least 1. None, the default, sets no limit.
        keep_dead: number of newest dead letters to keep, 0 to 1,000,000, default 10,000.
        confirm: whether tracking calls return only once Redis has the record; default False. When off, a killed
            process loses the records of its last `linger` seconds.
        replicas: number of replicas that must have a batch before it counts as handed over; 0 to 10, default 0. Not
            available in a cluster.
        timeout: seconds for one command, connecting included; 0.1 to 600, default 5.
        compress: whether batches of at least 1 KiB are compressed; default True.

    Raises:
        ConfigurationError: if a value is out of bounds, or the package `redis` is missing.
    """

    url: str | None = field(repr=False)
    client: Redis | RedisCluster | None = field(repr=False)
    name: str
    partitions: int
    max_bytes: int
    max_records: int | None
    keep_dead: int
    confirm: bool
    replicas: int
    timeout: float
    compress: bool

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Redis | RedisCluster | None = None,
        name: str = "mixpanel",
        partitions: int = 8,
        max_bytes: int = 1024**3,
        max_records: int | None = None,
        keep_dead: int = 10_000,
        confirm: bool = False,
        replicas: int = 0,
        timeout: float = 5.0,
        compress: bool = True,
    ) -> None:
        try:
            for option, value in {
                "url": url,
                "client": client,
                "name": name,
                "partitions": partitions,
                "max_bytes": max_bytes,
                "max_records": max_records,
                "keep_dead": keep_dead,
                "confirm": confirm,
                "replicas": replicas,
                "timeout": timeout,
                "compress": compress,
            }.items():
                object.__setattr__(self, option, value)
            self._check()
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # Error reporters may show the locals of this frame, and a URL may hold a password.
            url = value = None

    def _check(self) -> None:
        require_redis()
        self._check_client()
        if not isinstance(self.name, str) or not 0 < len(self.name) <= _MAX_NAME or _is_unusable(self.name):
            raise_configuration_error(
                f"the name of a RedisOutbox must have 1 to {_MAX_NAME} characters without braces, not"
                f" {show_text(self.name)}"
            )
        check_partitions(self.partitions)
        check_count("max_bytes", self.max_bytes)
        if self.max_records is not None:
            check_count("max_records", self.max_records)
        check_count("keep_dead", self.keep_dead, minimum=0, maximum=1_000_000)
        check_switch("confirm", self.confirm)
        check_count("replicas", self.replicas, minimum=0, maximum=10)
        check_number("timeout", self.timeout, minimum=0.1, maximum=600.0)
        check_switch("compress", self.compress)

    def _check_client(self) -> None:
        if self.client is None:
            check_url(self.url)
        elif self.url is not None:
            raise_configuration_error("pass either url or client to RedisOutbox, not both")
        elif not hasattr(self.client, "execute_command") or not hasattr(self.client, "aclose"):
            raise_configuration_error(
                f"the client of a RedisOutbox must be one of redis.asyncio, not {show_text(self.client)}"
            )
        elif self.replicas and hasattr(self.client, "get_primaries"):
            raise_configuration_error("replicas is not available with the client of a cluster")

    def writer(self, token: str, producer: str | None = None) -> RedisWriter:
        """Return a connection for a producer; see `Outbox.writer`."""
        return RedisWriter(RedisQueue(self._settings(), token), producer or real_environment().new_id())

    def inbox(self, token: str, worker: str, *, kinds: Collection[str] | None = None) -> RedisInbox:
        """Return a connection for a worker; see `Outbox.inbox`.

        Raises:
            ConfigurationError: if `kinds` is empty or has an unknown kind.
        """
        check_kinds(kinds)
        served = "*" if kinds is None else ",".join(sorted(kinds))
        name = f"{worker}#{real_environment().new_id()[:8]}/{served}"
        return RedisInbox(RedisQueue(self._settings(), token), name)

    def admin(self) -> QueueAdmin:
        """Return a connection for inspection and repair; the commands `mixpanel-async queue` use it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel
            from mixpanel_async.outbox import RedisOutbox


            async def main() -> None:
                outbox = RedisOutbox("redis://queue:6379/0")
                async with AsyncMixpanel("PROJECT_TOKEN", outbox=outbox) as mp:
                    await mp.track("user-1", "Order placed", {"amount": 19.99})
                async with outbox.admin() as queue:
                    print((await queue.status()).records, "records wait for a worker")


            asyncio.run(main())
            ```

        Returns:
            A connection that is not open yet. `async with` opens and closes it.
        """
        return QueueAdmin(self._settings())

    def _settings(self) -> RedisSettings:
        return RedisSettings(
            url=self.url,
            client=self.client,
            name=self.name,
            partitions=self.partitions,
            max_bytes=self.max_bytes,
            max_records=self.max_records,
            keep_dead=self.keep_dead,
            replicas=self.replicas,
            timeout=self.timeout,
        )


def _is_unusable(name: str) -> bool:
    """Return whether Redis or a cluster cannot use a name in keys."""
    return not set(name).isdisjoint("{}\0\r\n") or any("\ud800" <= character <= "\udfff" for character in name)
