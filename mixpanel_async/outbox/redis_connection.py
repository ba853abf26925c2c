"""Commands to Redis with a deadline, and the meaning of its errors. The only module that imports `redis`.

`redis` is imported when a `RedisOutbox` is made: it is an extra. Every failure is raised as an `OutboxError`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from .._encoding.masking import mask_urls, one_line
from .._model.errors import OutboxError, raise_configuration_error
from .._runtime.timers import move_on_after

_MAX_REASON: Final = 120
# Redis carries nothing out for now, and will later.
_UNAVAILABLE: Final = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "UNBLOCKED",
)
# Redis refuses until its settings or the options change. On Redis 6.2, a script hides the code of an error in its text.
_LOGIN_REFUSED: Final = ("NOAUTH", "WRONGPASS", "invalid username-password", "invalid password", "without any password")
_REFUSED: Final = ("NOPERM", "WRONGTYPE", "DENIED", "can't run this command", "can't access at")
# Redis 6 puts the position in the script before the reason.
_SCRIPT_POSITION: Final = re.compile(r"^.*@user_script: ?\d+: ")
_CODES: Final = re.compile(r"\b(?:-)?([A-Z]{3,})\b")


class NoRoomError(OutboxError):
    """Redis has reached `maxmemory`, and removes nothing by itself."""


class QueueLostError(OutboxError):
    """The queue, or a part of it, was removed from Redis."""


class LoginRefusedError(OutboxError):
    """Redis refuses the password or the user."""


class RedisConnection:
    """Connections of one writer or inbox. Each command that runs uses a separate one.

    Args:
        client: client of `redis.asyncio`.
        owns_client: whether `aclose` closes it.
        timeout: seconds for a command, the connection included.
    """

    def __init__(self, client: Any, *, owns_client: bool, timeout: float) -> None:
        self._client = client
        self._owns_client = owns_client
        self._timeout = timeout

    async def script(self, source: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> list[Any]:
        """Run a script and return its answer, without the `OK` at its beginning.

        Raises:
            QueueLostError: if the answer is `LOST`.
            OutboxError: if Redis refuses or does not answer.
        """
        digest = digest_of(source)
        try:
            answer = await self.call("EVALSHA", digest, len(keys), *keys, *args)
        except _ScriptMissingError:
            answer = await self.call("EVAL", source, len(keys), *keys, *args)
        return _checked(answer)

    async def script_and_wait(
        self, source: str, keys: Sequence[str], args: Sequence[str | bytes | int], replicas: int
    ) -> tuple[list[Any], int]:
        """Run a script, and wait until so many replicas have its changes. Return its answer and how many have."""

        async def run() -> Any:
            for command in (("EVALSHA", digest_of(source)), ("EVAL", source)):
                async with self._client.pipeline(transaction=False) as pipe:
                    pipe.execute_command(*command, len(keys), *keys, *args)
                    pipe.execute_command("WAIT", replicas, max(1, int(self._timeout * 500)))
                    found = await pipe.execute(raise_on_error=False)
                if not _is_script_missing(found[0]):
                    break
            for one in found:
                if isinstance(one, Exception):
                    raise one
            return found

        answer, reached = await self._within(run)
        return _checked(answer), int(reached)

    async def call(self, *command: str | bytes | int) -> Any:
        """Run a command and return its answer.

        Raises:
            OutboxError: if Redis refuses or does not answer.
        """
        return await self._within(lambda: self._client.execute_command(*command))

    async def call_server_of(self, key: str, *command: str | bytes | int) -> Any:
        """Run a command that has no key on the server that holds this key, and return its answer.

        Raises:
            OutboxError: if Redis refuses or does not answer.
        """

        async def run() -> Any:
            if not hasattr(self._client, "get_node_from_key"):
                return await self._client.execute_command(*command)
            # In a cluster, only the node with the queue matters, and the client cannot know which one that is.
            await self._client.initialize()
            return await self._client.execute_command(*command, target_nodes=self._client.get_node_from_key(key))

        return await self._within(run)

    async def _within(self, run: Callable[[], Any]) -> Any:
        try:
            with move_on_after(self._timeout):
                return await run()
        except OutboxError:
            raise
        except Exception as error:  # noqa: BLE001  a client of the user may raise any error
            raise to_outbox_error(error) from None
        raise OutboxError(f"no answer from Redis within {self._timeout:g} s", uncertain=True)

    async def aclose(self) -> None:
        """Close the connections, unless the client belongs to the user. No error is raised: nothing depends on it."""
        if not self._owns_client:
            return
        try:
            with move_on_after(self._timeout):
                await self._client.aclose()
        except Exception:  # noqa: BLE001  a broken connection is closed anyway
            return


class _ScriptMissingError(OutboxError):
    """Redis does not have the script, and has done nothing."""


@cache
def digest_of(source: str) -> str:
    """Return the name of a script in Redis."""
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _is_script_missing(answer: object) -> bool:
    return isinstance(answer, Exception) and isinstance(to_outbox_error(answer), _ScriptMissingError)


def _checked(answer: Any) -> list[Any]:
    if not isinstance(answer, list) or not answer or answer[0] not in (b"OK", b"LOST"):
        raise_configuration_error(
            "the Redis client decodes responses, which spoils binary data: make it with decode_responses=False"
        )
    if answer[0] == b"LOST":
        raise QueueLostError("the queue was removed from Redis")
    return answer[1:]


def to_outbox_error(error: Exception) -> OutboxError:
    """Return the meaning of an error of the library. Its message contains no key, argument or password."""
    from redis import exceptions  # noqa: PLC0415  an extra

    text = str(error)
    if isinstance(error, exceptions.NoScriptError) or "NOSCRIPT" in text:
        return _ScriptMissingError("the script is not loaded")
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return NoRoomError("Redis has reached its maxmemory")
    if "NOGROUP" in text:
        return QueueLostError("a part of the queue was removed from Redis")
    if isinstance(error, exceptions.AuthenticationError) or any(one in text for one in _LOGIN_REFUSED):
        return LoginRefusedError("Redis refuses the login: check user and password in the URL", refused=True)
    if isinstance(error, exceptions.NoPermissionError) or any(one in text for one in _REFUSED):
        advice = "check the ACL of the user (docs/guides/outbox.md has one), and the name of the queue"
        return OutboxError(f"Redis refuses: {_reason(text)}; {advice}", refused=True)
    if re.match(r"MOVED \d|ASK \d", text) or isinstance(error, exceptions.MovedError):
        return OutboxError("Redis is a cluster: pass a client of redis.asyncio.cluster as client=", refused=True)
    classes = (
        exceptions.BusyLoadingError,
        exceptions.ClusterDownError,
        exceptions.MasterDownError,
        exceptions.ReadOnlyError,
        exceptions.TryAgainError,
    )
    if isinstance(error, classes) or any(re.search(rf"\b{one}\b", text) for one in _UNAVAILABLE):
        return OutboxError(f"Redis is not available: {_reason(text)}")
    return _connection_error(error, text)


def _connection_error(error: Exception, text: str) -> OutboxError:
    from redis import exceptions  # noqa: PLC0415  an extra

    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        is_connecting = "connecting" in text
        what = "no connection to Redis" if is_connecting else "no answer from Redis in time"
        return OutboxError(what, uncertain=not is_connecting)
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        if "connecting to" in text or "Too many connections" in text:
            return OutboxError(f"no connection to Redis ({_system_reason(text)})")
        return OutboxError("the connection to Redis ended", uncertain=True)
    if isinstance(error, exceptions.ResponseError):
        return OutboxError(f"Redis refuses: {_reason(text)}", refused=True)
    return OutboxError(f"the Redis client failed ({type(error).__name__})", uncertain=True)


def _reason(text: str) -> str:
    """Return the beginning of an error of Redis, up to a quoted argument or key. The name of a command is shown."""
    if command := re.search(r"run the '([\w|-]{1,40})' command", text):
        return f"the user may not run {command[1].upper()}"
    codes = _CODES.findall(text)
    text = _SCRIPT_POSITION.sub("", text)
    # An apostrophe, as in "can't", is no quote.
    shown = re.split(r"(?<!\w)'|[\"`{]", text, maxsplit=1)[0].strip(" ,:.")
    if codes and codes[0] == "ERR" and len(codes) > 1:
        shown = codes[1]
    return one_line(mask_urls(shown), _MAX_REASON) or "an error without text"


def _system_reason(text: str) -> str:
    found = re.search(r"\b(refused|reset|timed out|unreachable|not known|failure in name resolution)\b", text)
    return found[1] if found else "the server cannot be reached"


# Making clients


def require_redis() -> None:
    """Check that the extra is installed.

    Raises:
        ConfigurationError: if it is not.
    """
    try:
        import redis.asyncio  # noqa: F401, PLC0415  an extra
    except ImportError:
        raise_configuration_error('RedisOutbox needs an extra: run pip install ".[redis]" in a clone of the repository')


def check_url(url: object) -> None:
    """Check a URL without connecting.

    Raises:
        ConfigurationError: if it is not a URL of Redis. The message does not show it: it may hold a password.
    """
    if not isinstance(url, str) or not _is_url(url):
        raise_configuration_error(
            "the url of RedisOutbox must be like redis://host:6379/0, rediss://user:password@host:6379/0 or"
            " unix:///path/to/redis.sock, with a whole number as the database, and without decode_responses or options"
            " that redis-py does not know"
        )


def _is_url(url: str) -> bool:
    from redis import exceptions  # noqa: PLC0415  an extra
    from redis.asyncio import ConnectionPool  # noqa: PLC0415

    try:
        parts = urlsplit(url)
        # redis-py takes any other path for the database 0.
        is_path = bool(parts.path) if parts.scheme == "unix" else re.fullmatch(r"(/\d*)?", parts.path, re.ASCII)
        if not is_path or parts.fragment or url != url.strip():
            return False
        pool = ConnectionPool.from_url(url)
        if pool.connection_kwargs.get("decode_responses"):
            return False
        # It refuses unknown options, and does not connect yet.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, AttributeError, LookupError, exceptions.RedisError):
        return False
    return True


def make_client(url: str, timeout: float) -> Any:
    """Return a client for a URL. It connects with its first command, and repeats none by itself."""
    from redis.asyncio import Redis  # noqa: PLC0415  an extra
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    return Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
