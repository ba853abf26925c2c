"""Limits on the connections of a server, so that hostile clients cost bounded time and memory.

| client | effect |
| --- | --- |
| asks and does not read the response | aborted after `WRITE_SECONDS` without progress, or earlier if memory is short |
| sends a body that is refused | receives the response; what it still sends is discarded for `LINGER_SECONDS` |
| sends thousands of tiny pieces at once | they are parsed in turns, for `TURN_SECONDS` between other work |
| sends many large bodies and does not finish them | the least recently active ones are aborted above `MAX_HELD_BYTES` |
| opens thousands of connections | the least recently active idle ones are closed above the maximum number |
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

WRITE_SECONDS: Final = 20.0
"""Seconds without progress after which a client that does not read is disconnected."""
LINGER_SECONDS: Final = 10.0
"""Seconds during which data is discarded that a client sends after its response."""
MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Bytes of incomplete request bodies, and of unread responses, above which connections are aborted."""
TURN_SECONDS: Final = 0.005
"""Seconds of parsing large data before the event loop does other work."""

_SLICE: Final = 8 * 1024
# A client that reads has made progress within this time, also on a busy machine.
_STALLED_SECONDS: Final = 1.0


class Connections:
    """All connections of one server.

    Args:
        loop: the event loop, whose clock is used.
        max_connections: number of connections above which idle ones are closed, at least 1.
        idle_seconds: seconds without a request after which an idle connection is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_connections: int, idle_seconds: float) -> None:
        self.now = loop.time
        self._loop = loop
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._open: dict[GuardedTransport, None] = {}
        self._body_bytes = 0
        self._turns: deque[GuardedTransport] = deque()
        self._next_turn: asyncio.Handle | None = None

    @property
    def is_parsing(self) -> bool:
        """Whether connections wait for their turn, or the event loop has other work to do before the next one."""
        return self._next_turn is not None

    def take_turn(self, connection: GuardedTransport | None) -> None:
        """Let a connection parse a piece of its data later, or none: only let the event loop do other work first."""
        if connection is not None:
            self._turns.append(connection)
        if self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._parse)

    def _parse(self) -> None:
        self._next_turn = None
        end = self.now() + TURN_SECONDS
        while self._turns and self.now() < end:
            connection = self._turns.popleft()
            connection.parse_piece()
        if self._turns:
            self.take_turn(None)

    def add(self, connection: GuardedTransport) -> None:
        """Add a connection, and make room for it."""
        self._open[connection] = None
        if len(self._open) > self._max_connections:
            others = [one for one in self._open if one is not connection and not one.is_closing()]
            if others:
                min(others, key=lambda one: (one.is_busy(), one.last_active)).abort()

    def discard(self, connection: GuardedTransport) -> None:
        """Remove a connection that is closed."""
        if connection in self._open:
            del self._open[connection]
            self._body_bytes -= connection.body_bytes

    def body_grew(self, connection: GuardedTransport, size: int) -> None:
        """Count bytes of a request body, negative once it is processed. Abort other requests above the limit."""
        if connection not in self._open:
            return
        self._body_bytes += size
        if size <= 0:
            return
        while self._body_bytes > MAX_HELD_BYTES:
            others = [one for one in self._open if one is not connection and one.body_bytes and not one.is_closing()]
            if not others:
                return
            stalest = min(others, key=lambda one: one.last_active)
            self.discard(stalest)
            stalest.abort()

    def sweep(self) -> None:
        """Close the connections that are idle or unread for too long. Called about once a second."""
        for one in list(self._open):
            if one.unread_bytes():
                if one.unread_seconds() > WRITE_SECONDS:
                    one.abort()
            elif not one.is_busy() and self.now() - one.last_active > self._idle_seconds:
                one.close()
        self._limit_unread()

    def _limit_unread(self) -> None:
        """Abort the clients that have read nothing for the longest time, while there are too many unread bytes."""
        unread = {one: one.unread_bytes() for one in self._open}
        total = sum(unread.values())
        if total <= MAX_HELD_BYTES:
            return
        stalled = [one for one in unread if unread[one] and one.unread_seconds() > _STALLED_SECONDS]
        for one in sorted(stalled, key=lambda one: one.unread_seconds(), reverse=True):
            if total <= MAX_HELD_BYTES:
                return
            total -= unread[one]
            one.abort()


@final
class GuardedTransport(asyncio.Transport):
    """Transport of one connection, as the HTTP protocol sees it.

    Args:
        transport: transport of the socket.
        connections: limits that are shared with the other connections.
        loop: the event loop.
        feed: parses received data.
        is_receiving: whether a request is incomplete, so that the client may still send.
        is_busy: whether a request is in progress.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
        *,
        feed: Callable[[bytes], None],
        is_receiving: Callable[[], bool],
        is_busy: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._connections = connections
        self._loop = loop
        self._feed = feed
        self._is_receiving = is_receiving
        self.is_busy = is_busy
        self.last_active = connections.now()
        self.body_bytes = 0
        """Bytes received since the end of the last request."""
        self._unsent = 0
        self._unread = 0
        self._unread_since = self.last_active
        self._is_paused = False
        self._unparsed = bytearray()
        self._has_turn = False
        self._linger_timer: asyncio.TimerHandle | None = None
        connections.add(self)

    def received(self, data: bytes) -> None:
        """Parse data now if it is short, otherwise in turns with other connections."""
        self.last_active = self._connections.now()
        if self._linger_timer is not None:
            return
        self.body_bytes += len(data)
        self._connections.body_grew(self, len(data))
        if self._unparsed or self._is_paused or len(data) > _SLICE or self._connections.is_parsing:
            self._unparsed += data
            self._continue()
            return
        self._feed(data)
        if self._connections.now() - self.last_active > TURN_SECONDS / 5:
            self._connections.take_turn(None)

    def parse_piece(self) -> None:
        """Parse a piece of the received data, and take another turn if there is more."""
        self._has_turn = False
        if not self._is_paused and not self.is_closing():
            piece = bytes(self._unparsed[:_SLICE])
            del self._unparsed[:_SLICE]
            self._feed(piece)
        self._continue()

    def _continue(self) -> None:
        if self.is_closing():
            self._unparsed.clear()
            return
        if self._unparsed and not self._is_paused and not self._has_turn:
            self._has_turn = True
            self._connections.take_turn(self)
        if self._is_paused or self._unparsed:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def request_done(self) -> None:
        """Note that the request is processed and its body no longer held."""
        self._connections.body_grew(self, -self.body_bytes)
        self.body_bytes = self._unsent = 0
        self.last_active = self._connections.now()

    def lost(self) -> None:
        """Note that the connection is closed."""
        self._connections.discard(self)
        self._unparsed.clear()
        if self._linger_timer is not None:
            self._linger_timer.cancel()

    def set_unsent(self, size: int) -> None:
        """Note the number of bytes of the response that the application still holds."""
        self._unsent = size

    def unread_bytes(self) -> int:
        """Return the number of bytes that the client has not read. Reading is progress."""
        size = self._transport.get_write_buffer_size() + self._unsent
        if size < self._unread or not self._unread:
            self._unread_since = self._connections.now()
        self._unread = size
        return size

    def unread_seconds(self) -> float:
        """Return the number of seconds since the client last read, as far as `unread_bytes` has seen it."""
        return self._connections.now() - self._unread_since

    def close(self) -> None:
        """Close the connection so that the client receives what was sent to it.

        A socket that is closed while data arrives resets the connection, and the client may lose the response.
        """
        if self.is_closing():
            return
        if not (self._unparsed or self._is_receiving()) or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._unparsed.clear()
        self._linger_timer = self._loop.call_later(LINGER_SECONDS, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def is_closing(self) -> bool:
        return self._linger_timer is not None or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._is_paused = True
        if not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if not self.is_closing():
            self._continue()

    def write(self, data: Any) -> None:
        if self._linger_timer is None:
            self._transport.write(data)

    def abort(self) -> None:
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
