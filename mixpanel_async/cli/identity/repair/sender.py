"""One call of a plan, sent through the client, and what its end says about it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    AuthenticationError,
    ClientClosedError,
    MixpanelException,
    TransportError,
)

from .calls import Call, CallKind
from .journal import CallState


@dataclass(frozen=True, slots=True)
class SendResult:
    """End of a call.

    Args:
        state: new state of the call.
        reason: why the call was not accepted, or an empty string.
        is_fatal: whether every other call would end in the same way.
    """

    state: CallState
    reason: str = ""
    is_fatal: bool = False


class CallSender:
    """Sender of calls.

    Args:
        client: client of the project.
        event: name of the events that link a device to a user.
        time: time of these events, in seconds since the epoch. A repeated one must have the same time, so that Mixpanel
            counts it once.
    """

    def __init__(self, client: AsyncMixpanel, event: str, time: float) -> None:
        self._client = client
        self._event = event
        self._time = time

    async def send(self, call: Call) -> SendResult:
        """Send a call, and return what its end says about it."""
        try:
            await self._send(call)
        except MixpanelException as error:
            return SendResult(_state_after(error), str(error), is_fatal=isinstance(error, AuthenticationError))
        return SendResult(CallState.ACCEPTED)

    async def _send(self, call: Call) -> None:
        if call.kind is CallKind.ALIAS:
            await self._client.alias(call.second, call.first)
        elif call.kind is CallKind.MERGE:
            await self._client.merge(None, call.first, call.second)
        elif call.kind is CallKind.IDENTIFY:
            await self._client.identify(call.first, call.second)
        else:
            await self._client.track_immediate(
                call.first,
                self._event,
                user_id=call.first,
                device_id=call.second,
                time=self._time,
                insert_id=_insert_id(call),
            )


def _state_after(error: MixpanelException) -> CallState:
    """Return what an error says about the call: whether it may have been applied."""
    is_uncertain = isinstance(error, (ApiError, TransportError, ClientClosedError)) and error.uncertain
    return CallState.UNCERTAIN if is_uncertain else CallState.FAILED


def _insert_id(call: Call) -> str:
    return blake2b(f"{call.first}\0{call.second}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
