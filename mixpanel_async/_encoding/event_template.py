"""Templates of events: everything that is constant for a client, or a bound client, is validated and encoded once.

A template produces the same JSON as `RecordEncoder`, or None for any event that it does not support. The fragments of
recent event names and ids are cached.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Final

import orjson
from orjson import dumps

from .._model.errors import ValidationError
from .._model.interruption import raise_interruption
from .._model.version import VERSION
from .size_check import MAX_RECORD_BYTES, exceeds, is_plain_json
from .validation import FORBIDDEN_IDS, check_device_id, check_user_id, device_person

if TYPE_CHECKING:
    from .normalizer import Normalizer

MP_LIB: Final = "python-async"
_MAX_ITEMS: Final = 254
_MAX_TEXT_LENGTH: Final = 255
_CACHED_NAMES: Final = 1_000
_CACHED_IDS: Final = 4_000
# Longer fragments are not cached, which bounds the memory of the caches.
_MAX_CACHED_BYTES: Final = 512
JSON_TYPES_ONLY: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_SCALAR_TYPES: Final = frozenset({str, int, bool, type(None)})
# Properties that the client sets itself, and ids that need validation.
_RESERVED: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
)
_ADDED_BY_CLIENT: Final = 6
# An IPv6 address with the name of an interface has at most 55 characters.
_MAX_ADDRESS_LENGTH: Final = 64
_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# Parsing the address costs ten times as much, and every request of a web app may come from another one.
_IPV4: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")

PlainEncoder = Callable[[Any, Any, Any, bytes], bytes | None]
"""Method `EventTemplate.encode`, or a function with the same arguments."""


class Fragments:
    """Caches of fragments of one project, which its templates share.

    Args:
        token: the project's token.
    """

    __slots__ = ("addresses", "device_ids", "distinct_ids", "names", "user_ids")

    def __init__(self, token: str) -> None:
        def name(event_name: str) -> bytes:
            record = {"event": event_name, "properties": {"token": token, "distinct_id": 0}}
            return dumps(record)[: -len("0}}")]

        self.names = _FragmentCache(name, _CACHED_NAMES)
        self.distinct_ids = _FragmentCache(_distinct_id, _CACHED_IDS)
        self.user_ids = _FragmentCache(_user_id, _CACHED_IDS)
        self.device_ids = _FragmentCache(lambda id_: _pair("$device_id", check_device_id(id_, "")), _CACHED_IDS)
        self.addresses = _FragmentCache(lambda ip: _pair("ip", canonical_address(ip)), _CACHED_IDS)


class EventTemplate:
    """Encoder of the plain events of one client, which share properties.

    Args:
        fragments: caches of the project.
        normalizer: converts the values that are not JSON.
        head: the shared properties up to the ids as JSON pairs, with a comma after each.
        tail: the shared properties after the ids, in the same form.
        names: names of the properties that a plain event cannot have.
        count: number of properties that an event may have.
        default_id: `distinct_id` of an event without one.
    """

    __slots__ = (
        "_constants",
        "_count",
        "_default_id",
        "_distinct_ids",
        "_fragments",
        "_head",
        "_is_free",
        "_names",
        "_normalizer",
        "_reserved",
        "_tail",
    )

    def __init__(
        self,
        fragments: Fragments,
        normalizer: Normalizer,
        head: bytes,
        tail: bytes,
        names: frozenset[str],
        count: int,
        default_id: str | None = None,
    ) -> None:
        self._fragments = fragments
        self._names, self._distinct_ids = fragments.names, fragments.distinct_ids
        self._normalizer = normalizer
        self._head, self._tail = head, tail
        self._constants = head + tail
        self._reserved = names
        self._default_id = default_id
        self._is_free = names.isdisjoint
        self._count = count

    def with_properties(self, properties: Mapping[str, Any], *, after_ids: bool = False) -> EventTemplate | None:
        """Return a template of events that also have these properties, which are JSON values.

        None if one of them has the name of a field or property that the events have already, or is nested deeply.

        Args:
            properties: the properties.
            after_ids: whether ids that are added later precede them.
        """
        if not properties:
            return self
        is_plain = self._is_free(properties) and all(map(is_plain_json, properties.values()))
        if not is_plain or len(properties) > self._count:
            return None
        added = dumps(properties)[1:-1] + b","
        head, tail = (self._head, self._tail + added) if after_ids else (self._head + added, self._tail)
        return self._derived(head, tail, self._reserved.union(properties), len(properties), self._default_id)

    def with_ids(self, ip: str | None, user_id: str | None, device_id: str | None) -> EventTemplate | None:
        """Return a template of events that also have these ids. None if one of them is not valid, or needs a check."""
        fragments, head, names, count = self._fragments, self._head, self._reserved, 0
        try:
            if ip is not None:
                if "ip" in names:
                    return None
                head += fragments.addresses[ip]
                names = _with_ip(names)
                count = 1
            if user_id is not None:
                head += fragments.user_ids[user_id]
                count += 1
            if device_id is not None:
                head += fragments.device_ids[device_id]
                count += 1
        except Exception as error:  # noqa: BLE001  the general encoder raises the error for the user
            raise_interruption(error)
            return None
        return self._derived(head, self._tail, names, count, derive_distinct_id(user_id, device_id))

    def _derived(
        self, head: bytes, tail: bytes, names: frozenset[str], count: int, default_id: str | None
    ) -> EventTemplate:
        return type(self)(self._fragments, self._normalizer, head, tail, names, self._count - count, default_id)

    def encode(
        self, distinct_id: object, event_name: object, properties: dict[str, Any] | None, stamp: bytes
    ) -> bytes | None:
        """Encode an event. Return None if it is not plain. The caller checks the size.

        Args:
            distinct_id: the user's id.
            event_name: name of the event.
            properties: properties of the event, or None.
            stamp: `time_fragment`, followed by the `$insert_id`.

        Raises:
            ValidationError: if a value cannot be sent, and there is a serializer.
        """
        try:
            distinct_id = self._default_id if distinct_id is None else distinct_id
            if not properties and (type(properties) is dict or properties is None):
                return self._encode_bare(distinct_id, event_name, stamp)
            if type(properties) is not dict or len(properties) > self._count or not self._is_free(properties):
                return None
            data = properties
            for value in properties.values():
                kind = type(value)
                # A float minus itself is 0 unless it is infinite or NaN.
                if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                    continue
                if kind is list and len(value) <= _MAX_ITEMS:
                    # Inline: many events have a list, and a call for each costs 5 % of `track`.
                    for item in value:
                        if type(item) is not str:
                            break
                    else:
                        continue
                if value is None or ((kind is dict or kind is list) and is_plain_json(value)):
                    continue
                data = self._converted(properties, value)
                break
            return b"".join(
                (
                    self._names[event_name],
                    self._distinct_ids[distinct_id],
                    stamp,
                    self._constants,
                    dumps(data, None, JSON_TYPES_ONLY)[1:],
                    b"}",
                )
            )
        except Exception as error:  # noqa: BLE001  the general encoder raises the error for the user
            self._raise_if_final(error)
            return None

    def _converted(self, properties: dict[str, Any], first: object) -> dict[str, Any]:
        """Return a copy whose values are JSON. Raise if one of them is nested deeply.

        Args:
            properties: properties of an event.
            first: the first value that needs a conversion.
        """
        data = properties.copy()
        for key, value in dropwhile(lambda pair: pair[1] is not first, properties.items()):
            if type(value) in _SCALAR_TYPES or (value is not first and is_plain_json(value)):
                continue
            clean = data[key] = self._normalizer.value(key, value, "properties")
            if type(clean) is not str and not is_plain_json(clean):
                raise TypeError
        return data

    def _raise_if_final(self, error: Exception) -> None:
        """Raise an error that the general encoder must not find again: the user's serializer is called once."""
        if type(error) is ValidationError and self._normalizer.serializer is not None:
            raise error
        raise_interruption(error)

    def _encode_bare(self, distinct_id: object, event_name: object, stamp: bytes) -> bytes:
        """Encode an event without properties: no comma follows the shared ones."""
        fields = (self._names[event_name], self._distinct_ids[distinct_id], stamp, self._constants[:-1])
        return b"".join((*fields, b"}}"))


