"""The verbs of user and group profiles, with the official SDK's names and arguments.

All of them queue one update and return; `meta` is merged into the update beside the operation, such as
`{"$ignore_time": True}`, `{"$ip": "0"}` or `{"$ignore_alias": True}`. All raise `ValidationError` for what Mixpanel
would not take, `ClientClosedError` after `aclose()`, and `QueueFullError` under the overflow policies that raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._encoding.validation import copy_mapping, is_decimal, is_instance
from .._model.errors import ValidationError
from .._model.records import RecordKind
from .base import ClientBase, Meta, Properties


class ProfileMethods(ClientBase):
    """Mixed into the client."""

    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """Queue a profile update in Mixpanel's own form.

        Args:
            message: `$distinct_id` and one operation. It may override `$token` and `$time`.
            meta: merged beside the operation.
        """
        await self._update(RecordKind.PEOPLE, message, meta)

    async def _person(self, distinct_id: str, operation: str, value: object, meta: Meta) -> None:
        await self._update(RecordKind.PEOPLE, {"$distinct_id": distinct_id, operation: value}, meta)

    async def people_set(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set properties, replacing old values; the profile is created if it does not exist."""
        await self._person(distinct_id, "$set", properties, meta)

    async def people_set_once(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set those of the properties that the profile does not have yet."""
        await self._person(distinct_id, "$set_once", properties, meta)

    async def people_increment(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add numbers to numeric properties; one that is missing counts as 0. Not safe to send twice."""
        await self._person(distinct_id, "$add", properties, meta)

    async def people_append(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Append one value to each of the list properties named. Not safe to send twice."""
        await self._person(distinct_id, "$append", properties, meta)

    async def people_union(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add to list properties the values that they do not hold yet."""
        await self._person(distinct_id, "$union", properties, meta)

    async def people_unset(self, distinct_id: str, properties: Sequence[str], meta: Meta = None) -> None:
        """Remove properties for good.

        Args:
            distinct_id: the person.
            properties: names, at least one.
            meta: merged beside the operation.
        """
        await self._person(distinct_id, "$unset", properties, meta)

    async def people_remove(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Remove one value from each of the list properties named. Not safe to send twice."""
        await self._person(distinct_id, "$remove", properties, meta)

    async def people_delete(self, distinct_id: str, meta: Meta = None) -> None:
        """Delete the profile. Add `{"$ignore_alias": True}` to delete a duplicate and not what it points to."""
        await self._person(distinct_id, "$delete", "", meta)

    async def people_track_charge(
        self, distinct_id: str, amount: float, properties: Properties | None = None, meta: Meta = None
    ) -> None:
        """Append a payment to `$transactions`. Not safe to send twice.

        Args:
            distinct_id: the person.
            amount: a finite number, in the currency of the project.
            properties: details of the payment; left as they are.
            meta: merged beside the operation.
        """
        if is_instance(amount, bool) or not (is_instance(amount, (int, float)) or is_decimal(amount)):
            raise ValidationError("amount", f"must be a number, not {type(amount).__name__}")
        charge = {**({} if properties is None else copy_mapping(properties, "properties")), "$amount": amount}
        await self._person(distinct_id, "$append", {"$transactions": charge}, meta)

    async def people_clear_charges(self, distinct_id: str, meta: Meta = None) -> None:
        """Remove all payments."""
        await self._person(distinct_id, "$unset", ["$transactions"], meta)

    async def group_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """Queue a group update in Mixpanel's own form.

        Args:
            message: `$group_key`, `$group_id` and one operation. It may override `$token` and `$time`.
            meta: merged beside the operation.
        """
        update = copy_mapping(message, "message")
        # Without a target it would pass for a person's.
        update.setdefault("$group_key", None)
        await self._update(RecordKind.GROUPS, update, meta)

    async def _group(self, group_key: str, group_id: str, operation: str, value: object, meta: Meta) -> None:
        await self._update(RecordKind.GROUPS, {"$group_key": group_key, "$group_id": group_id, operation: value}, meta)

    async def group_set(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set properties of a group, replacing old values; the group is created if it does not exist."""
        await self._group(group_key, group_id, "$set", properties, meta)

    async def group_set_once(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set those of the properties that the group does not have yet."""
        await self._group(group_key, group_id, "$set_once", properties, meta)

    async def group_union(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add to list properties of a group the values that they do not hold yet."""
        await self._group(group_key, group_id, "$union", properties, meta)

    async def group_unset(self, group_key: str, group_id: str, properties: Sequence[str], meta: Meta = None) -> None:
        """Remove properties of a group for good."""
        await self._group(group_key, group_id, "$unset", properties, meta)

    async def group_remove(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Remove one value from each of the group's list properties named. Not safe to send twice."""
        await self._group(group_key, group_id, "$remove", properties, meta)

    async def group_delete(self, group_key: str, group_id: str, meta: Meta = None) -> None:
        """Delete a group's profile."""
        await self._group(group_key, group_id, "$delete", "", meta)
