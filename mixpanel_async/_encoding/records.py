"""Encoding of call arguments as records: stamp, validate and encode once, during the call.

Mixpanel's de-duplication key is (event, time, distinct_id, `$insert_id`). All four are part of the encoded bytes, so
every retry sends the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, Final

import orjson

from .._model.config import NestingOption
from .._model.errors import ConfigurationError, ValidationError
from .._model.interruption import raise_interruption
from .._model.records import DropReason, IdentityRecord, NonIdempotentRecord, RefusedRecord
from .._model.version import VERSION
from .arguments import Arguments, EventArguments, derive_distinct_id, name_argument
from .event_template import (
    MP_LIB,
    canonical_address,
    encode_nothing,
    make_template,
)
from .hooks import BeforeSend, DroppedByHook, Message, SerializerOption, as_serializer, call_hook
from .nesting import limit_depth
from .normalizer import EVENT_LIMITS, PROFILE_LIMITS, WHOLE_EVENT_LIMITS, Normalizer, encode_message
from .size_check import MAX_RECORD_BYTES, is_plain_json
from .timestamps import event_time, restamp, stamp_time, time_fragment
from .update_template import IDEMPOTENT, MAPPING_OPS, UpdateTemplate
from .validation import (
    check_device_id,
    check_id,
    check_insert_id,
    check_kind,
    check_names,
    check_target,
    check_user_id,
    copy_mapping,
    is_instance,
    join_path,
    require_mapping,
    type_name,
)

_MAX_NAME_LENGTH: Final = 255
_ENVELOPE: Final = frozenset(
    {
        "$token",
        "$distinct_id",
        "$group_key",
        "$group_id",
        "$time",
        "$ip",
        "$ignore_time",
        "$ignore_alias",
        "$latitude",
        "$longitude",
    }
)
_REPEATABLE: Final = IDEMPOTENT | _ENVELOPE


class RecordEncoder:
    """Encoder of records for one project.

    Args:
        token: the project's token; empty to check records of any project.
        super_properties: defaults for the properties of every event.
        serializer: see `as_serializer`.
        before_send: called with every tracked message. It may change the message, except the token and whether it
            updates a user or a group, or drop it by returning None.
        recent: events go to `/track`, which accepts only the last five days.
        nesting: policy for deeply nested values of events that go to `/import`; see `AsyncMixpanel`.
        warn: called with a text, once, if a property had to be renamed.
        is_memory_limited: the process may not get all the memory that it asks for.
    """

    __slots__ = (
        "_before_send",
        "_events",
        "_nesting",
        "_profiles",
        "_recent",
        "_super",
        "_token",
        "_update_template",
        "_warn",
        "_whole_event",
        "is_hooked",
        "template",
    )

    def __init__(
        self,
        token: str,
        *,
        super_properties: Mapping[str, Any] | None = None,
        serializer: SerializerOption = None,
        before_send: BeforeSend | None = None,
        recent: bool = False,
        nesting: NestingOption = "keep",
        warn: Callable[[str], None] | None = None,
        is_memory_limited: bool = False,
    ) -> None:
        hook = as_serializer(serializer)
        self._events = Normalizer(EVENT_LIMITS, hook)
        self._whole_event = Normalizer(WHOLE_EVENT_LIMITS, hook)
        self._profiles = Normalizer(PROFILE_LIMITS, hook)
        self._token = token
        self._super = self.clean_properties(super_properties, "super_properties")
        if before_send is not None and (not callable(before_send) or iscoroutinefunction(before_send)):
            raise ConfigurationError(
                "before_send must be a plain function, not a coroutine function: it runs in the call"
            )
        self._before_send = before_send
        self._recent = recent
        self._nesting = nesting
        self._warn = warn
        self._update_template = UpdateTemplate(token)
        template = make_template(token, self._events, is_bounded=is_memory_limited)
        self.template = template.with_properties(self._super)
        """Template of the client's events; None if super properties have reserved names."""
        self.is_hooked = hook is not None or before_send is not None
        """Whether functions of the user are called for an event."""

    @property
    def encode_usual(self) -> Callable[[Any, Any, Any, bytes, bytes | None], bytes | None]:
        """Encoder of events without special arguments. It raises the errors of `encode_plain`."""
        if self.template is None:
            return encode_nothing
        return self.template.encode if self._before_send is None else self._encode_hooked

    def encode_event(
        self, arguments: EventArguments, *, now: float, new_id: Callable[[], str], recent: bool | None = None
    ) -> bytes:
        """Encode one event in the form that `/track` and `/import` accept.

        Args:
            arguments: arguments of the call.
            now: wall clock in seconds. It is the event's time unless the caller gives one.
            new_id: returns a random `$insert_id`. It is called unless the caller gives one.
            recent: overrides the encoder's `recent` for this event.

        Raises:
            ValidationError: if Mixpanel would not accept the event. `path` names the offending argument or property.
            DroppedByHook: if the `before_send` hook dropped the event or failed.
        """
        recent = self._recent if recent is None else recent
        now_ms = int(now * 1000)
        made_id = new_id() if arguments.insert_id is None else ""
        stamp = time_fragment(now_ms) + made_id.encode()
        record = self.encode_plain(arguments, recent, None, stamp)
        if record is not None and len(record) < MAX_RECORD_BYTES:
            return record
        insert_id = made_id if arguments.insert_id is None else arguments.insert_id
        message, has_own_stamps = self._build_event(arguments, now_ms, insert_id)
        nesting: NestingOption = "keep" if recent else self._nesting
        # A hook that looks for personal data must not find it hidden in JSON text.
        given: NestingOption = "keep" if self._before_send is not None and nesting == "text" else nesting
        try:
            record = self._finish_event(message, given, now=now, recent=recent, has_own_stamps=has_own_stamps)
        except ValidationError as error:
            raise name_argument(error, arguments, message["properties"]) from None
        if self._before_send is None:
            return record
        return self._hooked(record, b"", stamp, recent=recent)

    def _hooked(self, record: bytes, head: bytes, stamp: bytes, *, recent: bool) -> bytes:
        """Pass a valid event to the hook, and encode what the hook returns: an invalid value comes from the hook.

        Args:
            record: the event.
            head: its beginning up to the `$insert_id`, which needs no second validation; empty if the order is another.
            stamp: as in `encode_plain`.
            recent: the event goes to `/track`.
        """
        message = orjson.loads(record if type(record) is bytes else memoryview(record))
        get = message["properties"].get
        ids = get("$user_id"), get("$device_id")
        message = self._run_before_send(message)
        try:
            if head and self.template is not None:
                data = self.template.encode_message(message, ids)
                if data is not None and data.startswith(head) and len(data) < MAX_RECORD_BYTES:
                    return data
            envelope = copy_mapping(message, "")
            properties = copy_mapping(envelope.pop("properties"), "properties")
            # Mixpanel accepts an event without the token, and ignores it.
            properties["token"] = self._token
            clean = {**self._events.mapping(envelope, ""), "properties": properties}
            nesting: NestingOption = "keep" if recent else self._nesting
            return self._finish_event(clean, nesting, now=stamp_time(stamp), recent=recent, has_own_stamps=False)
        except Exception as error:  # noqa: BLE001  the methods of a mapping may raise anything
            raise_interruption(error)
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message) from None

    def encode_plain(
        self,
        event: Arguments,
        recent: bool | None,  # noqa: FBT001  arguments of `StagingBuffer.try_append`
        _unused: None,
        stamp: bytes,
        _shared: bytes | None = None,
    ) -> bytes | None:
        """Encode an event with the template. Return None if it does not support the event. The caller checks the size.

        Args:
            event: arguments of the call.
            recent: overrides the encoder's `recent` for this event.
            stamp: `time_fragment` of the current time, followed by a random `$insert_id`.

        Raises:
            DroppedByHook: if the `before_send` hook dropped the event or failed.
            ValidationError: if a value cannot be sent, and there is a serializer.
        """
        distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id = event
        template = self.template
        if template is None or meta is not None:
            return None
        recent = self._recent if recent is None else recent
        shared, own_stamp = None, stamp
        try:
            if user_id is not None or device_id is not None or ip is not None:
                shared = template.with_ids(ip, user_id, device_id)
                if distinct_id is None:
                    distinct_id = derive_distinct_id(user_id, device_id)
            if time is not None or insert_id is not None:
                own_stamp = restamp(stamp, time, insert_id, recent=recent)
        except Exception as error:  # noqa: BLE001  `encode_event` raises the error for the user
            raise_interruption(error)
            return None
        record = template.encode(distinct_id, event_name, properties, own_stamp, shared)
        if record is None or self._before_send is None:
            return record
        return self._hooked(record, _head(record, own_stamp), stamp, recent=recent)

    def _encode_hooked(
        self, distinct_id: object, event_name: object, properties: object, stamp: bytes, _shared: bytes | None
    ) -> bytes | None:
        """Encode an event without special arguments, and pass it to the hook. See `encode_plain`."""
        assert self.template is not None
        record = self.template.encode(distinct_id, event_name, properties, stamp)
        return None if record is None else self._hooked(record, _head(record, stamp), stamp, recent=self._recent)

    def _build_event(self, arguments: EventArguments, now_ms: int, insert_id: str) -> tuple[Message, bool]:
        """Build the message of an event.

        Returns:
            The message, and whether its `time` and `$insert_id` are the ones generated here, which need no validation.
        """
        distinct_id, event_name, properties, meta, user_id, device_id, ip, time, own_insert_id = arguments
        if distinct_id is None:
            distinct_id = derive_distinct_id(user_id, device_id)
        merged: Message = {
            "token": self._token,
            "distinct_id": distinct_id,
            "time": now_ms,
            "$insert_id": insert_id,
            "mp_lib": MP_LIB,
            "$lib_version": VERSION,
        }
        if self._super:
            merged.update(self._super)
            merged.update({"distinct_id": distinct_id, "time": now_ms, "$insert_id": insert_id})
        if ip is not None:
            merged["ip"] = canonical_address(ip)
        for name, value in (("$user_id", user_id), ("$device_id", device_id), ("time", time)):
            if value is not None:
                merged[name] = value
        if properties is not None:
            # Copying millions of properties would block the event loop. `clean_properties` rejects them first.
            if type(properties) is not dict or len(properties) > EVENT_LIMITS.properties:
                properties = self.clean_properties(properties, "properties")
            merged.update(properties)
        if merged["token"] is not self._token:
            self._restore_token(merged)
        message: Message = {"event": event_name, "properties": merged}
        if meta is not None:
            _merge_meta(message, meta, self._events)
        has_own_stamps = (
            own_insert_id is None and merged.get("time") is now_ms and merged.get("$insert_id") is insert_id
        )
        return message, has_own_stamps

    def _restore_token(self, properties: Message) -> None:
        """Rename a property called `token`: Mixpanel would take its value for the project's token and lose the event.

        Rejecting it instead would break the caller's request or lose the event.
        """
        value, properties["token"] = properties["token"], self._token
        if type(value) is str and value == self._token:
            return
        name = "token_"
        while name in properties:
            name += "_"
        properties[name] = value
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(f"the name of a property, 'token', is reserved for the project's token; it is sent as {name!r}")

    def _finish_event(
        self, message: Message, nesting: NestingOption, *, now: float, recent: bool, has_own_stamps: bool
    ) -> bytes:
        """Validate an event, convert its values in place and encode it."""
        properties = message["properties"]
        if not has_own_stamps:
            properties["time"] = event_time(properties.get("time"), "properties.time", now=now, recent=recent)
            check_insert_id(properties.get("$insert_id"), "properties.$insert_id")
        name = message.get("event")
        if type(name) is not str or not 0 < len(name) <= _MAX_NAME_LENGTH or name.isspace():
            _check_name(name)
        check_id(properties.get("distinct_id"), "properties.distinct_id", empty=True)
        if "$user_id" in properties:
            check_user_id(properties["$user_id"], "properties.$user_id")
        if "$device_id" in properties:
            properties["$device_id"] = check_device_id(properties["$device_id"], "properties.$device_id")
        if len(properties) > EVENT_LIMITS.properties:
            raise ValidationError(
                "properties",
                f"has {len(properties)} keys, including those the client adds; Mixpanel accepts "
                f"at most {EVENT_LIMITS.properties}",
            )
        self._events.normalize_in_place(properties, "properties")
        if nesting != "keep":
            message["properties"] = limit_depth(properties, nesting)
        return encode_message(message, self._whole_event)

    def encode_profile(
        self, message: Mapping[str, Any], meta: Mapping[str, Any] | None, *, now: float, is_group: bool = False
    ) -> bytes:
        """Encode one update of a user or group profile.

        Args:
            message: target and operation, in the form of Mixpanel's `/engage` and `/groups`.
            meta: merged into the update, next to the operation.
            now: wall clock in seconds, for `$time`.
            is_group: the update goes to `/groups`, also without a target, which is then missed.

        Returns:
            The record; a `NonIdempotentRecord` if sending it twice could apply it twice.

        Raises:
            ValidationError: if Mixpanel would not accept the update. `path` names the offending part.
            DroppedByHook: if the `before_send` hook dropped the update or failed.
        """
        if self._before_send is None:
            record = self._update_template.encode(message, meta, now=now, is_group=is_group)
            if record is not None:
                return record
        update: Message = {"$token": self._token, "$time": now}
        update.update(copy_mapping(message, "message"))
        if meta is not None:
            update.update(copy_mapping(meta, "meta"))
        if is_group:
            # The key makes an update without a target invalid. Without the key it would be treated as a user's update.
            update.setdefault("$group_key", None)
        token = update["$token"]
        if self._token and token is not self._token and (type(token) is not str or token != self._token):
            raise ValidationError("$token", "is not the client's token; create a client for the other project")
        data, clean = self._finish_profile(update)
        if self._before_send is not None:
            data, clean = self._finish_hooked_profile(orjson.loads(memoryview(data)))
        return data if _REPEATABLE.issuperset(clean) else NonIdempotentRecord(data)

    def _finish_hooked_profile(self, update: Message) -> tuple[bytes, Message]:
        """Pass an update to the hook, and finish what the hook returns."""
        token, is_group = update["$token"], "$group_key" in update
        message = self._run_before_send(update)
        try:
            changed = copy_mapping(message, "message")
            check_kind(changed, is_group=is_group)
            # Mixpanel accepts an update without the token, and ignores it.
            changed["$token"] = token
            return self._finish_profile(changed)
        except Exception as error:  # noqa: BLE001  the methods of a mapping may raise anything
            raise_interruption(error)
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message) from None

    def _finish_profile(self, update: Message) -> tuple[bytes, Message]:
        """Validate an update. Return it encoded, and as a dict of JSON values."""
        check_target(update)
        if _ENVELOPE.issuperset(update):
            raise ValidationError("message", "has no operation; add one, such as $set")
        for operation in MAPPING_OPS:
            if operation in update:
                require_mapping(update[operation], operation)
        if "$unset" in update:
            check_names(update["$unset"], "$unset")
        clean = update if is_plain_json(update) else self._profiles.mapping(update, "")
        for key, value in clean.get("$add", {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValidationError(join_path("$add", key), f"must be a number, not {type_name(value)}")
        return encode_message(clean, self._profiles), clean

    def encode_identity(self, event_name: str, properties: Message, meta: Mapping[str, Any] | None) -> bytes:
        """Encode one `$create_alias`, `$merge` or `$identify` with exactly the fields that the official SDK sends.

        Raises:
            ValidationError: if `meta` cannot be sent.
        """
        message: Message = {"event": event_name, "properties": {**properties, "token": self._token}}
        if meta is not None:
            _merge_meta(message, meta, self._events)
        return IdentityRecord(encode_message(self._whole_event.mapping(message, ""), self._whole_event))

    def clean_properties(self, properties: Mapping[str, Any] | None, path: str) -> Message:
        """Return a deep copy of event properties that contains only JSON values. None gives an empty dict.

        Raises:
            ValidationError: if a property cannot be sent. `path` names it.
        """
        return {} if properties is None else self._events.mapping(require_mapping(properties, path), path)

    def _run_before_send(self, message: Message) -> Message:
        assert self._before_send is not None
        try:
            result: Message | None = call_hook(self._before_send, message)
        except Exception as error:  # noqa: BLE001  a user's hook may raise anything
            raise_interruption(error)
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message) from None
        if result is None:
            raise DroppedByHook(DropReason.BEFORE_SEND, message)
        if type(result) is not dict and not is_instance(result, dict):
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message)
        return result


