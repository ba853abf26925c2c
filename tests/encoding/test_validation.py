"""Property values are converted as documented, and invalid values are rejected with their path."""

from __future__ import annotations

import copy
import enum
import json
import re
import subprocess
import sys
import time
import traceback
import types
import uuid
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixpanel_async import ConfigurationError, ValidationError
from mixpanel_async._encoding.arguments import EventArguments
from mixpanel_async._encoding.normalizer import EVENT_LIMITS, PROFILE_LIMITS, Normalizer
from mixpanel_async._encoding.records import RecordEncoder
from mixpanel_async._encoding.validation import is_anonymous_id

NOW = 1_700_000_000.0
OWN = ("token", "distinct_id", "time", "$insert_id", "mp_lib", "$lib_version")
CANARY = "canary-7f3a"
PROPERTY = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def on_event(properties: Any, **options: Any) -> Any:
    """Return the properties after a round trip through an event."""
    data = RecordEncoder("t", **options).encode_event(
        EventArguments("someone", "Done", properties), now=NOW, new_id=lambda: "id"
    )
    sent = orjson.loads(memoryview(data))["properties"]
    assert sent == json.loads(data)["properties"], "two readers of JSON must agree"
    return {key: value for key, value in sent.items() if key not in OWN}


def on_profile(properties: Any, **options: Any) -> Any:
    """Return the properties after a round trip through a profile update."""
    data = RecordEncoder("t", **options).encode_profile({"$distinct_id": "someone", "$set": properties}, None, now=NOW)
    return orjson.loads(memoryview(data))["$set"]


def as_super(properties: Any, **options: Any) -> Any:
    """Return the properties after a round trip as super properties."""
    return on_event(None, super_properties=properties, **options)


Sent = Callable[..., Any]
WAYS = {"properties": on_event, "$set": on_profile, "super_properties": as_super}
every_way = pytest.mark.parametrize(("path", "sent"), WAYS.items(), ids=list(WAYS))
by_event_and_profile = pytest.mark.parametrize("sent", [on_event, on_profile])


