"""Arguments of a call to the bytes of a record: stamped, checked and encoded once, at the caller's line.

Mixpanel's duplicate key is (event, time, distinct_id, `$insert_id`). All four are in the bytes that leave here, so that
no later try can differ from the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from ipaddress import ip_address
from typing import Any, Final, cast

import orjson

from .._model.config import VERSION
from .._model.errors import ConfigurationError, ValidationError
from .._model.records import DropReason, NonIdempotentRecord, Record
from .fast_event import MAX_RECORD_BYTES, MP_LIB, FastEventEncoder, insert_id_fragment, time_fragment
from .timestamps import event_time
from .validation import (
    EVENT_LIMITS,
    PROFILE_LIMITS,
    WHOLE_EVENT_LIMITS,
    Normalizer,
    Serializer,
    check_id,
    check_insert_id,
    check_names,
    copy_mapping,
    is_plain,
    join_path,
    require_mapping,
)

Message = dict[str, Any]
BeforeSend = Callable[[Message], Message | None]
SerializerOption = Serializer | type[json.JSONEncoder] | None

_MAPPING_OPS: Final = ("$set", "$set_once", "$add", "$append", "$union", "$remove")
# Every other operation, a new one included, is taken to be unsafe to send twice.
_IDEMPOTENT: Final = frozenset({"$set", "$set_once", "$union", "$unset", "$delete"})
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


_NOTHING: Final = (None,) * 4


class DroppedByHook(Exception):  # noqa: N818  a signal inside the package, not an error
    """The user's `before_send` hook kept the message back, or failed. `record` is the message as far as it encodes."""

    def __init__(self, reason: DropReason, message: Message) -> None:
        super().__init__(reason)
        self.reason = reason
        try:
            # Not by orjson, which an object of a hook may take down.
            self.record = json.dumps(
                message, allow_nan=False, default=lambda value: f"<{type(value).__name__}>"
            ).encode()
        except (TypeError, ValueError, RecursionError):
            self.record = b""


def as_serializer(serializer: SerializerOption) -> Serializer | None:
    """The user's hook as a function: a callable, or a `json.JSONEncoder` class as the official SDK takes it.

    Raises:
        ConfigurationError: if it is neither.
    """
    if serializer is None:
        return None
    if isinstance(serializer, type) and issubclass(serializer, json.JSONEncoder):
        return cast("Serializer", serializer().default)
    if not callable(serializer):
        raise ConfigurationError("serializer must be a callable or a json.JSONEncoder class")
    return cast("Serializer", serializer)


