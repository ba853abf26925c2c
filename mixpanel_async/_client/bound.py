"""Client bound to one user or request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypedDict

import anyio

from .._encoding.validation import check_user_id, copy_mapping, device_person, is_instance
from .._model.config import IdMerge
from .._model.errors import (
    ApiError,
    ClientClosedError,
    MixpanelException,
    QueueFullError,
    SpoolError,
    TransportError,
    ValidationError,
)
from .._model.records import RecordKind
from .base import Meta, Properties
from .bound_profiles import BoundProfileMethods
from .bound_properties import BoundProperties, BoundTracker
from .device_links import IdentityCall, identity_call, link_to, without_prefix
from .invalid import as_refusal

if TYPE_CHECKING:
    from .client import AsyncMixpanel


# In these systems the server joins no devices: the id of an anonymous visitor is the device id as it was given.
_WITHOUT_DEVICES: Final = frozenset({IdMerge.LEGACY, IdMerge.ORIGINAL})
_NOT_PROPERTIES: Final = "must be a mapping; ids are bound, so event_name is the first argument"

# Seconds that `sign_in` with a timeout waits for room in the queue, or for the disk.
_QUEUE_TIMEOUT: Final = 0.5
# Errors that `sign_in` with a timeout does not raise.
_NOT_IN_TIME: Final = (ApiError, TransportError, QueueFullError, SpoolError, ClientClosedError, TimeoutError)


class _Ids(TypedDict):
    user_id: str | None
    device_id: str | None
    ip: str | None


class BoundMixpanel(BoundProfileMethods):
    """Client bound to one user or request: the result of `AsyncMixpanel.bind`.

    Its methods are those of the client without the ids, and raise the same errors. Only `sign_in` and `sign_out` change
    the bound ids. It does not need to be closed.
    """

    __slots__ = (
        "_client",
        "_device_id",
        "_distinct_id",
        "_ip",
        "_last_user_id",
        "_link",
        "_person",
        "_properties",
        "_shared",
        "_sign_in_timeout",
        "_tracker",
        "_user_id",
    )

    def __init__(
        self,
        client: AsyncMixpanel,
        properties: BoundProperties,
        distinct_id: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        link: str | None = None,
        last_user_id: str | None = None,
        sign_in_timeout: float | None = None,
    ) -> None:
        self._client = client
        self._properties = properties
        # Encodes plain events with what `BoundTracker.bind` returns: from the first event on, until the ids change.
        self._tracker: BoundTracker | None = None
        self._person: str | None
        self._shared: bytes
        self._distinct_id = distinct_id
        self._user_id = user_id
        self._device_id = device_id
        self._ip = ip
        self._link = link
        self._last_user_id = last_user_id
        self._sign_in_timeout = sign_in_timeout

    @property
    def user_id(self) -> str | None:
        """Id of the signed-in user; None for an anonymous visitor."""
        return self._user_id

    @property
    def device_id(self) -> str | None:
        """Anonymous id of the browser or device, with the prefix `$device:` if it was bound with it."""
        return self._device_id

    @property
    def link(self) -> str | None:
        """Link between the device and its last signed-in user. Store it with the device's id; it reveals no user id."""
        return self._link

    def silenced(self) -> BoundMixpanel:
        """Return a client whose calls do nothing, for a visitor who has not consented to tracking."""
        client = self._properties.services.silent()
        return SilencedMixpanel(client, client.bind()._properties)

    async def sign_in(
        self,
        user_id: str,
        event_name: str | None = None,
        properties: Properties | None = None,
        *,
        is_new: bool = False,
        deferred: bool = False,
    ) -> None:
        """Join the bound device to the user `user_id`, and track an event with both ids.

        The calls depend on the project's ID Merge system:

        - Original: `identify`, or `alias` if `identify` does not take the form of the device's id. Both ids become one
          user, including their earlier events.
        - Legacy: `alias`, once for each device. With `is_new`, the visitor's earlier events become the user's. Without
          it they stay separate: a Legacy project cannot move them to an existing user.
        - Simplified: no call. The event with both ids joins them.

        After the call the user is bound. Signing in again sends only the event. If the device belongs to another user,
        it first gets a new id, as in `sign_out`, so that two users who share a browser stay separate.

        If the call raises, no user is signed in. The call can be repeated: ids that are already joined do not change.

        A client bound with `sign_in_timeout`, as in the integrations, does not raise because of Mixpanel, the network
        or the queue. If Mixpanel does not accept the identity event in time, it is queued as with `deferred`, and a
        warning is logged.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", id_merge="original") as mp:
                    visitor = mp.bind(device_id=mp.new_device_id())
                    await visitor.track("Page viewed")
                    await visitor.sign_in("user-1", is_new=True)
                    await visitor.track("Order placed")
                    visitor.sign_out()
                    await visitor.track("Page viewed")


            asyncio.run(main())
            ```

        Args:
            user_id: permanent id of the user in your system. Mixpanel cannot rename it.
            event_name: name of the event; by default `Signed up` if `is_new`, else `Signed in`.
            properties: properties of the event.
            is_new: whether the user has just signed up. It matters only in Legacy projects, where it must be True at
                sign-up and False at every login: for an existing user it would detach their earlier events.
            deferred: put the identity event into the queue, before the event, and return. An outage then delays it.

        Raises:
            ConfigurationError: if the client has no `id_merge`.
            ValidationError: if Mixpanel would not accept `user_id`, or if a `distinct_id` is bound, which would
                override it.
            ApiError: if Mixpanel did not accept the identity call (Original and Legacy).
            TransportError: if no attempt of the identity call got a response (Original and Legacy).
            QueueFullError: if the identity event is deferred and the queue has no room; for the event, as in
                `AsyncMixpanel.track`.
            SpoolError: as in `AsyncMixpanel.track`.
            ClientClosedError: after `aclose()` of the client.
        """
        check_user_id(user_id, "user_id")
        if self._distinct_id is not None:
            raise ValidationError("distinct_id", "is bound and would override the user; bind a device_id instead")
        if not self._is_free_for(user_id):
            self.sign_out()
        device_id = self._device_id
        link = None if device_id is None else link_to(self._client.id_merge, device_id, user_id)
        call = None
        if device_id is not None and link != self._link and device_id != user_id:
            call = identity_call(self._client, user_id, device_id, is_new=is_new)
        user = self.bind(user_id=user_id)
        track = partial(user.track, event_name or ("Signed up" if is_new else "Signed in"), properties)
        if self._sign_in_timeout is None:
            if call is not None:
                await call(deferred=deferred)
            await track()
        elif not await self._sign_in_in_time(self._sign_in_timeout, call, track, deferred=deferred):
            # Without the link, the next `sign_in` makes the identity call again.
            link = self._link
        self._user_id, self._link, self._last_user_id, self._tracker = user_id, link, None, None

    async def _sign_in_in_time(
        self, timeout: float, call: IdentityCall | None, track: Callable[[], Awaitable[None]], *, deferred: bool
    ) -> bool:
        """Make the calls of `sign_in` without raising because of Mixpanel. Return whether the ids will be joined."""
        cause: Exception | None = None
        if call is not None and not deferred:
            try:
                # The call ends itself. The second limit is for a client whose event loop does not respond.
                with anyio.fail_after(timeout + _QUEUE_TIMEOUT):
                    await call(timeout=timeout)
            except _NOT_IN_TIME as error:
                # The line is logged once the queue has the event. The traceback refers to this frame.
                cause = error.with_traceback(None)
            else:
                call = None
        try:
            # A full queue may make callers wait, and so may a slow disk.
            with anyio.fail_after(_QUEUE_TIMEOUT):
                if call is not None:
                    await call(deferred=True)
                    call = None
                    if cause is not None:
                        self._report(cause, is_final=False)
                await track()
        except _NOT_IN_TIME as error:
            self._report(error, is_final=True)
        return call is None

    def _report(self, error: Exception, *, is_final: bool) -> None:
        self._properties.services.on_failure(error, is_final)

    def sign_out(self) -> None:
        """Unbind the user, and bind a new anonymous id: later calls may come from another person.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", id_merge="original") as mp:
                    visitor = mp.bind(device_id=mp.new_device_id())
                    await visitor.track("Page viewed")
                    await visitor.sign_in("user-1", is_new=True)
                    await visitor.track("Order placed")
                    visitor.sign_out()
                    await visitor.track("Page viewed")


            asyncio.run(main())
            ```
        """
        self._user_id = self._link = self._last_user_id = self._tracker = None
        if self._device_id is not None:
            self._device_id = self._client.new_device_id()

    def _is_free_for(self, user_id: str) -> bool:
        """Return whether the device is not known to belong to another user."""
        if self._link is not None and self._device_id is not None:
            return self._link == link_to(self._client.id_merge, self._device_id, user_id)
        return all(known is None or known == user_id for known in (self._user_id, self._last_user_id))

    def bind(
        self,
        *,
        distinct_id: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        properties: Properties | None = None,
        link: str | None = None,
        last_user_id: str | None = None,
        sign_in_timeout: float | None = None,
    ) -> BoundMixpanel:
        """Return a copy with other ids or more properties bound. See `AsyncMixpanel.bind`."""
        bound = self._properties
        if properties is not None or sign_in_timeout is not None:
            added = self._client.bind(properties=properties, sign_in_timeout=sign_in_timeout)
            bound = added._properties.added_to(bound)
        if device_id is None:
            link = self._link if link is None else link
            last_user_id = self._last_user_id if last_user_id is None else last_user_id
        return BoundMixpanel(
            self._client,
            bound,
            self._distinct_id if distinct_id is None else distinct_id,
            self._user_id if user_id is None else user_id,
            self._device_id if device_id is None else device_id,
            self._ip if ip is None else ip,
            link,
            last_user_id,
            self._sign_in_timeout if sign_in_timeout is None else sign_in_timeout,
        )

    async def track(
        self,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Queue an event. See `AsyncMixpanel.track`."""
        if meta is None and time is None and insert_id is None:
            record = self._stage(event_name, properties)
            if record is True:
                return
            if record is not False:
                # It is encoded, and the staging buffer has no room for it.
                await self._properties.services.enqueue(record)
                return
        merged = self._event_properties(properties)
        if merged is not None:
            await self._client.track(
                self._event_id,
                event_name,
                merged,
                meta,
                time=time,
                insert_id=insert_id,
                **self._ids,
            )

    def track_nowait(
        self,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Queue an event from any thread. See `AsyncMixpanel.track_nowait`."""
        if meta is None and time is None and insert_id is None and self._stage(event_name, properties) is True:
            return
        merged = self._event_properties(properties)
        if merged is not None:
            self._client.track_nowait(
                self._event_id,
                event_name,
                merged,
                meta,
                time=time,
                insert_id=insert_id,
                **self._ids,
            )

    async def track_immediate(
        self,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Send one event now and await the response. See `AsyncMixpanel.track_immediate`."""
        merged = self._event_properties(properties, is_awaited=True)
        if merged is not None:
            await self._client.track_immediate(
                self._event_id,
                event_name,
                merged,
                meta,
                time=time,
                insert_id=insert_id,
                **self._ids,
            )

    async def alias(
        self, alias_id: str, meta: Meta = None, *, deferred: bool = False, timeout: float | None = None
    ) -> None:
        """Make `alias_id` another id of the bound user. See `AsyncMixpanel.alias`."""
        original = self._event_id or self._profile_id
        await self._client.alias(alias_id, original, meta, deferred=deferred, timeout=timeout)

    async def identify(
        self, identified_id: str, meta: Meta = None, *, deferred: bool = False, timeout: float | None = None
    ) -> None:
        """Join the bound anonymous visitor to `identified_id`. See `AsyncMixpanel.identify`."""
        anon_id = self._device_id or self._profile_id
        if is_instance(self._device_id, str) and self._client.id_merge not in _WITHOUT_DEVICES:
            # The id that the visitor's events have.
            anon_id = device_person(anon_id)
        await self._client.identify(identified_id, anon_id, meta, deferred=deferred, timeout=timeout)

    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_update`. The bound id is the default of `$distinct_id`."""
        arguments = self._profile_arguments(message, meta)
        if arguments is not None:
            await self._client.people_update(*arguments)

    async def people_track_charge(self, amount: float, properties: Properties | None = None, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_track_charge`."""
        arguments = self._profile_arguments({}, meta)
        if arguments is not None:
            target, meta = arguments
            await self._client.people_track_charge(target["$distinct_id"], amount, properties, meta)

    def _stage(self, event_name: str, properties: Properties | None) -> bytes | bool:
        """Stage a plain event. Return the result of `StagingBuffer.try_append`."""
        tracker = self._tracker
        if tracker is None:
            if self._properties.problem is not None:
                return False
            tracker = self._properties.tracker
            self._person, self._shared = tracker.bind(self._event_id, self._ip, self._user_id, self._device_id)
            self._tracker = tracker
        return tracker.staging.try_append(
            tracker.stage, tracker.encode, self._person, event_name, properties, self._shared
        )

    @property
    def _ids(self) -> _Ids:
        """Ids of events next to the `distinct_id`."""
        return {"user_id": self._user_id, "device_id": without_prefix(self._device_id), "ip": self._ip}

    @property
    def _event_id(self) -> str | None:
        """`distinct_id` of events; None if the client derives it from the other ids."""
        if self._distinct_id is None and self._properties.services.id_merge in _WITHOUT_DEVICES:
            return self._user_id or self._device_id
        return self._distinct_id

    @property
    def _profile_id(self) -> str:
        profile_id = self._distinct_id or self._user_id
        if profile_id is None and self._client.enabled:
            raise ValidationError("distinct_id", "is not bound; bind a distinct_id or user_id")
        return profile_id or ""

    def _event_properties(self, properties: object, *, is_awaited: bool = False) -> Properties | None:
        """Return the bound and the given properties. None if they were refused and the call returns."""
        problem = self._properties.problem
        if problem is not None:
            failure: MixpanelException = ValidationError(problem.path, problem.problem)
        elif properties is None:
            return self._properties.values
        elif is_instance(properties, str):
            failure = ValidationError("properties", _NOT_PROPERTIES)
        else:
            try:
                return {**self._properties.values, **copy_mapping(properties, "properties")}
            except Exception as error:  # noqa: BLE001  a user's mapping may raise anything
                failure = as_refusal(error)
        if is_awaited:
            self._properties.services.invalid.refuse_awaited(failure)
        else:
            self._properties.services.invalid.refuse(RecordKind.EVENTS, failure)
        return None

    def _profile_arguments(self, message: object, meta: Meta) -> tuple[dict[str, Any], Meta] | None:
        """Return the update and `meta` with what is bound. None if they were refused and the call returns."""
        try:
            return {"$distinct_id": self._profile_id, **copy_mapping(message, "message")}, self._with_ip(meta)
        except Exception as error:  # noqa: BLE001  a user's mapping may raise anything
            failure = as_refusal(error)
        self._properties.services.invalid.refuse(RecordKind.PEOPLE, failure)
        return None

    def _with_ip(self, meta: Meta) -> Meta:
        if self._ip is None:
            return meta
        return {"$ip": self._ip, **({} if meta is None else copy_mapping(meta, "meta"))}

    def __repr__(self) -> str:
        bound = [name for name, value in (("distinct_id", self._distinct_id), *self._ids.items()) if value is not None]
        return f"<BoundMixpanel {', '.join(bound) or 'nothing'} bound>"


class SilencedMixpanel(BoundMixpanel):
    """Bound client of a visitor who has not consented to tracking. It does nothing and keeps no id."""

    __slots__ = ()

    def bind(self, **_ids: Any) -> BoundMixpanel:
        """Return this client. The ids are not kept."""
        return self
