"""Methods that update user and group profiles, with the official SDK's names and arguments.

Each method queues one update and returns. `meta` is merged into the update, next to the operation, for example
`{"$ignore_time": True}`, `{"$ip": "0"}` or `{"$ignore_alias": True}`. Each method raises `ValidationError` if Mixpanel
would not accept the update (with `invalid="drop"`, the update is dropped instead), `ClientClosedError` after
`aclose()`, and `QueueFullError` if the queue is full and the overflow policy raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from .._encoding.validation import copy_mapping, is_decimal, is_instance, type_name
from .._model.errors import ValidationError
from .._model.records import RecordKind
from .base import ClientBase, Meta, Properties
from .invalid import as_refusal


class ProfileMethods(ClientBase):
    """Methods of the client that update user and group profiles."""

    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """Queue a profile update in Mixpanel's own form.

        Args:
            message: `$distinct_id` and an operation, such as `$set`. It may override `$time`.
            meta: merged into the update, next to the operation.
        """
        await self._update(RecordKind.PEOPLE, message, meta)

    def _update_user(self, distinct_id: str, operation: str, value: object, meta: Meta) -> Awaitable[None]:
        return self._update(RecordKind.PEOPLE, {"$distinct_id": distinct_id, operation: value}, meta)

    async def people_set(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set properties and replace their old values. Mixpanel creates the profile if it does not exist.

        Example:
            >>> await mp.people_set("user-1", {"$name": "Ada", "plan": "pro"})
        """
        await self._update_user(distinct_id, "$set", properties, meta)

    async def people_set_once(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set the properties that the profile does not have yet."""
        await self._update_user(distinct_id, "$set_once", properties, meta)

    async def people_increment(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add numbers to numeric properties. A missing property counts as 0. Not idempotent."""
        await self._update_user(distinct_id, "$add", properties, meta)

    async def people_append(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Append one value to each of the given list properties. Not idempotent."""
        await self._update_user(distinct_id, "$append", properties, meta)

    async def people_union(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add values to list properties, except values that they already contain."""
        await self._update_user(distinct_id, "$union", properties, meta)

    async def people_unset(self, distinct_id: str, properties: Sequence[str], meta: Meta = None) -> None:
        """Remove properties. Their values cannot be restored.

        Args:
            distinct_id: id of the user.
            properties: names of the properties, at least one.
            meta: merged into the update, next to the operation.
        """
        await self._update_user(distinct_id, "$unset", properties, meta)

    async def people_remove(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Remove one value from each of the given list properties. Not idempotent."""
        await self._update_user(distinct_id, "$remove", properties, meta)

    async def people_delete(self, distinct_id: str, meta: Meta = None) -> None:
        """Delete the profile.

        With `meta={"$ignore_alias": True}`, Mixpanel deletes the profile of this id even if the id is an
        alias of another profile.
        """
        await self._update_user(distinct_id, "$delete", "", meta)

    async def people_track_charge(
        self, distinct_id: str, amount: float, properties: Properties | None = None, meta: Meta = None
    ) -> None:
        """Append a payment to `$transactions`. Not idempotent.

        Args:
            distinct_id: id of the user.
            amount: a finite number, in the currency of the project.
            properties: further properties of the payment. The mapping is not changed.
            meta: merged into the update, next to the operation.
        """
        try:
            charge = _charge(amount, properties)
        except Exception as error:  # noqa: BLE001  a user's types may raise anything
            failure = as_refusal(error)
        else:
            await self._update_user(distinct_id, "$append", {"$transactions": charge}, meta)
            return
        self._invalid.refuse(RecordKind.PEOPLE, failure)

    async def people_clear_charges(self, distinct_id: str, meta: Meta = None) -> None:
        """Remove all payments from the profile."""
        await self._update_user(distinct_id, "$unset", ["$transactions"], meta)

    async def group_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """Queue a group update in Mixpanel's own form.

        Args:
            message: `$group_key`, `$group_id` and an operation, such as `$set`. It may override `$time`.
            meta: merged into the update, next to the operation.
        """
        await self._update(RecordKind.GROUPS, message, meta)

    def _update_group(
        self, group_key: str, group_id: str, operation: str, value: object, meta: Meta
    ) -> Awaitable[None]:
        message = {"$group_key": group_key, "$group_id": group_id, operation: value}
        return self._update(RecordKind.GROUPS, message, meta)

    async def group_set(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set properties of a group and replace their old values. Mixpanel creates the group if it does not exist."""
        await self._update_group(group_key, group_id, "$set", properties, meta)

    async def group_set_once(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set the properties that the group does not have yet."""
        await self._update_group(group_key, group_id, "$set_once", properties, meta)

    async def group_union(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add values to list properties of a group, except values that they already contain."""
        await self._update_group(group_key, group_id, "$union", properties, meta)

    async def group_unset(self, group_key: str, group_id: str, properties: Sequence[str], meta: Meta = None) -> None:
        """Remove properties of a group. Their values cannot be restored."""
        await self._update_group(group_key, group_id, "$unset", properties, meta)

    async def group_remove(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Remove one value from each of the given list properties of a group. Not idempotent."""
        await self._update_group(group_key, group_id, "$remove", properties, meta)

    async def group_delete(self, group_key: str, group_id: str, meta: Meta = None) -> None:
        """Delete a group's profile."""
        await self._update_group(group_key, group_id, "$delete", "", meta)


def _charge(amount: object, properties: Properties | None) -> dict[str, Any]:
    """Return the value of `$transactions` for one payment.

    Raises:
        ValidationError: if the amount is not a number, or `properties` cannot be read.
    """
    if is_instance(amount, bool) or not (is_instance(amount, (int, float)) or is_decimal(amount)):
        raise ValidationError("amount", f"must be a number, not {type_name(amount)}")
    return {**({} if properties is None else copy_mapping(properties, "properties")), "$amount": amount}


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
