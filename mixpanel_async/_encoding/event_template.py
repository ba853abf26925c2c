"""Templates of events: everything that is constant for a client, or a bound client, is validated and encoded once.

A template produces the same JSON as `RecordEncoder`, or None for any event that it does not support. The fragments of
recent event names and ids are cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import orjson
from orjson import dumps

from .._model.errors import ValidationError
from .._model.interruption import raise_interruption
from .._model.version import VERSION
from .fragment_cache import CACHED_IDS, CACHED_NAMES, FragmentCache
from .size_check import MAX_RECORD_BYTES, exceeds, is_plain_json
from .validation import FORBIDDEN_IDS, check_device_id, check_user_id

if TYPE_CHECKING:
    from .normalizer import Normalizer

MP_LIB: Final = "python-async"
_MAX_ITEMS: Final = 254
# No `default`: orjson would swallow what a signal handler raises there.
_JSON_TYPES: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_OMIT_MICROSECONDS
_SCALAR_TYPES: Final = frozenset({str, int, bool, type(None)})
# Properties that the client sets itself, and ids that need validation.
_RESERVED: Final = frozenset(
    {"token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version", "$user_id", "$device_id"}
)
# The last three are the IP address, the user and the device.
_ADDED_BY_CLIENT: Final = 6 + 3
# The name and the properties.
_MESSAGE_FIELDS: Final = 2
# An IPv6 address with the name of an interface has at most 55 characters.
_MAX_ADDRESS_LENGTH: Final = 64
_CONTAINERS: Final = frozenset({dict, list})
IDENTITY_EVENTS: Final = frozenset({"$create_alias", "$identify", "$merge"})
"""Events whose names make Mixpanel join ids. The client checks them, so templates do not support them."""
_OCTETS: Final = frozenset(map(str, range(256)))


class Fragments:
    """Caches of fragments and conversion of values, shared by the templates of one project.

    Args:
        token: the project's token.
        normalizer: converts the values that are not JSON.
    """

    __slots__ = ("device_ids", "distinct_ids", "names", "normalizer", "user_ids")

    def __init__(self, token: str, normalizer: Normalizer) -> None:
        def name(event_name: str) -> bytes:
            if event_name in IDENTITY_EVENTS:
                raise KeyError
            record = {"event": event_name, "properties": {"token": token, "distinct_id": 0}}
            return dumps(record)[: -len("0}}")]

        self.names = FragmentCache(name, CACHED_NAMES)
        self.distinct_ids = FragmentCache(_distinct_id, CACHED_IDS)
        self.user_ids = FragmentCache(_user_id, CACHED_IDS)
        self.device_ids = FragmentCache(lambda id_: _pair("$device_id", check_device_id(id_, "")), CACHED_IDS)
        self.normalizer = normalizer


class EventTemplate:
    """Encoder of the plain events of one client, which share properties.

    Args:
        fragments: caches and conversion of the project.
        head: the shared properties up to the ids as JSON pairs, with a comma after each.
        tail: the shared properties after the ids, in the same form.
        names: names of the properties that a plain event cannot have.
        count: number of properties that an event may have.
    """

    __slots__ = (
        "_constants",
        "_count",
        "_fragments",
        "_head",
        "_normalizer",
        "_reserved",
        "_reserved_beside_ids",
        "_tail",
    )

    def __init__(self, fragments: Fragments, head: bytes, tail: bytes, names: frozenset[str], count: int) -> None:
        self._fragments, self._normalizer = fragments, fragments.normalizer
        self._head, self._tail = head, tail
        self._constants = head + tail
        self._reserved = names
        self._reserved_beside_ids = names | {"ip"}
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
        is_plain = self._reserved.isdisjoint(properties) and all(map(is_plain_json, properties.values()))
        if not is_plain or len(properties) > self._count:
            return None
        added = dumps(properties)[1:-1] + b","
        head, tail = (self._head, self._tail + added) if after_ids else (self._head + added, self._tail)
        names, count = self._reserved.union(properties), self._count - len(properties)
        return type(self)(self._fragments, head, tail, names, count)

    def with_ids(self, ip: str | None, user_id: str | None, device_id: str | None) -> bytes:
        """Return the shared properties with these ids, for `encode`. Raise if an id is not valid, or not plain."""
        if ip is not None and "ip" in self._reserved:
            raise KeyError
        fragments = self._fragments
        return b"".join(
            (
                self._head,
                b"" if ip is None else _address_pair(ip),
                b"" if user_id is None else fragments.user_ids[user_id],
                b"" if device_id is None else fragments.device_ids[device_id],
                self._tail,
            )
        )

    def encode(
        self, distinct_id: object, event_name: object, properties: Any, stamp: bytes, shared: bytes | None = None
    ) -> bytes | None:
        """Encode an event. Return None if it is not plain. The caller checks the size.

        Args:
            distinct_id: the user's id.
            event_name: name of the event.
            properties: properties of the event, or None.
            stamp: `time_fragment`, followed by the `$insert_id`.
            shared: the shared properties with further ids, from `with_ids`.

        Raises:
            ValidationError: if a value cannot be sent, and there is a serializer.
        """
        try:
            fragments, normalizer = self._fragments, self._normalizer
            start = fragments.names[event_name]
            person = fragments.distinct_ids[distinct_id]
            constants = self._constants if shared is None else shared
            reserved = self._reserved if shared is None else self._reserved_beside_ids
            if not properties and (type(properties) is dict or properties is None):
                # No comma follows the shared properties.
                return b"".join((start, person, stamp, constants[:-1], b"}}"))
            if type(properties) is not dict or len(properties) > self._count or not reserved.isdisjoint(properties):
                return None
            data = properties
            # Inline, with the most frequent types first: a function call takes 3 % of `track`.
            for value in properties.values():
                kind = type(value)
                # A float minus itself is 0 unless it is infinite or NaN.
                if kind is str or kind is int or kind is bool or (kind is float and value - value == 0.0):
                    continue
                if kind is list and len(value) <= _MAX_ITEMS:
                    for item in value:
                        if type(item) is not str:
                            break
                    else:
                        continue
                if value is None or kind in normalizer.native_types or (kind in _CONTAINERS and is_plain_json(value)):
                    continue
                data = self._converted(properties, value)
                break
            return b"".join((start, person, stamp, constants, dumps(data, None, _JSON_TYPES)[1:], b"}"))
        except Exception as error:  # noqa: BLE001  the general encoder raises the error for the user
            self._raise_if_final(error)
            return None

    def encode_message(self, message: Any, ids: tuple[object, object]) -> bytes | None:
        """Encode an event that a function of the user returned. Return None if it is not plain.

        Args:
            message: the event.
            ids: the valid `$user_id` and `$device_id`.
        """
        properties = message["properties"]
        if type(message) is not dict or len(message) != _MESSAGE_FIELDS or type(properties) is not dict:
            return None
        if properties.get("$user_id") is not ids[0] or properties.get("$device_id") is not ids[1]:
            return None
        if len(properties) > self._normalizer.limits.properties or not _are_plain(properties.values()):
            return None
        try:
            return dumps(message)
        except TypeError:
            return None

    def _converted(self, properties: dict[str, Any], first: object) -> dict[str, Any]:
        """Return a copy whose values are JSON. Raise if one of them is nested deeply.

        Args:
            properties: properties of an event.
            first: the first value that needs a conversion.
        """
        normalizer = self._normalizer
        data = properties.copy()
        is_checked = True
        for key, value in properties.items():
            if is_checked:
                # The values before the first one were checked already.
                if value is not first:
                    continue
                is_checked = False
            elif type(value) in _SCALAR_TYPES or is_plain_json(value):
                continue
            clean = data[key] = normalizer.value(key, value, "properties")
            if type(clean) in _CONTAINERS and not is_plain_json(clean):
                raise TypeError
        return data

    def _raise_if_final(self, error: Exception) -> None:
        """Raise an error that the general encoder must not find again: the user's serializer is called once."""
        if type(error) is ValidationError and self._normalizer.serializer is not None:
            raise error
        raise_interruption(error)