def rejection_of(call: Callable[[], object]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        call()
    return caught.value


def walk(root: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path such as `a.b[2].c`."""
    value: Any = root
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[int(index)] if index else value[key]
    return value


def nested(depth: int, leaf: object) -> dict[str, Any]:
    """Return properties with `depth` nested containers: {"a": {"a": ... leaf}}."""
    value: Any = leaf
    for _ in range(depth):
        value = {"a": value}
    return {"a": value}


# Generated values within the limits

KEYS = st.text(st.characters(codec="utf-8", exclude_characters=".[]", categories=["L", "N", "P"]), min_size=1)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


def container(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(KEYS, values, max_size=4) | st.lists(values, max_size=4)


LEVELS = container(LEAVES)
for _ in range(4):
    LEVELS = container(LEAVES | LEVELS)
TREES = st.dictionaries(KEYS.filter(lambda key: key not in OWN), LEAVES | LEVELS, max_size=6)


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal with equal types at every level: 1 is neither True nor 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@every_way
@given(tree=TREES)
@PROPERTY
def test_json_values_are_sent_unchanged(path: str, sent: Sent, tree: dict[str, Any]) -> None:
    before = copy.deepcopy(tree)
    assert same(sent(tree), tree)
    assert same(tree, before), "the caller's own was changed"


def containers(value: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    if isinstance(value, (dict, list)):
        yield value, depth
        for entry in value.values() if isinstance(value, dict) else value:
            yield from containers(entry, depth + 1)


class Opaque:
    def __repr__(self) -> str:
        return CANARY


BAD: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: float("-inf"),
    "surrogate": lambda: CANARY + "\ud800",
    "400 digits": lambda: 10**400,
    "2**64": lambda: 2**64,
    "-2**63-1": lambda: -(2**63) - 1,
    "bytes": CANARY.encode,
    "bytearray": lambda: bytearray(CANARY.encode()),
    "memoryview": lambda: memoryview(CANARY.encode()),
    "complex": lambda: 1j,
    "object": Opaque,
    "type": lambda: Opaque,
    "function": lambda: lambda: CANARY,
    "generator": lambda: (CANARY for _ in range(3)),
    "iterator": lambda: iter([CANARY]),
    "range": lambda: range(3),
    "deque": lambda: deque([CANARY]),
    "user list": lambda: UserList([CANARY]),
    "fraction": lambda: Fraction(1, 3),
    "timedelta": lambda: timedelta(1),
    "time of day": lambda: datetime.now().time(),
    "decimal nan": lambda: Decimal("NaN"),
    "signalling nan": lambda: Decimal("sNaN"),
    "decimal infinity": lambda: Decimal("-Infinity"),
    "huge decimal": lambda: Decimal("1E+400"),
    "hugest decimal": lambda: Decimal("-1E+999999"),
    "not implemented": lambda: NotImplemented,
    "ellipsis": lambda: ...,
    "exception": lambda: ValueError(CANARY),
    "json encoder": json.JSONEncoder,
}


@every_way
@given(tree=TREES, name=st.sampled_from(sorted(BAD)), data=st.data())
@PROPERTY
def test_unsupported_value_is_reported_with_its_path(
    path: str, sent: Sent, tree: dict[str, Any], name: str, data: st.DataObject
) -> None:
    bad = BAD[name]()
    place, _ = data.draw(st.sampled_from(list(containers(tree))))
    if isinstance(place, dict):
        place[data.draw(KEYS.filter(lambda key: key not in OWN))] = bad
    else:
        place.insert(data.draw(st.integers(0, len(place))), bad)
    error = rejection_of(lambda: sent(tree))
    assert walk({path: tree}, error.path) is bad
    assert_hides_value(error)


def assert_hides_value(error: ValidationError) -> None:
    """Assert that the error and its printed traceback, including its cause, do not contain the value."""
    shown = [str(error), repr(error), *map(str, error.args), *traceback.format_exception_only(error)]
    assert not any(CANARY in text for text in shown)
    assert error.__suppress_context__ or error.__context__ is None


@every_way
@given(
    tree=TREES, data=st.data(), key=st.sampled_from([1, 1.5, True, None, b"k", (CANARY,), Opaque(), date(2020, 1, 1)])
)
@PROPERTY
def test_key_that_is_not_a_string_is_reported_by_type(
    path: str, sent: Sent, tree: dict[str, Any], data: st.DataObject, key: object
) -> None:
    place = data.draw(st.sampled_from([found for found, _ in containers(tree) if isinstance(found, dict)]))
    place[key] = 1
    error = rejection_of(lambda: sent(tree))
    prefix, _, last = error.path.rpartition(".")
    assert last == f"<{type(key).__name__}>"
    assert walk({path: tree}, prefix) is place
    assert_hides_value(error)


@every_way
@pytest.mark.parametrize("depth", range(3))
def test_key_with_a_lone_surrogate_is_rejected_at_any_depth(path: str, sent: Sent, depth: int) -> None:
    error = rejection_of(lambda: sent(nested(depth, {"\udfff": 1}) if depth else {"\udfff": 1}))
    assert error.path.startswith(path)
    assert r"\udfff" in error.path


@given(key=st.text(st.characters(), max_size=300))
@PROPERTY
def test_path_is_printable_and_short_for_any_key(key: str) -> None:
    error = rejection_of(lambda: on_event({key: b"bytes"}))
    assert error.path.isprintable()
    assert len(error.path) <= 100
    error.path.encode()


# Limits


@every_way
@pytest.mark.parametrize("kind", [dict, list, tuple, set, frozenset])
def test_nesting_is_limited_to_100_levels(path: str, sent: Sent, kind: type) -> None:
    """Mixpanel stores events of any depth. The limit protects the process."""
    inner: Any = {"a": 1} if kind is dict else kind([1])
    value = sent(nested(99, inner))
    for _ in range(100):
        value = value["a"]
    assert value == ({"a": 1} if kind is dict else [1])
    error = rejection_of(lambda: sent(nested(100, inner)))
    assert error.path == path + 101 * ".a"
    assert "nested deeper than" in error.problem


@every_way
def test_lists_and_objects_count_towards_the_depth(path: str, sent: Sent) -> None:
    def alternating(levels: int) -> Any:
        value: Any = []
        for _ in range(levels // 2):
            value = [1, {"b": value}]
        return {"a": value}

    assert sent(alternating(98)) == alternating(98)
    assert rejection_of(lambda: sent(alternating(100))).path == f"{path}.a" + 50 * "[1].b"


@every_way
def test_nesting_of_100_000_levels_raises_no_recursion_error(path: str, sent: Sent) -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    assert rejection_of(lambda: sent({"a": value})).path == f"{path}.a" + 100 * "[0]"


@every_way
def test_nested_values_in_a_call_deep_in_the_stack_raise_no_recursion_error(path: str, sent: Sent) -> None:
    def call(frames: int) -> Any:
        return call(frames - 1) if frames else sent(nested(99, [1]))

    def outcome(frames: int) -> type:
        try:
            return type(call(frames))
        except (ValidationError, RecursionError) as error:
            return type(error)

    outcomes = list(map(outcome, range(0, sys.getrecursionlimit(), 10)))
    # The caller may also leave no room for any call.
    for earlier, later in zip((dict, ValidationError), (ValidationError, RecursionError), strict=True):
        assert outcomes.index(earlier) < outcomes.index(later)
    assert sum(one is RecursionError for one in outcomes) < 25


@every_way
def test_cyclic_value_is_rejected(path: str, sent: Sent) -> None:
    object_, list_, tangled = {}, [], {}  # type: dict[str, Any], list[Any], dict[str, Any]
    object_["self"] = object_
    list_.append(list_)
    tangled["list"] = [{"back": tangled}]
    for value, start in ((object_, "a.self.self"), (list_, "a[0][0]"), (tangled, "a.list[0].back.list")):
        error = rejection_of(lambda value=value: sent({"a": value}))  # type: ignore[misc]
        assert error.path.startswith(f"{path}.{start}")
        assert error.problem.endswith("or contains itself")
    cyclic: dict[str, Any] = {}
    cyclic["me"] = cyclic
    assert rejection_of(lambda: sent(cyclic)).path.startswith(f"{path}.me.me")


@every_way
def test_path_of_a_deep_value_is_short(path: str, sent: Sent) -> None:
    value: Any = [1]
    for _ in range(100):
        value = {"x" * 100: value}
    error = rejection_of(lambda: sent({"a": value}))
    assert error.path.startswith(f"{path}.a.xxx")
    assert error.path.endswith("xxx...")
    assert len(error.path) <= 403


def test_event_has_at_most_254_properties_including_client_fields() -> None:
    most = 254 - len(OWN)
    assert len(on_event({f"p{number}": number for number in range(most)})) == most
    for value in (1, 1.5, "text", [1], {"a": 1}):
        error = rejection_of(lambda value=value: on_event({f"p{number}": value for number in range(most + 1)}))  # type: ignore[misc]
        assert error.path == "properties"
        assert "255" in error.problem
    overridden = {"mp_lib": "mine", **{f"p{number}": number for number in range(most)}}
    assert len(on_event(overridden)) == most


def test_profile_has_at_most_2_000_properties() -> None:
    assert len(on_profile({f"p{number}": number for number in range(2000)})) == 2000
    assert rejection_of(lambda: on_profile({f"p{number}": number for number in range(2001)})).path == "$set"


@pytest.mark.parametrize("path", ["a", "a.a", "a[0]"])
def test_nested_object_of_an_event_has_at_most_254_keys(path: str) -> None:
    def tree(count: int) -> dict[str, Any]:
        many = {f"k{number}": number for number in range(count)}
        return {"a": {"a": many} if path == "a.a" else [many] if path == "a[0]" else many}

    assert on_event(tree(254)) == tree(254)
    error = rejection_of(lambda: on_event(tree(255)))
    assert error.path == f"properties.{path}"
    assert error.problem == "has 255 keys; Mixpanel accepts at most 254"


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
@pytest.mark.parametrize("entry", [int, str, float], ids=["whole numbers", "texts", "floats"])
def test_list_of_an_event_has_at_most_254_elements(kind: type, entry: Callable[[int], object]) -> None:
    assert len(on_event({"a": kind(map(entry, range(254)))})["a"]) == 254
    for tree, path in (({"a": kind(map(entry, range(255)))}, "a"), ({"a": {"b": kind(map(entry, range(255)))}}, "a.b")):
        error = rejection_of(lambda tree=tree: on_event(tree))  # type: ignore[misc]
        assert error.path == f"properties.{path}"
        assert error.problem == "has 255 elements; Mixpanel accepts at most 254"


def test_list_of_a_profile_may_be_longer() -> None:
    many = list(range(5000))
    assert on_profile({"a": many, "b": tuple(many)}) == {"a": many, "b": many}


@pytest.mark.parametrize("number", [-(2**63), 2**64 - 1, 0, 2**53 + 1])
def test_integers_of_64_bits_are_exact(number: int) -> None:
    assert on_event({"a": number, "b": [number], "c": {"d": number}}) == {
        "a": number,
        "b": [number],
        "c": {"d": number},
    }


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**64, 10**400])
@pytest.mark.parametrize(
    ("path", "place"),
    [("a", lambda n: n), ("a[1]", lambda n: [0, n]), ("a.b", lambda n: {"b": n}), ("a.b[0]", lambda n: {"b": (n,)})],
)
def test_integer_over_64_bits_is_rejected_at_any_depth(number: int, path: str, place: Callable[[int], object]) -> None:
    for way, sent in WAYS.items():
        error = rejection_of(lambda sent=sent: sent({"a": place(number)}))  # type: ignore[misc]
        assert error.path == f"{way}.{path}"
        assert error.problem == "is an integer of more than 64 bits; send it as a string"


def test_long_strings_are_sent_whole() -> None:
    assert on_event({"a": "x" * 10_000}) == {"a": "x" * 10_000}


# Conversion of Python types


class Colour(enum.Enum):
    RED = "red"
    BOX = (1, 2)
    MOMENT = datetime(2026, 1, 1, tzinfo=timezone.utc)
    ODD = Opaque


class Size(enum.IntEnum):
    BIG = 3


class Shape(str, enum.Enum):
    ROUND = "round"

    def __str__(self) -> str:
        return "not this"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not this"

    __repr__ = __str__


class Whole(int):
    def __int__(self) -> int:
        raise RuntimeError(CANARY)

    __str__ = __repr__ = __index__ = __int__  # type: ignore[assignment]


class Real(float):
    def __float__(self) -> float:
        return 99.0

    def __repr__(self) -> str:
        return "not this"


class Properties(dict[str, Any]):
    pass


Point = namedtuple("Point", "x y")  # noqa: PYI024  the old form is under test


@dataclass
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass(frozen=True)
class Order:
    price: Money
    lines: tuple[Money, ...] = ()
    at: datetime | None = None
    hidden: str = field(default="shown all the same", repr=False)


@dataclass
class Slotted:
    __slots__ = ("a",)
    a: int


TOKYO = timezone(timedelta(hours=9))
NOON = datetime(2026, 11, 21, 12, 0, 0)

SENT_AS: list[tuple[str, Any, Any]] = [
    ("aware in UTC", NOON.replace(tzinfo=timezone.utc), "2026-11-21T12:00:00"),
    ("aware elsewhere", NOON.replace(tzinfo=TOKYO), "2026-11-21T03:00:00"),
    ("naive", NOON, "2026-11-21T12:00:00"),
    ("microseconds", NOON.replace(microsecond=999_999), "2026-11-21T12:00:00"),
    ("aware microseconds", NOON.replace(microsecond=1, tzinfo=TOKYO), "2026-11-21T03:00:00"),
    ("early year", datetime(1, 2, 3, 4, 5, 6), "0001-02-03T04:05:06"),
    ("date", date(2026, 1, 2), "2026-01-02"),
    ("uuid", uuid.UUID(int=255), "00000000-0000-0000-0000-0000000000ff"),
    ("whole decimal", Decimal(12), 12),
    ("whole decimal with zeros", Decimal("12.000"), 12),
    ("decimal with exponent", Decimal("1E+3"), 1000),
    ("decimal zero", Decimal("0E-20"), 0),
    ("decimal with fraction", Decimal("12.5"), 12.5),
    ("decimal of 19 digits", Decimal(2**63), 2**63),
    ("small decimal", Decimal("1E-400"), 0.0),
    ("tiny decimal", Decimal("1E-999999"), 0.0),
    ("enum", Colour.RED, "red"),
    ("enum of a tuple", Colour.BOX, [1, 2]),
    ("enum of a datetime", Colour.MOMENT, "2026-01-01T00:00:00"),
    ("int enum", Size.BIG, 3),
    ("str enum", Shape.ROUND, "round"),
    ("flag", Rights.READ | Rights.WRITE, 3),
    ("text subclass", Text("this"), "this"),
    ("int subclass", Whole(7), 7),
    ("float subclass", Real(1.5), 1.5),
    ("tuple", (1, "a", None), [1, "a", None]),
    ("named tuple", Point(1, (2,)), [1, [2]]),
    ("set", {3, 1, 2}, [1, 2, 3]),
    ("frozen set", frozenset({"b", "a"}), ["a", "b"]),
    ("keys of a dict", {"b": 1, "a": 2}.keys(), ["a", "b"]),
    ("dict subclass", Properties(a=1), {"a": 1}),
    ("ordered dict", OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    ("user dict", UserDict(a=1), {"a": 1}),
    ("chain map", ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
    ("mapping proxy", types.MappingProxyType({"a": 1}), {"a": 1}),
    ("dataclass", Money(Decimal("1.5")), {"amount": 1.5, "currency": "EUR"}),
    ("slotted dataclass", Slotted(1), {"a": 1}),
    (
        "nested dataclass",
        Order(Money(Decimal(2)), (Money(Decimal(3), "USD"),), NOON),
        {
            "price": {"amount": 2, "currency": "EUR"},
            "lines": [{"amount": 3, "currency": "USD"}],
            "at": "2026-11-21T12:00:00",
            "hidden": "shown all the same",
        },
    ),
]


@every_way
@pytest.mark.parametrize(("value", "expected"), [row[1:] for row in SENT_AS], ids=[row[0] for row in SENT_AS])
def test_python_types_are_converted_as_documented(path: str, sent: Sent, value: Any, expected: Any) -> None:
    assert same(sent({"a": value})["a"], expected)
    if not isinstance(value, Order):
        assert same(sent({"a": [value], "b": {"c": value}}), {"a": [expected], "b": {"c": expected}})


def test_integral_decimal_of_64_bits_is_sent_as_an_integer() -> None:
    assert same(on_event({"a": Decimal(2**64 - 1), "b": Decimal("1E+19")}), {"a": 2**64 - 1, "b": 10**19})


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of the process cannot be set here")
def test_time_zone_without_an_offset_counts_as_naive(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta | None:
            return None

        dst = utcoffset

        def tzname(self, moment: datetime | None) -> str | None:
            return None

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert on_event({"a": NOON.replace(tzinfo=Nowhere())}) == {"a": "2026-11-21T12:00:00"}
        assert on_event({"a": NOON}) == {"a": "2026-11-21T12:00:00"}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_datetime_outside_of_the_utc_range_is_rejected() -> None:
    assert rejection_of(lambda: on_event({"a": [datetime.min.replace(tzinfo=TOKYO)]})).path == "properties.a[0]"


def test_enum_of_an_unsupported_value_is_rejected() -> None:
    assert rejection_of(lambda: on_event({"a": {"b": Colour.ODD}})).path == "properties.a.b"


@given(numbers=st.lists(st.integers(0, 40).map(lambda n: n * 8), unique=True, max_size=20), data=st.data())
@PROPERTY
def test_equal_sets_have_equal_bytes(numbers: list[int], data: st.DataObject) -> None:
    """Python iterates equal sets in different orders if they were filled in different orders."""
    shuffled = data.draw(st.permutations(numbers))
    for kind in (set, frozenset):
        assert json.dumps(on_event({"a": kind(numbers)})) == json.dumps(on_event({"a": kind(shuffled)}))


def test_set_of_strings_is_sorted_for_any_hash_seed() -> None:
    script = (
        "from mixpanel_async._encoding.normalizer import *;"
        "value = {'x', 'y', 1, 2.5, None, ('t', 'u'), frozenset({'v', 'w'})};"
        "print(Normalizer(EVENT_LIMITS).mapping({'a': value}, ''))"
    )

    def run(seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout

    assert run("1") == run("2") == run("3")


# The serializer hook


class Encoder(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        if isinstance(o, bytes):
            return o.decode()
        return super().default(o)


@by_event_and_profile
def test_serializer_converts_unknown_types(sent: Sent) -> None:
    tree = {"a": b"1", "b": [b"2"], "c": {"d": (b"3",)}}
    expected = {"a": "1", "b": ["2"], "c": {"d": ["3"]}}
    assert sent(tree, serializer=bytes.decode) == expected
    assert sent(tree, serializer=Encoder) == expected


def test_serializer_precedes_built_in_conversions_except_datetime_and_set() -> None:
    asked: list[object] = []

    def serializer(value: object) -> object:
        asked.append(value)
        return "asked"

    for odd in (date(2026, 1, 1), uuid.UUID(int=1), Decimal(1), Colour.RED, Money(Decimal(1)), b"x", Opaque()):
        assert on_event({"a": odd}, serializer=serializer) == {"a": "asked"}
        assert asked.pop() is odd
    plain = ("text", 1, 1.5, True, None, [1], (1,), {"a": 1}, {1}, frozenset({1}), NOON, Text("t"), Whole(1), Real(1))
    for value in plain:
        on_event({"a": value}, serializer=serializer)
        assert asked == []


@every_way
@pytest.mark.parametrize(("value", "expected"), [row[1:] for row in SENT_AS], ids=[row[0] for row in SENT_AS])
def test_serializer_type_error_falls_back_to_the_client(path: str, sent: Sent, value: Any, expected: Any) -> None:
    assert same(sent({"a": value}, serializer=Encoder)["a"], expected)


def test_serializer_result_is_converted_again() -> None:
    def serializer(value: object) -> object:
        if value == b"1":
            return b"2"
        if value == b"2":
            return Colour.MOMENT
        if value == b"3":
            return {"when": NOON, "more": [b"1"]}
        raise TypeError

    assert on_event({"a": b"1"}, serializer=serializer) == {"a": "2026-01-01T00:00:00"}
    assert on_event({"a": b"3"}, serializer=serializer) == {
        "a": {"when": "2026-11-21T12:00:00", "more": ["2026-01-01T00:00:00"]}
    }


def recurse(value: object) -> object:
    return recurse(value)


def fail(value: object) -> object:
    raise RuntimeError(CANARY)


def fail_like_a_check(value: object) -> object:
    raise ValidationError("elsewhere", "is not to my liking")


@by_event_and_profile
@pytest.mark.parametrize(
    ("serializer", "path"),
    [
        (fail, ""),
        (fail_like_a_check, ""),
        (recurse, ""),
        (Encoder, ""),
        (lambda value: value, ""),
        (lambda value: Opaque(), ""),
        (lambda value: [value], 99 * "[0]"),
        (lambda value: {"k": value}, 99 * ".k"),
        (lambda value: float("nan"), ""),
        (lambda value: [1, float("nan")], "[1]"),
        (lambda value: {"k": "\ud800"}, ".k"),
        (lambda value: {1: 1}, ".<int>"),
        (lambda value: 2**64, ""),
    ],
)
def test_serializer_result_is_validated(sent: Sent, serializer: object, path: str) -> None:
    name = "$set" if sent is on_profile else "properties"
    error = rejection_of(lambda: sent({"a": {"b": Opaque()}}, serializer=serializer))
    assert error.path == f"{name}.a.b{path}"
    assert_hides_value(error)


def test_serializer_result_is_limited() -> None:
    assert rejection_of(lambda: on_event({"a": Opaque()}, serializer=lambda _: list(range(255)))).path == "properties.a"
    error = rejection_of(lambda: on_event(nested(100, Opaque()), serializer=lambda _: []))
    assert error.path == "properties" + 101 * ".a"


def test_serializer_result_is_not_mutated() -> None:
    kept = {"list": [b"x", (1,)], "set": {1}}
    before = copy.deepcopy(kept)

    def serializer(value: object) -> object:
        return "x" if isinstance(value, bytes) else kept

    assert on_event({"a": Opaque()}, serializer=serializer) == {"a": {"list": ["x", [1]], "set": [1]}}
    assert kept == before


@pytest.mark.parametrize("serializer", ["text", 1, json.JSONEncoder(), {}])
def test_serializer_must_be_callable(serializer: Any) -> None:
    with pytest.raises(ConfigurationError, match="serializer"):
        RecordEncoder("t", serializer=serializer)


# Hostile objects


class Raising:
    """Value whose methods all raise an error with a canary, which must not be shown."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(CANARY)

    def __repr__(self) -> str:
        raise RuntimeError(CANARY)

    __str__ = __hash__ = __bool__ = __len__ = __iter__ = __float__ = __int__ = __index__ = __repr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError(CANARY)

    def __format__(self, form: str) -> str:
        raise RuntimeError(CANARY)


class Unbound:
    """Unbound proxy, as in web frameworks: even reading its class raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(CANARY)


class BadItems(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError(CANARY)


class BadMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(CANARY)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class BadPairs(dict[str, Any]):
    def items(self) -> Any:
        return [1, 2, 3]


class BadList(list[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError(CANARY)


class BadTuple(tuple[Any, ...]):
    __slots__ = ()

    def __iter__(self) -> Any:
        raise RuntimeError(CANARY)


class BadSet(set[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError(CANARY)


class BadEnum(enum.Enum):
    ONE = 1

    @property
    def value(self) -> Any:
        raise RuntimeError(CANARY)


class BadZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> Any:
        raise RuntimeError(CANARY)

    def dst(self, moment: datetime | None) -> Any:
        raise RuntimeError(CANARY)

    def tzname(self, moment: datetime | None) -> Any:
        raise RuntimeError(CANARY)


class BadDate(date):
    def isoformat(self) -> str:
        raise RuntimeError(CANARY)


class BadDecimal(Decimal):
    def is_finite(self) -> bool:
        raise RuntimeError(CANARY)


@dataclass
class BadDataclass:
    a: int = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "a":
            raise RuntimeError(CANARY)
        return super().__getattribute__(name)


@dataclass
class Cyclic:
    me: Any = None


def cyclic_dataclass() -> Cyclic:
    one = Cyclic()
    one.me = one
    return one


HOSTILE: dict[str, Callable[[], Any]] = {
    "raises at everything": Raising,
    "proxy without object": Unbound,
    "items() raises": lambda: BadItems(a=1),
    "mapping raises": BadMapping,
    "items() are no pairs": lambda: BadPairs(a=1),
    "list raises": lambda: BadList([1]),
    "tuple raises": lambda: BadTuple([1]),
    "set raises": lambda: BadSet([1]),
    "enum raises": lambda: BadEnum.ONE,
    "time zone raises": lambda: datetime(2020, 1, 1, tzinfo=BadZone()),
    "date raises": lambda: BadDate(2020, 1, 1),
    "decimal raises": lambda: BadDecimal(1),
    "dataclass raises": BadDataclass,
    "dataclass contains itself": cyclic_dataclass,
}


@every_way
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_object_is_rejected_and_not_shown(path: str, sent: Sent, name: str) -> None:
    for tree, where in (
        ({"a": HOSTILE[name]()}, "a"),
        ({"a": [HOSTILE[name]()]}, "a[0]"),
        ({"a": {"b": HOSTILE[name]()}}, "a.b"),
    ):
        error = rejection_of(lambda tree=tree: sent(tree))  # type: ignore[misc]
        assert error.path.startswith(f"{path}.{where}")
        assert_hides_value(error)


@pytest.mark.parametrize("name", ["items() raises", "mapping raises", "items() are no pairs"])
def test_hostile_properties_are_rejected_with_their_path(name: str) -> None:
    assert rejection_of(lambda: on_event(HOSTILE[name]())).path == "properties"
    assert rejection_of(lambda: on_profile(HOSTILE[name]())).path == "$set"


@by_event_and_profile
@pytest.mark.parametrize("make", [list, lambda: [("a", 1)], lambda: "text", lambda: 5, bytes, Opaque, Raising])
def test_properties_must_be_a_mapping(sent: Sent, make: Callable[[], object]) -> None:
    error = rejection_of(lambda: sent(make()))
    assert error.path in {"properties", "$set"}
    assert "must be a mapping" in error.problem


# Values are copied at the call


def test_defaultdict_is_not_filled() -> None:
    given_ = defaultdict(list, {"a": [1]})
    assert on_event(given_) == {"a": [1]}
    assert dict(given_) == {"a": [1]}


@pytest.mark.parametrize("limits", [EVENT_LIMITS, PROFILE_LIMITS])
@given(tree=TREES)
@PROPERTY
def test_clean_copy_shares_no_container_with_the_original(limits: Any, tree: dict[str, Any]) -> None:
    clean = Normalizer(limits).mapping(tree, "")
    ours = {id(found) for found, _ in containers(clean)}
    theirs = {id(found) for found, _ in containers(tree)}
    assert not ours & theirs


def test_anonymous_id_is_recognized() -> None:
    one = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
    for other in (
        one.replace("-", ""),
        one[:-13],
        f"{one}-0",
        f"$device:$device:{one}",
        f"$Device:{one}",
        "a-b-c-d-",
        "$device:",
        f"{{{one}}}",
        f"{one}\n",
        f" {one}",
        one.replace("3f2b", "３f2b"),
        "",
    ):
        assert not is_anonymous_id(other)
    of_browser_sdk = "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081"
    for form in (one, one.replace("-4b6e", "-1b6e"), str(uuid.uuid4()), "a-b-c-d-e", of_browser_sdk):
        for same in (form, form.upper(), f"$device:{form}"):
            assert is_anonymous_id(same)
