"""The client seen through one user or request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypedDict

from .._encoding.validation import check_id, copy_mapping, is_instance, is_uuid4
from .._model.config import IdMerge
from .._model.errors import ConfigurationError, ValidationError
from .base import Meta, Properties

if TYPE_CHECKING:
    from .client import AsyncMixpanel


# In these an id of the form `$device:...` is an id like any other, and an anonymous visitor goes by the bare one.
_WITHOUT_DEVICES: Final = frozenset({IdMerge.LEGACY, IdMerge.ORIGINAL})
_LINK_BYTES: Final = 12


class _Ids(TypedDict):
    user_id: str | None
    device_id: str | None
    ip: str | None


class BoundMixpanel:
    """What `AsyncMixpanel.bind` returns. It needs no closing, and only `sign_in` and `sign_out` change it.

    Its methods are the client's without the ids; their errors are the same.
    """

    __slots__ = ("_client", "_distinct_id", "_ids", "_link", "_properties")

    def __init__(
        self,
        client: AsyncMixpanel | NullClient,
        *,
        distinct_id: str | None,
        user_id: str | None,
        device_id: str | None,
        ip: str | None,
        properties: Mapping[str, Any],
        link: str | None = None,
    ) -> None:
        self._client = client
        self._distinct_id = distinct_id
        self._ids: _Ids = {"user_id": user_id, "device_id": device_id, "ip": ip}
        self._properties = properties
        self._link = link

    @property
    def user_id(self) -> str | None:
        """Who is signed in."""
        return self._ids["user_id"]

    @property
    def device_id(self) -> str | None:
        """The anonymous id, of the browser or the device."""
        return self._ids["device_id"]

    @property
    def link(self) -> str | None:
        """Whose the device is, as far as `sign_in` saw to it: text to keep beside the device's id; tells no user id."""
        return self._link

    def silenced(self) -> BoundMixpanel:
        """The same, but its calls do nothing: for a visitor who has not agreed to being tracked."""
        return BoundMixpanel(NullClient(), distinct_id=None, properties={}, **_NOBODY)

    async def sign_in(
        self,
        user_id: str,
        event_name: str | None = None,
        properties: Properties | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        """Make the visitor of the bound device known as `user_id`, as the project's ID Merge system wants it.

        - Original: `identify`, or `alias` if the device's id is no UUID of version 4. Both ids are one person, also
          for the past.
        - Legacy: `alias`, once for each device. With `is_new` the user takes over what the visitor did before; without
          it that stays apart, as nothing in a Legacy project can bring it to a user who exists.
        - Simplified: the event with both ids, which follows in all three, is what joins them.

        From then on what is bound is the user. Signing in again sends the event alone. If the device is another user's,
        it first gets a fresh id, as in `sign_out`, so that two people who share a browser stay two.

        If it raises, nobody is signed in. Nothing is repeated by itself, and the call may be: ids that are joined
        already stay as they are.

        Args:
            user_id: the id of the user in your system; for good, as Mixpanel cannot rename one.
            event_name: the event to track; by default `Signed up` if `is_new`, else `Signed in`.
            properties: of that event.
            is_new: the user did not exist before. It matters in Legacy projects alone, where it must be true at
                sign-up and false at every login: there it makes the device's past the user's, and would cut a user who
                exists off from theirs.

        Raises:
            ConfigurationError: the client does not know the project's `id_merge`.
            ValidationError: `user_id` is none that Mixpanel takes, or a `distinct_id` is bound, which would win.
            ApiError, TransportError: the ids could not be joined (Original and Legacy).
            QueueFullError, ClientClosedError: as `AsyncMixpanel.track` does.
        """
        check_id(user_id, "user_id")
        if self._distinct_id is not None:
            raise ValidationError("distinct_id", "is bound, so that nobody can sign in; bind a device_id instead")
        if not self._is_free_for(user_id):
            self.sign_out()
        device_id = self._ids["device_id"]
        link = None if device_id is None else _link(device_id, user_id)
        if device_id is not None and link != self._link:
            await self._join_device(user_id, device_id, is_new=is_new)
        user = self.bind(user_id=user_id)
        await user.track(event_name or ("Signed up" if is_new else "Signed in"), properties)
        self._ids, self._link = user._ids, link

    async def _join_device(self, user_id: str, device_id: str, *, is_new: bool) -> None:
        """Make the identity call of `sign_in` for the project's ID Merge system."""
        system = self._client.id_merge
        if system is None:
            raise ConfigurationError("sign_in needs the project's ID Merge system; create the client with id_merge=")
        if system is IdMerge.ORIGINAL and is_uuid4(device_id):
            await self._client.identify(user_id, device_id)
        elif system is IdMerge.LEGACY and is_new:
            # The new id points to the device's id, so its events become the user's. Possible once per user id.
            await self._client.alias(user_id, device_id)
        elif system is not IdMerge.SIMPLIFIED:
            # For an existing user the device's id becomes the alias: data under the user's id must stay the user's.
            await self._client.alias(device_id, user_id)

    def sign_out(self) -> None:
        """Bind nobody, with a fresh anonymous id: what follows may be another person's."""
        self._ids["user_id"] = self._link = None
        if self._ids["device_id"] is not None:
            self._ids["device_id"] = self._client.new_device_id()

    def _is_free_for(self, user_id: str) -> bool:
        """Whether the device is nobody else's, as far as is known."""
        device_id, bound = self._ids["device_id"], self._ids["user_id"]
        if self._link is not None and device_id is not None:
            return self._link == _link(device_id, user_id)
        return bound is None or bound == user_id

    def bind(
        self,
        *,
        distinct_id: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        properties: Properties | None = None,
    ) -> BoundMixpanel:
        """The same with more bound, or something else."""
        return self._client.bind(
            distinct_id=self._distinct_id if distinct_id is None else distinct_id,
            user_id=self._ids["user_id"] if user_id is None else user_id,
            device_id=self._ids["device_id"] if device_id is None else device_id,
            ip=self._ids["ip"] if ip is None else ip,
            properties=self._merged(properties),
            link=self._link if device_id is None else None,
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
        await self._client.track(
            self._sender,
            event_name,
            self._merged(properties),
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
        self._client.track_nowait(
            self._sender,
            event_name,
            self._merged(properties),
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
        """Send one event now and wait for the answer. See `AsyncMixpanel.track_immediate`."""
        await self._client.track_immediate(
            self._sender,
            event_name,
            self._merged(properties),
            meta,
            time=time,
            insert_id=insert_id,
            **self._ids,
        )

    async def alias(self, alias_id: str, meta: Meta = None) -> None:
        """Let `alias_id` mean the bound person. See `AsyncMixpanel.alias`."""
        await self._client.alias(alias_id, self._sender or self._person, meta)

    async def identify(self, identified_id: str, meta: Meta = None) -> None:
        """Join the bound anonymous visitor to `identified_id`. See `AsyncMixpanel.identify`."""
        await self._client.identify(identified_id, self._ids["device_id"] or self._person, meta)

    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_update`; `$distinct_id` is put in."""
        message = {"$distinct_id": self._person, **copy_mapping(message, "message")}
        await self._client.people_update(message, self._located(meta))

    async def people_set(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_set`."""
        await self._client.people_set(self._person, properties, self._located(meta))

    async def people_set_once(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_set_once`."""
        await self._client.people_set_once(self._person, properties, self._located(meta))

    async def people_increment(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_increment`."""
        await self._client.people_increment(self._person, properties, self._located(meta))

    async def people_append(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_append`."""
        await self._client.people_append(self._person, properties, self._located(meta))

    async def people_union(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_union`."""
        await self._client.people_union(self._person, properties, self._located(meta))

    async def people_unset(self, properties: Sequence[str], meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_unset`."""
        await self._client.people_unset(self._person, properties, self._located(meta))

    async def people_remove(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_remove`."""
        await self._client.people_remove(self._person, properties, self._located(meta))

    async def people_delete(self, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_delete`."""
        await self._client.people_delete(self._person, self._located(meta))

    async def people_track_charge(self, amount: float, properties: Properties | None = None, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_track_charge`."""
        await self._client.people_track_charge(self._person, amount, properties, self._located(meta))

    async def people_clear_charges(self, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_clear_charges`."""
        await self._client.people_clear_charges(self._person, self._located(meta))

    @property
    def _sender(self) -> str | None:
        """The `distinct_id` of events; None leaves it to the other ids."""
        if self._distinct_id is None and self._client.id_merge in _WITHOUT_DEVICES:
            return self._ids["user_id"] or self._ids["device_id"]
        return self._distinct_id

    @property
    def _person(self) -> str:
        person = self._distinct_id or self._ids["user_id"]
        if person is None and not isinstance(self._client, NullClient):
            raise ValidationError("distinct_id", "is not bound, and neither is user_id")
        return person or ""

    def _merged(self, properties: object) -> Properties | None:
        if properties is None:
            return self._properties
        if is_instance(properties, str):
            raise ValidationError("properties", "must be a mapping; the ids are bound, so the event's name comes first")
        return {**self._properties, **copy_mapping(properties, "properties")}

    def _located(self, meta: Meta) -> Meta:
        ip = self._ids["ip"]
        return meta if ip is None else {"$ip": ip, **({} if meta is None else copy_mapping(meta, "meta"))}

    def __repr__(self) -> str:
        bound = [name for name, value in (("distinct_id", self._distinct_id), *self._ids.items()) if value is not None]
        return f"<BoundMixpanel {', '.join(bound) or 'nothing'} bound>"


class NullClient:
    """Stands in for the client of a visitor who has not agreed: every call does nothing."""

    id_merge: Final[IdMerge | None] = None

    def bind(self, **_ids: Any) -> BoundMixpanel:
        """The ids are forgotten at once."""
        return BoundMixpanel(self, distinct_id=None, properties={}, **_NOBODY)

    def new_device_id(self) -> str:
        """There is no device."""
        return ""

    def track_nowait(self, *arguments: object, **options: object) -> None:
        """Nothing."""

    async def _nothing(self, *arguments: object, **options: object) -> None:
        """Nothing."""

    track = track_immediate = alias = identify = _nothing
    people_update = people_set = people_set_once = people_increment = people_append = people_union = _nothing
    people_unset = people_remove = people_delete = people_track_charge = people_clear_charges = _nothing


_NOBODY: Final[_Ids] = {"user_id": None, "device_id": None, "ip": None}


def _link(device_id: str, user_id: str) -> str:
    # Keyed by the device, so that the same user leaves different texts in different browsers.
    key = blake2b(device_id.encode()).digest()
    return blake2b(user_id.encode(), key=key, digest_size=_LINK_BYTES).hexdigest()
