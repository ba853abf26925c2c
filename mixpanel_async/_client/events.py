"""The verbs that record events."""

from __future__ import annotations

from datetime import datetime

from .._delivery.lanes import Lane
from .._encoding.fast_event import join_record
from .._encoding.records import DroppedByHook
from .._model.credentials import as_secret
from .._model.errors import MixpanelException, ValidationError, without_traceback
from .._model.records import Record, RecordKind
from .base import ClientBase, Meta, Properties, unreadable_arguments


class EventMethods(ClientBase):
    """Mixed into the client."""

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
        """Queue an event. It costs microseconds and does not wait for Mixpanel.

        Args:
            distinct_id: who did it. An empty string means nobody; None derives it from `user_id` or `device_id`.
            event_name: at most 255 characters.
            properties: details; they win over the arguments below and over the client's own fields.
            meta: merged beside `event`, as the official SDK does; Mixpanel documents no effect.
            user_id: `$user_id`, for projects with Simplified ID Merge.
            device_id: `$device_id`, likewise; without the `$device:` prefix.
            ip: the user's address, or `"0"`. Without it Mixpanel locates nobody.
            time: when it happened: seconds or milliseconds since 1970, or a `datetime` with a time zone. Now if None.
            insert_id: at most 36 of A-Z, a-z, 0-9 and dash; made up if None. A repeat of the same event with the
                same id and time is counted once by Mixpanel.

        Raises:
            ValidationError: naming the path of what Mixpanel would not take.
            QueueFullError: under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            ClientClosedError: after `aclose()`.
        """
        stage = self._staging
        if (
            meta is not None
            or user_id is not None
            or device_id is not None
            or ip is not None
            or time is not None
            or insert_id is not None
            or type(properties) is not dict
            or not stage.is_own_loop()
            or not stage.fork_marker.is_current
        ):
            await self._track(distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id)
            return
        # What `_track` does, with as little as can be: most events go this way. What is called has a name of its own,
        # as an attribute that is called at once is looked for among the methods first.
        usual, rest_of, wall = self._fast_encoder, self._encode_properties, self._wall
        try:
            rest = rest_of(properties)
            head, person = usual.name_fragments[event_name], usual.distinct_id_fragments[distinct_id]
        except Exception:  # noqa: BLE001  what it was is told below
            rest = None
        if rest is not None:
            now = wall()
            if not (
                stage.millisecond_start <= now < stage.millisecond_end
                and (made_id := next(stage.insert_id_endings, b""))
            ):
                made_id = stage.start_millisecond(now, self._environment.new_id())
            size = usual.fixed_bytes + len(rest)
            if size <= stage.bytes_until_yield:
                stage.bytes_until_yield -= size
                shares = stage.fragments
                shares += head, person, stage.timestamp_prefix, made_id, rest
                return
            if size <= stage.bytes_until_yield + stage.bytes_reserved:
                stage.bytes_until_yield -= size
                stage.fragments += head, person, stage.timestamp_prefix, made_id, rest
                head = b""
                await self._yield()
                return
            record = Record(join_record(head, person, stage.timestamp_prefix, made_id, rest))
            # What reports errors may show the locals of this frame, and this one names the token.
            head = b""
            await self._enqueue(self._events, record)
            return
        head = b""
        await self._track(distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id)

    async def _track(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None,
        meta: Meta,
        user_id: str | None,
        device_id: str | None,
        ip: str | None,
        time: object,
        insert_id: str | None,
    ) -> None:
        """`track`, whatever the event."""
        item = self._event(
            distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id, self._events
        )
        if item is not None:
            await self._enqueue(self._events, item)

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
        """Queue an event from a plain function, in any thread. Arguments and errors are those of `track`.

        Raises:
            QueueFullError: under `Overflow.RAISE` and, as it cannot wait, under `Overflow.WAIT`.
        """
        item = self._event(
            distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id, self._events
        )
        if item is not None:
            if not self._queue.offer(self._events, item):
                raise self._queue.full()
            self._sender.bind_loop_if_idle()

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
        """Send one event now and return once Mixpanel has taken it. Arguments are those of `track`.

        Tries are limited by `identity_retry`. The event keeps its `time` and `$insert_id`, so that tries are one.

        Raises:
            ApiError: Mixpanel answered and did not take it.
            TransportError: no answer could be had.
            ValidationError: naming the path of what Mixpanel would not take.
            QueueFullError: there is no room for it, whatever the overflow policy.
            ClientClosedError: after `aclose()`.
        """
        item = self._event(
            distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id, self._events
        )
        if item is None:
            return
        batch = self._queue.lease_single(self._events, item)
        await self._direct_sender.send(RecordKind.EVENTS, item, batch=batch)

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

        Args:
            api_key: taken for the official SDK's sake and not sent: Mixpanel no longer documents it.
            distinct_id: who did it.
            event_name: at most 255 characters.
            timestamp: when it happened: seconds or milliseconds since 1970, or a `datetime` with a time zone.
            properties: details.
            meta: as in `track`.
            api_secret: the project's secret, if the client has no service account; Mixpanel retires it on 2027-03-03.
                Without either, the token signs the request.

        Raises:
            ValidationError, QueueFullError, ClientClosedError: as `track` does.
            ConfigurationError: if `api_secret` cannot be sent.
        """
        try:
            secret = as_secret(api_secret)
        finally:
            # What reports errors may show the locals of this frame.
            del api_secret
        lane = self._lanes[RecordKind.IMPORTS]
        if self._options.credentials is None and secret is not None:
            lane = self._queue.lane(RecordKind.IMPORTS, secret)
        if timestamp is None:
            raise ValidationError("timestamp", "must be a number or a datetime with a time zone, not NoneType")
        item = self._event(
            distinct_id, event_name, properties, meta, None, None, None, timestamp, None, lane, recent=False
        )
        if item is not None:
            await self._enqueue(lane, item)

    def _event(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None,
        meta: Meta,
        user_id: str | None,
        device_id: str | None,
        ip: str | None,
        time: object,
        insert_id: str | None,
        lane: Lane,
        *,
        recent: bool | None = None,
    ) -> bytes | None:
        """The encoded event, or None if `before_send` kept it back."""
        try:
            return self._encoder.event(
                distinct_id,
                event_name,
                properties,
                meta,
                now=self._now(),
                new_id=self._environment.new_id,
                user_id=user_id,
                device_id=device_id,
                ip=ip,
                time=time,
                insert_id=insert_id,
                recent=recent,
            )
        except DroppedByHook as kept:
            self._queue.discard(lane, kept.record, kept.reason)
            return None
        except MixpanelException as error:
            raise without_traceback(error) from None
        except Exception as error:  # noqa: BLE001  a user's types may fail in any way
            failure = unreadable_arguments(error)
        raise failure
