"""Hostile and malformed definitions: evaluation never raises, and valid flags stay in use."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from flags_official import FALLBACK, Official, context, definition, outcome, silence
from flags_server import CT, ON, Server, definitions, flag, local, until

from mixpanel_async.flags import FallbackReason, SelectedVariant

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    """Run on one backend: nothing here depends on the event loop."""
    return "asyncio"


JUNK: list[Any] = [
    None, True, 0, -1, 2**70, 1e308, float("nan"), float("inf"), "", "x", "\ud800", [], [None], {}, {"key": None},
    {"": {}}, [[[]]], ["a", 1], "\x00", {"users": 5}, {"key": []},
]  # fmt: skip
USERS: list[Any] = [
    {}, {"distinct_id": []}, {"distinct_id": {}}, {"distinct_id": "\ud800"}, {"distinct_id": float("nan")},
    {"distinct_id": "u", "custom_properties": {1: 2, None: "x", "a": {"b": [object()]}}},
    {"distinct_id": object(), "custom_properties": {"plan": b"x"}}, None, 5, "text", [("distinct_id", "u")],
]  # fmt: skip


def corrupted(rng: Random, value: Any) -> Any:
    """Return a copy in which one part, at a random depth, is replaced."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(JUNK)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [corrupted(rng, one) if index == at else one for index, one in enumerate(value)]
    name = rng.choice(list(value))
    if rng.random() < 0.2:
        return {key: one for key, one in value.items() if key != name}
    return {key: corrupted(rng, one) if key == name else one for key, one in value.items()}


def is_refused_on_purpose(given: Any) -> bool:
    """Return whether we refuse the definition although the official SDK loads it against its own types."""
    ruleset = given["ruleset"]
    texts = [given["key"], given["context"], given.get("hash_salt") or "", *(one["key"] for one in ruleset["variants"])]
    return (
        not all(isinstance(text, str) and text.isascii() for text in texts)
        or given.get("hash_salt", "") not in (None, *texts)
        or not isinstance(ruleset["rollout"], list)
        or not isinstance(ruleset["variants"], list)
    )


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 40))])
async def test_corrupted_definitions_do_not_affect_a_valid_one(seed: int) -> None:
    rng = Random(seed)
    good = flag("good")
    official = Official()
    with silence():
        for _ in range(15):
            spoilt = [corrupted(rng, definition(rng, f"bad-{number}")) for number in range(20)]
            named = [one for one in spoilt if isinstance(one, dict) and isinstance(one.get("key"), str)]
            named = list({one["key"]: one for one in named}.values())
            async with local(Server(), [good, *named], poll_interval=None) as mp:
                flags = mp.local_flags
                assert flags.is_enabled("good", {"distinct_id": "u"}, report_exposure=False)
                for one in named:
                    is_loaded = bool(official.load(definitions(one)))
                    for user in [*USERS, *(context(rng) for _ in range(10))]:
                        ours = flags.get_variant(one["key"], SelectedVariant(FALLBACK), user)
                        assert isinstance(ours, SelectedVariant)
                        theirs = official.get_variant(one["key"], user) if is_loaded else None
                        if theirs is None:
                            continue
                        if ours.fallback_reason == FallbackReason.flag_not_found() and is_refused_on_purpose(one):
                            continue
                        assert outcome(ours) == outcome(theirs), (one, user)
                assert mp.stats().flags is not None


async def test_any_context_gets_a_variant_or_a_fallback() -> None:
    rule = {"and": [{"==": [{"var": "plan"}, "pro"]}, {">": [{"var": "a.b.0"}, 5]}]}
    rollouts = [{"rollout_percentage": 0.9, "runtime_evaluation_rule": rule}, {"rollout_percentage": 0.5}]
    ruleset = {"variants": CT, "rollout": rollouts, "test": {"users": {"qa": "control"}}}
    async with local(Server(), [flag("f", ruleset), flag("on")], poll_interval=None) as mp:
        for user in USERS:
            for key in ("f", "on", "ghost", None, 5, [], object()):
                found = mp.local_flags.get_variant(key, SelectedVariant("fb"), user)  # type: ignore[arg-type]
                assert isinstance(found, SelectedVariant)
            assert mp.local_flags.get_variant_value("f", "fb", user) in {"fb", "c", "t"}
            assert mp.local_flags.is_enabled("f", user) is False
            assert set(mp.local_flags.get_all_variants(user)) <= {"f", "on"}
            mp.local_flags.track_exposure_event("f", SelectedVariant("c", "control"), user)
        # A fallback that is not a SelectedVariant, against the types, becomes the value.
        assert mp.local_flags.get_variant("ghost", "bare", {}).variant_value == "bare"  # type: ignore[arg-type]
        stats = mp.stats().flags
        assert stats is not None
        assert stats.undecidable > 0
        assert stats.exposures_lost > 0


def nested(operator: str, depth: int) -> Any:
    rule: Any = {"var": "plan"}
    for _ in range(depth):
        rule = {operator: [rule]}
    return rule


