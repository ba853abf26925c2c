"""Methods that track events."""

from __future__ import annotations

from datetime import datetime

from .._delivery.lanes import Lane
from .._delivery.staging import YIELD_AFTER_BYTES, Stage
from .._encoding.arguments import Arguments, EventArguments
from .._model.credentials import as_secret
from .._model.errors import ConfigurationError, MixpanelException, ValidationError, raise_configuration_error
from .._model.records import Record, RecordKind
from .base import (
    NO_SECRETS_IN_OUTBOX,
    ClientBase,
    Meta,
    Outcome,
    Properties,
    as_encoded,
    as_outcome,
)
from .identity_events import check_tracked_event


class EventMethods(ClientBase):
    """Methods of the client that track events."""

    async def track(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Queue an event. The call takes microseconds and does not wait for Mixpanel.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.track("user-1", "Order placed", {"amount": 19.99})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user. An empty string tracks the event without a user. None derives the id from
                `user_id` or `device_id`.
            event_name: 1 to 255 characters.
            properties: properties of the event, at most 254 including those the client adds. They override the
                arguments below and the client's own fields, except that `token` is sent as `token_`. See
                `docs/guides/properties.md` for reserved names.
            meta: merged into the message, next to `event`, as in the official SDK. Mixpanel documents no effect.
            user_id: `$user_id`, for projects with Simplified ID Merge.
            device_id: `$device_id`, for the same projects. It is sent without the prefix `$device:`, which it may have.
            ip: IP address of the user, for geolocation, or `"0"`. By default Mixpanel does not locate the user.
            time: time of the event: seconds or milliseconds since 1970, or a `datetime` with a time zone; by default
                now. At most one hour in the future, and at most five days ago unless events go to `/import`. With an
                outbox, older events are taken too: without a service account, its workers set them aside.
            insert_id: 1 to 36 of A-Z, a-z, 0-9 and dash; random by default. Mixpanel counts events with the same name,
                `distinct_id`, time and `insert_id` once.

        Raises:
            ValidationError: if Mixpanel would not accept the event. `path` names the offending part. With
                `invalid="drop"`, the event is dropped instead.
            IdentityError: if the event is a `$identify`, `$create_alias` or `$merge` that the project ignores.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            OutboxError: if the outbox confirms records, and has not taken this one within `timeout`.
            ClientClosedError: after `aclose()`.
        """
        record: bytes | bool | None = False
        outcome: Outcome | None = None
        if meta is None and user_id is None and device_id is None and ip is None and time is None and insert_id is None:
            try:
                record = self._staging.try_append(
                    self._event_stage, self._encode_usual, distinct_id, event_name, properties
                )
            except Exception as error:  # noqa: BLE001  a user's hooks may raise anything
                outcome = as_outcome(error)
            if record is True:
                return
        if outcome is not None:
            self._end(outcome, self._events, RecordKind.EVENTS)
            return
        if isinstance(record, bool):
            event = (distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id)
            record = self._encode_event(event, self._events, self._event_stage)
        if record is not None:
            await self._sender.enqueue(self._events, record, self._options.batching.wait_timeout)

    def track_nowait(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Queue an event from a plain function, in any thread.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    mp.track_nowait("user-1", "Order placed", {"amount": 19.99})


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user, as in `track`.
            event_name: 1 to 255 characters.
            properties: properties of the event, at most 254 including those the client adds.
            meta: merged into the message, next to `event`.
            user_id: `$user_id`, for projects with Simplified ID Merge.
            device_id: `$device_id`, for the same projects, with or without the prefix `$device:`.
            ip: IP address of the user, for geolocation, or `"0"`.
            time: time of the event: seconds or milliseconds since 1970, or a `datetime` with a time zone; by default
                now. Limits as in `track`.
            insert_id: 1 to 36 of A-Z, a-z, 0-9 and dash; random by default. Mixpanel counts events with the same name,
                `distinct_id`, time and `insert_id` once.

        Raises:
            ValidationError: if Mixpanel would not accept the event. `path` names the offending part. With
                `invalid="drop"`, the event is dropped instead.
            IdentityError: if the event is a `$identify`, `$create_alias` or `$merge` that the project ignores.
            QueueFullError: if the queue is full, under `Overflow.RAISE` or, because this call cannot wait, under
                `Overflow.WAIT`.
            ClientClosedError: after `aclose()`.
        """
        record: bytes | bool | None = False
        outcome: Outcome | None = None
        if meta is None and user_id is None and device_id is None and ip is None and time is None and insert_id is None:
            append, encode = self._staging.try_append, self._encode_usual
            try:
                record = append(self._event_stage, encode, distinct_id, event_name, properties)
            except Exception as error:  # noqa: BLE001  a user's hooks may raise anything
                outcome = as_outcome(error)
            if record is True:
                return
        if outcome is not None:
            self._end(outcome, self._events, RecordKind.EVENTS)
            return
        if isinstance(record, bool):
            event = (distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id)
            record = self._encode_event(event, self._events, self._event_stage)
        if record is not None:
            if not self._queue.offer(self._events, record):
                raise self._queue.full()
            if not self._sender.attach_if_idle():
                self._watchdog.begin()
            elif self._staging.must_yield(len(record)):
                # This call cannot yield.
                self._queue.reopen_staging(YIELD_AFTER_BYTES)

    async def track_immediate(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Send one event now and return when Mixpanel has accepted it.

        `identity_retry` limits the attempts. All attempts send the same `time` and `$insert_id`, so Mixpanel counts
        the event once.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel, MixpanelException


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    try:
                        await mp.track_immediate("user-1", "Order placed", {"amount": 19.99})
                    except MixpanelException as error:
                        print("not accepted:", error)


            asyncio.run(main())
            ```

        Args:
            distinct_id: id of the user, as in `track`.
            event_name: 1 to 255 characters.
            properties: properties of the event, at most 254 including those the client adds.
            meta: merged into the message, next to `event`.
            user_id: `$user_id`, for projects with Simplified ID Merge.
            device_id: `$device_id`, for the same projects, with or without the prefix `$device:`.
            ip: IP address of the user, for geolocation, or `"0"`.
            time: time of the event: seconds or milliseconds since 1970, or a `datetime` with a time zone; by default
                now. Limits as in `track`.
            insert_id: 1 to 36 of A-Z, a-z, 0-9 and dash; random by default. Mixpanel counts events with the same name,
                `distinct_id`, time and `insert_id` once.

        Raises:
            ApiError: if Mixpanel responded and did not accept the event.
            TransportError: if no attempt got a response.
            ValidationError: if Mixpanel would not accept the event, also with `invalid="drop"`: a call that returns
                means that Mixpanel has the event, unless `before_send` dropped it.
            IdentityError: if the event is a `$identify`, `$create_alias` or `$merge` that the project ignores.
            QueueFullError: if the queue has no room for the event, under every overflow policy.
            ClientClosedError: after `aclose()`.
        """
        event = (distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id)
        record = self._encode_event(event, self._events, is_awaited=True)
        if record is None:
            return
        batch = self._queue.lease_single(self._events, record)
        await self._direct_sender.send(RecordKind.EVENTS, record, batch=batch)

    async def import_data(
        self,
        api_key: str | None,  # noqa: ARG002  the official SDK's first argument
        distinct_id: str | None,
        event_name: str,
        timestamp: float | datetime,
        properties: Properties | None = None,
        meta: Meta = None,
        api_secret: str | None = None,
    ) -> None:
        """Queue an event of any age since 1971, for `/import`.

        Example:
            ```python
            import asyncio
            from datetime import datetime, timezone

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    day = datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc)
                    await mp.import_data(None, "user-1", "Order placed", day, {"$insert_id": "order-17"})


            asyncio.run(main())
            ```

        Args:
            api_key: ignored. The official SDK has it, but Mixpanel no longer documents it.
            distinct_id: id of the user; an empty string tracks the event without a user.
            event_name: 1 to 255 characters.
            timestamp: time of the event: seconds or milliseconds since 1970, or a `datetime` with a time zone; from
                1971-01-01 to one hour in the future.
            properties: as in `track`. Give each event a `$insert_id`, so that repeating the import adds nothing.
            meta: merged into the message, next to `event`.
            api_secret: the project's secret, if the client has no service account. Without either, the token
                authenticates the request. Mixpanel retires project secrets on 2027-03-03.

        Raises:
            ValidationError: if Mixpanel would not accept the event. `path` names the offending part. With
                `invalid="drop"`, the event is dropped instead.
            QueueFullError: if the queue is full, under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            SpoolError: if the client has a spool and cannot write to it.
            ClientClosedError: after `aclose()`.
            ConfigurationError: if `api_secret` cannot be sent, or the client has an outbox.
        """
        lane = self._lanes[RecordKind.IMPORTS]
        failure: MixpanelException | None = _missing_time(timestamp)
        try:
            secret = as_secret(api_secret)
            if secret is not None and self._options.has_outbox:
                raise_configuration_error(f"api_secret {NO_SECRETS_IN_OUTBOX}")
        except ConfigurationError as error:
            failure = error
        finally:
            # Error reporters may show the locals of this frame.
            del api_secret
        if failure is not None:
            self._invalid.refuse(RecordKind.IMPORTS, failure)
            return
        stage: Stage | None = self._stages[RecordKind.IMPORTS]
        if self._options.credentials is None and secret is not None:
            lane, stage = self._queue.lane(RecordKind.IMPORTS, secret), None
        event = (distinct_id, event_name, properties, meta, None, None, None, timestamp, None)
        record = self._encode_event(event, lane, stage, recent=False, time_argument="timestamp")
        if record is not None:
            await self._sender.enqueue(lane, record, self._options.batching.wait_timeout)

    def _encode_event(
        self,
        event: Arguments,
        lane: Lane,
        stage: Stage | None = None,
        *,
        recent: bool | None = None,
        is_awaited: bool = False,
        time_argument: str = "time",
    ) -> bytes | None:
        """Encode an event, and stage it if there is a stage.

        Returns:
            The record. None if there is nothing left to do: it is staged or dropped, or the client is disabled.
        """
        if not self._options.enabled:
            return None
        try:
            encoder, append = self._encoder, self._staging.try_append
            record = False if stage is None else append(stage, encoder.encode_plain, event, recent, None)
            if record is False:
                if time_argument == "time":
                    # Imports repeat what a project has exported.
                    check_tracked_event(event[1], event[2], self._options.id_merge, recent=self._options.is_recent_only)
                now, new_id = self._staging.now(), self._environment.new_id
                record = Record(encoder.encode_event(EventArguments(*event), now=now, new_id=new_id, recent=recent))
                if stage is not None and append(stage, as_encoded, record, None, None) is True:
                    record = True
        except Exception as error:  # noqa: BLE001  a user's types may raise anything
            outcome = as_outcome(error)
            if isinstance(outcome, ValidationError) and outcome.path == "time":
                outcome = ValidationError(time_argument, outcome.problem)
        else:
            return None if isinstance(record, bool) else record
        if is_awaited and isinstance(outcome, MixpanelException):
            self._invalid.refuse_awaited(outcome)
        else:
            self._end(outcome, lane, lane.kind)
        return None


def _missing_time(timestamp: object) -> ValidationError | None:
    if timestamp is not None:
        return None
    return ValidationError("timestamp", "must be a number or a datetime with a time zone, not NoneType")