class BoundedEventTemplate(EventTemplate):
    """Template for a process with limited memory: it checks the size of all values before it encodes them.

    The check costs 20 % of a call. Without a limit, huge values are refused after they were encoded.
    """

    __slots__ = ()

    def encode(
        self, distinct_id: object, event_name: object, properties: dict[str, Any] | None, stamp: bytes
    ) -> bytes | None:
        """Encode an event. Return None if it is not plain, or too large."""
        if exceeds(properties, MAX_RECORD_BYTES):
            return None
        return super().encode(distinct_id, event_name, properties, stamp)


def make_template(fragments: Fragments, normalizer: Normalizer, *, is_bounded: bool) -> EventTemplate:
    """Return the template of a project's events. It checks the size of values first if it is bounded."""
    kind = BoundedEventTemplate if is_bounded else EventTemplate
    return kind(fragments, normalizer, _LIBRARY, b"", _RESERVED, normalizer.limits.properties - _ADDED_BY_CLIENT)


class _FragmentCache(dict[object, bytes]):
    """Cache of fragments by name or id. It is emptied when it is full.

    Args:
        encode: returns the fragment of a key, or raises if the key needs validation.
        max_entries: number of cached fragments.
    """

    __slots__ = ("_encode", "_max_entries")

    def __init__(self, encode: Callable[[str], bytes], max_entries: int) -> None:
        self._encode = encode
        self._max_entries = max_entries

    def __missing__(self, key: object) -> bytes:
        if type(key) is not str or not 0 < len(key) <= _MAX_TEXT_LENGTH or key.isspace():
            raise KeyError
        fragment = self._encode(key)
        if len(fragment) <= _MAX_CACHED_BYTES:
            if len(self) >= self._max_entries:
                self.clear()
            self[key] = fragment
        return fragment