class BoundedEventTemplate(EventTemplate):
    """Template for a process with limited memory: it checks the size of all values before it encodes them.

    The check costs 20 % of a call. Without a limit, huge values are refused after they were encoded.
    """

    __slots__ = ()

    def encode(
        self, distinct_id: object, event_name: object, properties: Any, stamp: bytes, shared: bytes | None = None
    ) -> bytes | None:
        """Encode an event. Return None if it is not plain, or too large."""
        if exceeds(properties, MAX_RECORD_BYTES):
            return None
        return super().encode(distinct_id, event_name, properties, stamp, shared)

    def encode_message(self, message: Any, ids: tuple[object, object]) -> bytes | None:
        """Encode an event that a function of the user returned. Return None if it is not plain, or too large."""
        return None if exceeds(message, MAX_RECORD_BYTES) else super().encode_message(message, ids)


def make_template(token: str, normalizer: Normalizer, *, is_bounded: bool) -> EventTemplate:
    """Return the template of a project's events. It checks the size of values first if it is bounded."""
    kind = BoundedEventTemplate if is_bounded else EventTemplate
    count = normalizer.limits.properties - _ADDED_BY_CLIENT
    return kind(Fragments(token, normalizer), _LIBRARY, b"", _RESERVED, count)


def _are_plain(values: Iterable[Any]) -> bool:
    """Return whether these are JSON values that need no close check."""
    for value in values:
        kind = type(value)
        if kind is str or kind in _SCALAR_TYPES or (kind is float and value - value == 0.0) or is_plain_json(value):
            continue
        return False
    return True


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


def encode_nothing(_first: object, _second: object, _third: object, _stamp: bytes, _shared: bytes | None) -> None:
    """Support no event."""


def canonical_address(ip: object) -> str:
    """Return the canonical form of an IP address, or `"0"`.

    Raises:
        ValidationError: if it is neither.
    """
    if isinstance(ip, str) and len(ip) <= _MAX_ADDRESS_LENGTH:
        if ip == "0":
            return ip
        try:
            return _parsed_address(str.__str__(ip))
        except ValueError:
            pass
    raise ValidationError("ip", 'must be an IPv4 or IPv6 address, or "0" to disable geolocation')


def _address_pair(ip: object) -> bytes:
    """Return the property `ip`, with a comma. Raise `ValidationError` if it is no address."""
    # Parsing the address costs ten times as much, and every request of a web app may come from another one.
    if type(ip) is str and len(octets := ip.split(".", 4)) == 4 and _OCTETS.issuperset(octets):
        return f'"ip":"{ip}",'.encode()
    return _pair("ip", canonical_address(ip))


@lru_cache(maxsize=1_000)
def _parsed_address(ip: str) -> str:
    # A visitor sends several events from one address, and parsing it costs more than encoding an event.
    return str(ip_address(ip))


_LIBRARY: Final = b'","mp_lib":"%b","$lib_version":"%b",' % (MP_LIB.encode(), VERSION.encode())
