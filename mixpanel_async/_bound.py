"""The client seen through one user or request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from ._core import Meta, Properties
from ._errors import ValidationError
from ._wire.values import is_a, shallow

if TYPE_CHECKING:
    from ._client import AsyncMixpanel


class _Ids(TypedDict):
    user_id: str | None
    device_id: str | None
    ip: str | None


class BoundMixpanel:
    """What `AsyncMixpanel.bind` returns. It holds no state of its own and needs no closing.

    Its methods are the client's without the ids; their errors are the same.
    """

    __slots__ = ("_client", "_distinct_id", "_ids", "_properties")

    def __init__(
        self,
        client: AsyncMixpanel,
        *,
        distinct_id: str | None,
        user_id: str | None,
        device_id: str | None,
        ip: str | None,
        properties: Mapping[str, Any],
    ) -> None:
        self._client = client
        self._distinct_id = distinct_id
        self._ids: _Ids = {"user_id": user_id, "device_id": device_id, "ip": ip}
        self._properties = properties

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
            self._distinct_id,
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
            self._distinct_id,
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
            self._distinct_id,
            event_name,
            self._merged(properties),
            meta,
            time=time,
            insert_id=insert_id,
            **self._ids,
        )

    async def alias(self, alias_id: str, meta: Meta = None) -> None:
        """Let `alias_id` mean the bound person. See `AsyncMixpanel.alias`."""
        await self._client.alias(alias_id, self._person, meta)

    async def identify(self, identified_id: str, meta: Meta = None) -> None:
        """Join the bound anonymous visitor to `identified_id`. See `AsyncMixpanel.identify`."""
        await self._client.identify(identified_id, self._person, meta)

    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_update`; `$distinct_id` is put in."""
        message = {"$distinct_id": self._person, **shallow(message, "message")}
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
    def _person(self) -> str:
        person = self._distinct_id or self._ids["user_id"]
        if person is None:
            raise ValidationError("distinct_id", "is not bound, and neither is user_id")
        return person

    def _merged(self, properties: object) -> Properties | None:
        if properties is None:
            return self._properties
        if is_a(properties, str):
            raise ValidationError("properties", "must be a mapping; the ids are bound, so the event's name comes first")
        return {**self._properties, **shallow(properties, "properties")}

    def _located(self, meta: Meta) -> Meta:
        ip = self._ids["ip"]
        return meta if ip is None else {"$ip": ip, **({} if meta is None else shallow(meta, "meta"))}

    def __repr__(self) -> str:
        bound = [name for name, value in (("distinct_id", self._distinct_id), *self._ids.items()) if value is not None]
        return f"<BoundMixpanel {', '.join(bound) or 'nothing'} bound>"