def _head(record: bytes, stamp: bytes) -> bytes:
    """Return the beginning of a record up to the end of its `$insert_id`, and the quote after it."""
    return record[: record.index(stamp) + len(stamp) + 1]


def _merge_meta(message: Message, meta: Mapping[str, Any], normalizer: Normalizer) -> None:
    clean = normalizer.mapping(require_mapping(meta, "meta"), "meta")
    for key in ("event", "properties"):
        if key in clean:
            raise ValidationError(f"meta.{key}", "would overwrite the event itself; pass it as an argument")
    message.update(clean)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValidationError("event", f"must be a string, not {type_name(name)}")
    if not name.strip():
        raise ValidationError("event", "must not be blank")
    if len(name) > _MAX_NAME_LENGTH:
        raise ValidationError(
            "event", f"has {len(name)} characters; Mixpanel truncates a name after {_MAX_NAME_LENGTH}"
        )


def payload_of(record: bytes) -> dict[str, Any] | None:
    """Decode a record for the user, without the token. Return None for an empty record or a `RefusedRecord`."""
    if not record or isinstance(record, RefusedRecord):
        return None
    payload: dict[str, Any] = orjson.loads(memoryview(record))
    payload.pop("$token", None)
    properties = payload.get("properties")
    if isinstance(properties, dict):
        properties.pop("token", None)
    return payload