class RecordEncoder:
    """Makes records for one project.

    Args:
        token: the project's token.
        super_properties: put under the properties of every event.
        serializer: see `as_serializer`.
        before_send: sees every tracked message and may change it or return None.
        recent: ordinary events go to `/track`, which takes the last five days only.
    """

    __slots__ = ("_before_send", "_events", "_profiles", "_recent", "_super", "_token", "_whole_event", "fast_encoder")

    def __init__(
        self,
        token: str,
        *,
        super_properties: Mapping[str, Any] | None = None,
        serializer: SerializerOption = None,
        before_send: BeforeSend | None = None,
        recent: bool = False,
    ) -> None:
        hook = as_serializer(serializer)
        self._events = Normalizer(EVENT_LIMITS, hook)
        self._whole_event = Normalizer(WHOLE_EVENT_LIMITS, hook)
        self._profiles = Normalizer(PROFILE_LIMITS, hook)
        self._token = token
        self._super = self.clean(super_properties, "super_properties")
        if before_send is not None and (not callable(before_send) or iscoroutinefunction(before_send)):
            raise ConfigurationError("before_send must be a plain function: it is called at the caller's line")
        self._before_send = before_send
        self._recent = recent
        self.fast_encoder = (
            None if before_send is not None or hook is not None or self._super else FastEventEncoder(token)
        )
        """The short way for events that need nothing else; None if all do."""

    def event(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Mapping[str, Any] | None,
        meta: Mapping[str, Any] | None,
        *,
        now: float,
        new_id: Callable[[], str],
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: object = None,
        insert_id: str | None = None,
        recent: bool | None = None,
    ) -> bytes:
        """One event, as `/track` and `/import` take it.

        Raises:
            ValidationError: naming the path of what cannot be sent.
            Discarded: if the `before_send` hook kept it back.
        """
        recent = self._recent if recent is None else recent
        stamp = int(now * 1000)
        made_id = new_id() if insert_id is None else insert_id
        if (meta, user_id, device_id, ip) == _NOTHING and type(properties) is dict:
            short = self._fast_path(distinct_id, event_name, properties, stamp, made_id, time, insert_id, now, recent)
            if short is not None:
                return short
        if distinct_id is None:
            distinct_id = _derive_distinct_id(user_id, device_id)
        props: Message = {
            "token": self._token,
            "distinct_id": distinct_id,
            "time": stamp,
            "$insert_id": made_id,
            "mp_lib": MP_LIB,
            "$lib_version": VERSION,
        }
        if self._super:
            props.update(self._super)
            props.update({"distinct_id": distinct_id, "time": stamp, "$insert_id": made_id})
        _put_arguments(props, ip, user_id, device_id, time)
        if properties is not None:
            # Millions of them would hold the event loop while they are copied; `clean` refuses them before.
            if type(properties) is not dict or len(properties) > EVENT_LIMITS.properties:
                properties = self.clean(properties, "properties")
            props.update(properties)
        message: Message = {"event": event_name, "properties": props}
        if meta is not None:
            _merge_meta(message, meta, self._events)
        checked = props.get("time") is stamp and insert_id is None and props.get("$insert_id") is made_id
        data = self._finish_event(message, now=now, recent=recent, stamps_are_ours=checked)
        if self._before_send is None:
            return data
        # The caller's own mistakes have been refused by now; what is wrong from here on is the hook's doing.
        message = self._run_before_send(orjson.loads(memoryview(data)))
        try:
            beside = {key: value for key, value in message.items() if key != "properties"}
            message = {
                **self._events.mapping(beside, ""),
                "properties": copy_mapping(message["properties"], "properties"),
            }
            return self._finish_event(message, now=now, recent=recent, stamps_are_ours=False)
        except ValidationError:
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message) from None

    def _fast_path(
        self,
        distinct_id: object,
        event_name: object,
        properties: dict[str, Any],
        stamp: int,
        made_id: str,
        time: object,
        insert_id: str | None,
        now: float,
        recent: bool,  # noqa: FBT001  by position, as this runs for every event
    ) -> bytes | None:
        if self.fast_encoder is None:
            return None
        if time is not None:
            if "time" in properties:
                # It wins over the argument, which is then not looked at.
                return None
            stamp = event_time(time, "properties.time", now=now, recent=recent)
        if insert_id is not None:
            if "$insert_id" in properties or type(insert_id) is not str:
                return None
            check_insert_id(insert_id, "properties.$insert_id")
        data = self.fast_encoder.encode(
            distinct_id, event_name, properties, time_fragment(stamp), insert_id_fragment(made_id)
        )
        return None if data is None else Record(data)

    def _finish_event(self, message: Message, *, now: float, recent: bool, stamps_are_ours: bool) -> bytes:
        """Check an event, make its values fit for JSON in place, and encode it."""
        props = message["properties"]
        if not stamps_are_ours:
            props["time"] = event_time(props.get("time"), "properties.time", now=now, recent=recent)
            check_insert_id(props.get("$insert_id"), "properties.$insert_id")
        name = message.get("event")
        if type(name) is not str or not 0 < len(name) <= 255 or name.isspace():
            _check_name(name)
        check_id(props.get("distinct_id"), "properties.distinct_id", empty=True)
        if "$user_id" in props:
            _check_part(props["$user_id"], "properties.$user_id")
        if "$device_id" in props:
            _check_part(props["$device_id"], "properties.$device_id")
        if len(props) > EVENT_LIMITS.properties:
            raise ValidationError("properties", f"are {len(props)} in all; Mixpanel takes {EVENT_LIMITS.properties}")
        if not is_plain(map(type, props.values())):
            self._events.normalize_in_place(props, "properties")
        return _encode(message, self._whole_event)

    def profile(self, message: Mapping[str, Any], meta: Mapping[str, Any] | None, *, now: float) -> bytes:
        """One update of a user's or a group's profile, `OnceOnly` if a second try could apply it twice.

        Raises:
            ValidationError: naming the path of what cannot be sent.
            Discarded: if the `before_send` hook kept it back.
        """
        record: Message = {"$token": self._token, "$time": now}
        record.update(copy_mapping(message, "message"))
        if meta is not None:
            record.update(copy_mapping(meta, "meta"))
        data, clean = self._finish_profile(record)
        if self._before_send is not None:
            clean = self._run_before_send(orjson.loads(memoryview(data)))
            try:
                data, clean = self._finish_profile(clean)
            except ValidationError:
                raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, clean) from None
        repeatable = all(key in _IDEMPOTENT or key in _ENVELOPE for key in clean)
        return data if repeatable else NonIdempotentRecord(data)

    def _finish_profile(self, record: Message) -> tuple[bytes, Message]:
        """Check an update and encode it; also as JSON has it."""
        _check_target(record)
        if all(key in _ENVELOPE for key in record):
            raise ValidationError("message", "has no operation, such as $set")
        for operation in _MAPPING_OPS:
            if operation in record:
                require_mapping(record[operation], operation)
        if "$unset" in record:
            check_names(record["$unset"], "$unset")
        clean = self._profiles.mapping(record, "")
        for key, value in clean.get("$add", {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValidationError(join_path("$add", key), f"must be a number, not {type(value).__name__}")
        return _encode(clean, self._profiles), clean

    def identity(self, event_name: str, properties: Message, meta: Mapping[str, Any] | None) -> bytes:
        """One `$create_alias`, `$merge` or `$identify` with exactly the fields that the official SDK sends.

        Raises:
            ValidationError: if `meta` cannot be sent.
        """
        message: Message = {"event": event_name, "properties": {**properties, "token": self._token}}
        if meta is not None:
            _merge_meta(message, meta, self._events)
        return _encode(message, self._whole_event)

    def clean(self, properties: Mapping[str, Any] | None, path: str) -> Message:
        """A copy of event properties that the caller can no longer change, holding only what JSON has.

        Raises:
            ValidationError: naming the path of what cannot be sent.
        """
        return {} if properties is None else self._events.mapping(require_mapping(properties, path), path)

    def _run_before_send(self, message: Message) -> Message:
        assert self._before_send is not None
        try:
            result = self._before_send(message)
        except Exception:  # noqa: BLE001  a user's hook may fail in any way
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message) from None
        if result is None:
            raise DroppedByHook(DropReason.BEFORE_SEND, message)
        if not isinstance(result, dict) or ("event" in message and not isinstance(result.get("properties"), dict)):
            raise DroppedByHook(DropReason.BEFORE_SEND_FAILED, message)
        return result


def _merge_meta(message: Message, meta: Mapping[str, Any], cleaner: Normalizer) -> None:
    clean = cleaner.mapping(require_mapping(meta, "meta"), "meta")
    for key in ("event", "properties"):
        if key in clean:
            raise ValidationError(f"meta.{key}", "would replace the event itself; pass it as an argument")
    message.update(clean)


def _derive_distinct_id(user_id: str | None, device_id: str | None) -> str | None:
    return f"$device:{device_id}" if user_id is None and isinstance(device_id, str) else user_id


def _put_arguments(props: Message, ip: object, user_id: object, device_id: object, time: object) -> None:
    if ip is not None:
        props["ip"] = _address(ip)
    for name, value in (("$user_id", user_id), ("$device_id", device_id), ("time", time)):
        if value is not None:
            props[name] = value


def _address(ip: object) -> str:
    if isinstance(ip, str):
        if ip == "0":
            return ip
        try:
            return str(ip_address(ip))
        except ValueError:
            pass
    raise ValidationError("properties.ip", 'must be an IP address, or "0" to keep Mixpanel from looking one up')


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValidationError("event", f"must be a string, not {type(name).__name__}")
    if not name.strip():
        raise ValidationError("event", "must not be blank")
    if len(name) > 255:
        raise ValidationError("event", f"has {len(name)} characters; Mixpanel cuts a name after 255")


def _check_part(value: object, path: str) -> None:
    check_id(value, path)
    if cast("str", value).startswith("$device:"):
        raise ValidationError(path, "must not carry the $device: prefix, which Mixpanel adds itself")


def _check_target(record: Message) -> None:
    if "$group_key" in record or "$group_id" in record:
        check_id(record.get("$group_id"), "$group_id")
        key = record.get("$group_key")
        if not isinstance(key, str) or not key.strip():
            raise ValidationError("$group_key", "must be a string that is not blank")
    else:
        check_id(record.get("$distinct_id"), "$distinct_id")


def _encode(message: Message, whole: Normalizer) -> bytes:
    """The message as JSON. orjson does not say what it could not take, so `whole` walks it then to name the path."""
    try:
        data = orjson.dumps(message)
    except TypeError:
        data = b""
    if not data:
        data = orjson.dumps(whole.mapping(message, ""))
    if len(data) >= MAX_RECORD_BYTES:
        path = "properties" if "properties" in message else "message"
        raise ValidationError(path, f"takes {len(data)} bytes as JSON; Mixpanel takes less than {MAX_RECORD_BYTES}")
    # What orjson returns may hold a page of memory for as long as it is kept; a copy holds what it weighs.
    return Record(memoryview(data))


def payload_of(item: bytes) -> dict[str, Any] | None:
    """A record as the user is shown it: without the token. None for no bytes at all."""
    if not item:
        return None
    payload: dict[str, Any] = orjson.loads(memoryview(item))
    payload.pop("$token", None)
    properties = payload.get("properties")
    if isinstance(properties, dict):
        properties.pop("token", None)
    return payload
