"""Methods that update group profiles, with the official SDK's names and arguments. Each queues one update."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from .._model.records import RecordKind
from .base import ClientBase, Meta, Properties


class GroupMethods(ClientBase):
    """Methods of the client that update group profiles."""

    async def group_update(self, message: Mapping[str, Any], meta: Meta = None) -> None:
        """Queue a group update in Mixpanel's own form.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_update({"$group_key": "company_id", "$group_id": "acme", "$set": {"seats": 5}})


            asyncio.run(main())
            ```

        Args:
            message: `$group_key`, `$group_id` and an operation, such as `$set`. It may override `$time`.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update(RecordKind.GROUPS, message, meta)

    def _update_group(
        self, group_key: str, group_id: str, operation: str, value: object, meta: Meta
    ) -> Awaitable[None]:
        message = {"$group_key": group_key, "$group_id": group_id, operation: value}
        return self._update(RecordKind.GROUPS, message, meta)

    async def group_set(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set properties of a group and replace their old values. Mixpanel creates the group if it does not exist.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_set("company_id", "acme", {"$name": "Acme", "seats": 5})


            asyncio.run(main())
            ```

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group: the value of that property.
            properties: new values by name, at most 2,000. Objects and lists are values too.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_group(group_key, group_id, "$set", properties, meta)

    async def group_set_once(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Set the properties that the group does not have yet.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_set_once("company_id", "acme", {"customer_since": "2026-11-30"})


            asyncio.run(main())
            ```

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group: the value of that property.
            properties: values by name, at most 2,000.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_group(group_key, group_id, "$set_once", properties, meta)

    async def group_union(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Add values to list properties of a group, except values that they already contain.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_union("company_id", "acme", {"products": ["tea", "cups"]})


            asyncio.run(main())
            ```

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group: the value of that property.
            properties: list of values to add by name of the list property.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_group(group_key, group_id, "$union", properties, meta)

    async def group_unset(self, group_key: str, group_id: str, properties: Sequence[str], meta: Meta = None) -> None:
        """Remove properties of a group. Their values cannot be restored.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_unset("company_id", "acme", ["seats"])


            asyncio.run(main())
            ```

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group: the value of that property.
            properties: names of the properties, at least one.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_group(group_key, group_id, "$unset", properties, meta)

    async def group_remove(self, group_key: str, group_id: str, properties: Properties, meta: Meta = None) -> None:
        """Remove one value from each of the given list properties of a group.

        Not idempotent: it is not sent again if it is unknown whether Mixpanel has applied it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_remove("company_id", "acme", {"products": "cups"})


            asyncio.run(main())
            ```

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group: the value of that property.
            properties: one value to remove by name of the list property.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_group(group_key, group_id, "$remove", properties, meta)

    async def group_delete(self, group_key: str, group_id: str, meta: Meta = None) -> None:
        """Delete a group's profile.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.group_delete("company_id", "acme")


            asyncio.run(main())
            ```

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group: the value of that property.
            meta: merged into the update, next to the operation, such as `{"$ignore_time": True}` or `{"$ip": "0"}`.

        Raises:
            ValidationError: if Mixpanel would not accept the update. With `invalid="drop"`, it is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        await self._update_group(group_key, group_id, "$delete", "", meta)