@pytest.mark.parametrize(
    ("rule", "is_met"),
    [
        (nested("!!", 50), True),
        (nested("!!", 300), False),
        ({"==": [{"%": ["%0999999999d", 5]}, "x"]}, False),
        ({"%": ["%s" * 200, 5]}, False),
        ({"%": ["%s", 5]}, True),
        ({"cat": [{"var": "plan"}] * 20_000}, True),
        ({"and": [{"==": [{"var": "plan"}, "pro"]}] * 5_000}, True),
        ({"in": ["pro", ["pro"] * 100_000]}, True),
        ({"*": [1e308] * 1_000}, True),
        ({"+": ["9" * 5_000, 1]}, False),
        ({"missing": ["plan"] * 10_000}, False),
        ({"some": [{"var": "tags"}, True]}, False),
        ({}, True),
        ({"": []}, False),
        ({"or": [True, {"unknown": 1}]}, False),
    ],
    ids=range(15),
)
async def test_deep_large_or_expensive_rules_are_evaluated_safely(rule: Any, is_met: bool) -> None:
    rollouts = [{"rollout_percentage": 1, "runtime_evaluation_rule": rule}]
    async with local(Server(), [flag("f", {"variants": ON, "rollout": rollouts})], poll_interval=None) as mp:
        user = {"distinct_id": "u", "custom_properties": {"PLAN": "Pro"}}
        assert mp.local_flags.is_enabled("f", user) is is_met


async def test_deep_or_cyclic_properties_meet_no_rule() -> None:
    rollouts = [{"rollout_percentage": 1, "runtime_evaluation_rule": {"==": [{"var": "plan"}, "pro"]}}]
    circle: dict[str, Any] = {"plan": "pro"}
    circle["self"] = circle
    deep: Any = {"plan": "pro"}
    for _ in range(5_000):
        deep = {"plan": "pro", "deeper": deep}
    async with local(Server(), [flag("f", {"variants": ON, "rollout": rollouts})], poll_interval=None) as mp:
        for properties in (circle, deep):
            found = mp.local_flags.get_variant(
                "f", SelectedVariant(0), {"distinct_id": "u", "custom_properties": properties}
            )
            assert found.fallback_reason == FallbackReason.no_rollout_match()


async def test_unmeetable_rule_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    rollouts = [{"rollout_percentage": 1, "runtime_evaluation_rule": {"some": [{"var": "tags"}, {"var": ""}]}}]
    async with local(Server(), [flag("listed", {"variants": ON, "rollout": rollouts})]) as mp:
        for _ in range(5):
            assert not mp.local_flags.is_enabled("listed", {"distinct_id": "u", "custom_properties": {"tags": [1]}})
    (line,) = [record.getMessage() for record in caplog.records]
    why = "the operator 'some' is not supported"
    assert line == f"flags: some rules can never match, in flags 'listed'; first problem: {why}"


async def test_rules_fold_case_in_other_alphabets() -> None:
    rule = {"and": [{"==": [{"var": "STRASSE"}, "Große"]}, {"in": [{"var": "i"}, ["I\u0307", "ſ"]]}]}
    rollouts = [{"rollout_percentage": 1, "runtime_evaluation_rule": rule}]
    definition = flag("f", {"variants": ON, "rollout": rollouts})
    official = Official()
    with silence():
        official.load(definitions(definition))
        async with local(Server(), [definition], poll_interval=None) as mp:
            for name in ("straße", "STRASSE", "Strasse", "strase"):
                for other in ("İ", "i̇", "i", "s", "S", "ſ"):
                    user = {
                        "distinct_id": "u",
                        "custom_properties": {name: "GROSSE", "İ"[:1]: 1, "i": other, "I": other},
                    }
                    ours = mp.local_flags.get_variant("f", SelectedVariant(FALLBACK), user)
                    assert outcome(ours) == outcome(official.get_variant("f", user))


async def test_changed_value_does_not_affect_other_callers() -> None:
    value = {"colors": ["red", {"deep": 1}]}
    variants = [{"key": "on", "value": value, "is_control": False, "split": 1}]
    ruleset = {"variants": variants, "rollout": [{"rollout_percentage": 1}], "test": {"users": {"qa": "on"}}}
    async with local(Server(), [flag("f", ruleset)], poll_interval=None) as mp:
        for user in ("u", "qa", "u", "qa"):
            found = mp.local_flags.get_variant_value("f", None, {"distinct_id": user})
            assert found == value
            found["colors"][1].clear()
            found["colors"].append("blue")
            found.clear()


async def test_malformed_definition_keeps_the_previous_one(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    off = {"variants": [{"key": "off", "value": False, "is_control": True}], "rollout": [{"rollout_percentage": 1}]}
    async with local(server, [flag("a"), flag("b"), flag("gone")]) as mp:
        broken = flag("b", {"variants": ON, "rollout": [{}]})
        new = flag("new", {"variants": 5, "rollout": []})
        server.says = definitions(flag("a", off), broken, new)
        await until(lambda: not mp.local_flags.is_enabled("a", {"distinct_id": "u"}, report_exposure=False))
        found = mp.local_flags.get_all_variants({"distinct_id": "u"})
        assert {key: one.variant_key for key, one in found.items()} == {"a": "off", "b": "on"}
        stats = mp.stats().flags
        assert stats is not None
        assert (stats.refused, stats.failures, stats.definitions) == (2, 0, 2)
        lines = [record.getMessage() for record in caplog.records]
        assert lines == ["flags: 2 definitions are malformed; these flags keep their previous definition: 'b', 'new'"]
        server.says = definitions(flag("b", off))
        await until(lambda: set(mp.local_flags.get_all_variants({"distinct_id": "u"})) == {"b"})
        assert mp.stats().flags.refused == 0  # type: ignore[union-attr]


async def test_change_of_type_alone_is_noticed() -> None:
    server = Server()

    def valued(value: Any) -> dict[str, Any]:
        variants = [{"key": "on", "value": value, "is_control": False}]
        return flag("f", {"variants": variants, "rollout": [{"rollout_percentage": 1}]})

    async with local(server, [valued(1)]) as mp:
        for value in (True, 1.0, 1, "1"):
            server.says = definitions(valued(value))
            await until(lambda: repr(mp.local_flags.get_variant_value("f", None, {"distinct_id": "u"})) == repr(value))  # noqa: B023
