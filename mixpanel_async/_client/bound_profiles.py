"""Methods of a bound client that update the profile of its user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Meta, Properties


class BoundProfileMethods(ABC):
    """Methods of `BoundMixpanel` that update the profile of the bound user."""

    __slots__ = ()

    @abstractmethod
    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_update`. The bound id is the default of `$distinct_id`."""

    async def people_set(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_set`."""
        await self.people_update({"$set": properties}, meta)

    async def people_set_once(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_set_once`."""
        await self.people_update({"$set_once": properties}, meta)

    async def people_increment(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_increment`."""
        await self.people_update({"$add": properties}, meta)

    async def people_append(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_append`."""
        await self.people_update({"$append": properties}, meta)

    async def people_union(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_union`."""
        await self.people_update({"$union": properties}, meta)

    async def people_unset(self, properties: Sequence[str], meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_unset`."""
        await self.people_update({"$unset": properties}, meta)

    async def people_remove(self, properties: Properties, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_remove`."""
        await self.people_update({"$remove": properties}, meta)

    async def people_delete(self, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_delete`."""
        await self.people_update({"$delete": ""}, meta)

    async def people_clear_charges(self, meta: Meta = None) -> None:
        """See `AsyncMixpanel.people_clear_charges`."""
        await self.people_update({"$unset": ["$transactions"]}, meta)