def _pair(name: str, value: str) -> bytes:
    """Return a property, with a comma."""
    return dumps({name: value})[1:-1] + b","


def _distinct_id(distinct_id: str) -> bytes:
    """Return a `distinct_id` up to the value of `time`."""
    if distinct_id.lower() in FORBIDDEN_IDS:
        raise KeyError
    return dumps(distinct_id) + b',"time":'


def _user_id(user_id: str) -> bytes:
    check_user_id(user_id, "")
    return _pair("$user_id", user_id)


def derive_distinct_id(user_id: str | None, device_id: str | None) -> str | None:
    """Return the `distinct_id` of an event with these ids only. An invalid id is refused later."""
    if user_id is not None:
        return user_id
    return device_person(device_id) if isinstance(device_id, str) else device_id


def encode_nothing(_distinct_id: object, _event_name: object, _properties: object, _stamp: bytes) -> None:
    """Support no event."""


def encode_stamped(
    encode: PlainEncoder, moment: bytes | None, insert_id: str | None,
    distinct_id: object, event_name: object, properties: Any, stamp: bytes,
) -> bytes | None:  # fmt: skip
    """Encode a plain event with the time or the `$insert_id` of the caller.

    Args:
        encode: encoder of a template.
        moment: result of `time_fragment`; None for the time of the stamp.
        insert_id: the id; None for that of the stamp.
        distinct_id: argument of `encode`, as the following ones.
    """
    end = stamp.rindex(b'"') + 1
    given_id = stamp[end:] if insert_id is None else insert_id.encode()
    return encode(distinct_id, event_name, properties, (moment or stamp[:end]) + given_id)


def canonical_address(ip: object) -> str:
    """Return the canonical form of an IP address, or `"0"`.

    Raises:
        ValidationError: if it is neither.
    """
    if isinstance(ip, str) and len(ip) <= _MAX_ADDRESS_LENGTH:
        if ip == "0":
            return ip
        try:
            return _canonical(str.__str__(ip))
        except ValueError:
            pass
    raise ValidationError("ip", 'must be an IPv4 or IPv6 address, or "0" to disable geolocation')


@lru_cache(maxsize=1_000)
def _canonical(ip: str) -> str:
    if _IPV4.fullmatch(ip):
        return ip
    # A visitor sends several events from one address, and parsing it costs 10 % of a call.
    return str(ip_address(ip))


def _with_ip(names: frozenset[str]) -> frozenset[str]:
    return _RESERVED_WITH_IP if names is _RESERVED else names | {"ip"}


_LIBRARY: Final = b'","mp_lib":"%b","$lib_version":"%b",' % (MP_LIB.encode(), VERSION.encode())
_RESERVED_WITH_IP: Final = _RESERVED | {"ip"}
