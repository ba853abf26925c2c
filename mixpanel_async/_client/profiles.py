"""Methods that update user profiles, with the official SDK's names and arguments. Each queues one update."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from .._encoding.validation import copy_mapping, is_decimal, is_instance, type_name
from .._model.errors import ValidationError
from .._model.records import RecordKind
from .base import ClientBase, Meta, Properties
from .invalid import as_refusal


class ProfileMethods(ClientBase):
    """Methods of the client that update user profiles."""

    async def people_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """Queue a profile update in Mixpanel's own form.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_update({"$distinct_id": "user-1", "$set": {"plan": "pro"}})


            asyncio.run(main())
            ```

        Args:
            message: `$distinct_id` and an operation, such as `$set`. It may override `$time`.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update(RecordKind.PEOPLE, message, meta)

    def _update_user(self, distinct_id: str, operation: str, value: object, meta: Meta) -> Awaitable[None]:
        return self._update(RecordKind.PEOPLE, {"$distinct_id": distinct_id, operation: value}, meta)

    async def people_set(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set properties and replace their old values. Mixpanel creates the profile if it does not exist.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_set("user-1", {"$name": "Ada", "plan": "pro"})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: new values by name, at most 2,000. Objects and lists are values too.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$set", properties, meta)

    async def people_set_once(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set the properties that the profile does not have yet.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_set_once("user-1", {"first_seen": "2026-11-30"})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: values by name, at most 2,000.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$set_once", properties, meta)

    async def people_increment(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add numbers to numeric properties. A missing property counts as 0.

        Not idempotent: it is not sent again if it is unknown whether Mixpanel has applied it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_increment("user-1", {"orders": 1, "credit": -2.5})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: finite numbers by name of the property; negative numbers subtract.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$add", properties, meta)

    async def people_append(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Append one value to each of the given list properties.

        Not idempotent: it is not sent again if it is unknown whether Mixpanel has applied it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_append("user-1", {"searches": "green tea"})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: one value to append by name of the list property.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$append", properties, meta)

    async def people_union(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add values to list properties, except values that they already contain.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_union("user-1", {"tags": ["beta", "newsletter"]})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: list of values to add by name of the list property.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$union", properties, meta)

    async def people_unset(self, distinct_id: str, properties: Sequence[str], meta: Meta = None) -> None:
        """Remove properties. Their values cannot be restored.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_unset("user-1", ["plan"])


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: names of the properties, at least one.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$unset", properties, meta)

    async def people_remove(self, distinct_id: str, properties: Properties, meta: Meta = None) -> None:
        """Remove one value from each of the given list properties.

        Not idempotent: it is not sent again if it is unknown whether Mixpanel has applied it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_remove("user-1", {"tags": "beta"})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            properties: one value to remove by name of the list property.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$remove", properties, meta)

    async def people_delete(self, distinct_id: str, meta: Meta = None) -> None:
        """Delete the profile.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_delete("user-1", {"$ignore_alias": True})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            meta: merged into the update. With `{"$ignore_alias": True}`, Mixpanel deletes the profile of this id even
                if the id is an alias of another profile.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$delete", "", meta)

    async def people_track_charge(
        self, distinct_id: str, amount: float, properties: Properties | None = None, meta: Meta = None
    ) -> None:
        """Append a payment to `$transactions`.

        Not idempotent: it is not sent again if it is unknown whether Mixpanel has applied it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_track_charge("user-1", 19.99, {"sku": "tea"})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            amount: a finite number, in the currency of the project.
            properties: further properties of the payment, such as `$time`. The mapping is not changed.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
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
        """Remove all payments from the profile. They cannot be restored.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.people_clear_charges("user-1")


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_user(distinct_id, "$unset", ["$transactions"], meta)


def _charge(amount: object, properties: Properties | None) -> dict[str, Any]:
    """Return the value of `$transactions` for one payment.

    Raises:
        ValidationError: if the amount is not a number, or `properties` cannot be read.
    """
    if is_instance(amount, bool) or not (is_instance(amount, (int, float)) or is_decimal(amount)):
        raise ValidationError("amount", f"must be a number, not {type_name(amount)}")
    return {**({} if properties is None else copy_mapping(properties, "properties")), "$amount": amount}
