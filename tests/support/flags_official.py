"""Official SDK as reference for flag evaluation, and random definitions and contexts."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from random import Random
from typing import Any, Final

import httpx
import pytest

with warnings.catch_warnings():
    # The official package depends on libraries that warn on newer Pythons.
    warnings.simplefilter("ignore")
    pytest.importorskip("mixpanel")
    from mixpanel.flags.local_feature_flags import LocalFeatureFlagsProvider
    from mixpanel.flags.types import LocalFlagsConfig, SelectedVariant

FALLBACK: Final = "the fallback"


class Official:
    """Local flags provider of the official SDK."""

    def __init__(self) -> None:
        self.tracked: list[tuple[str, str, dict[str, Any]]] = []
        self._provider = LocalFeatureFlagsProvider(
            "token", LocalFlagsConfig(), "5.4.1", lambda *event: self.tracked.append(event)
        )

    def load(self, definitions: bytes) -> set[Any]:
        """Pass a response of Mixpanel to the provider and return the keys of its flags."""
        request = httpx.Request("GET", "https://api.mixpanel.com")
        now = datetime(2026, 1, 1)
        self._provider._handle_response(httpx.Response(200, content=definitions, request=request), now, now)
        return set(self._provider._flag_definitions)

    def get_variant(self, key: str, context: Mapping[str, Any], *, report_exposure: bool = False) -> Any:
        """Return the evaluated variant, or None if the provider raises.

        In these cases mixpanel-async returns the fallback or treats the rule as not met.
        """
        try:
            return self._provider.get_variant(key, SelectedVariant(FALLBACK), context, report_exposure=report_exposure)
        except Exception:  # noqa: BLE001  it may raise anything
            return None


@contextmanager
def silence() -> Iterator[None]:
    """Silence the official SDK, which logs nearly every evaluation."""
    logger = logging.getLogger("mixpanel.flags")
    before, logger.disabled = logger.disabled, True
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logger.disabled = before
        logging.disable(logging.NOTSET)


def outcome(variant: Any) -> tuple[str, ...]:
    """Return the values to compare. `repr` distinguishes 1, 1.0 and True, and makes NaN equal to itself."""
    reason = variant.fallback_reason
    return tuple(
        map(
            repr,
            (
                variant.variant_value,
                variant.variant_key,
                variant.variant_source,
                variant.experiment_id,
                variant.is_experiment_active,
                variant.is_qa_tester,
                None if reason is None else (reason.kind, reason.message),
            ),
        )
    )


# Random definitions.

_TEXTS: Final = ("pro", "Enterprise", "STRASSE", "straße", "Ünïcode", "", "a.b", "1", "1.5", "true", "İ", "x" * 40)
_NAMES: Final = ("plan", "Plan", "country", "appVersion", "signup", "nested.plan", "nested.deep.0", "tags", "age", "")
_VERSIONS: Final = ("1.10.0", "v1.9", "1.10.0-rc.1", "2", "1.2.3.4", "01.0.0", "1.0.0+b", "1.0.0-2", "1.0.0-10", "")
_MOMENTS: Final = ("2026-07-15T23:59:59.999Z", "2026-07-16T00:00:00+05:30", "2026-07-16", "0000-01-01T00:00:00Z")
_SYMBOLS: Final = ("===", "!==", "<", "<=", ">", ">=", "==", "")
_PEOPLE: Final = (*(f"user-{number}" for number in range(60)), "zoë", "alice", "42", "qa-1", "QA-1", "名前")
_VARIANTS: Final = ("control", "treatment", "Treatment", "a", "b", "Z", "ß", "on", "")


def _value(chance: Random, depth: int = 0) -> Any:
    kind = chance.randrange(10 if depth < 3 else 7)
    if kind == 7:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(3))]
    if kind >= 8:
        return {chance.choice(_TEXTS): _value(chance, depth + 1) for _ in range(chance.randrange(3))}
    plain = (True, False, None, chance.choice(_TEXTS), chance.randrange(-3, 100), chance.random() * 10, 2**70)
    return plain[kind]


def _operand(chance: Random, depth: int) -> Any:
    kind = chance.randrange(8)
    if kind < 3:
        return {"var": chance.choice(_NAMES)}
    if kind == 3 and depth < 4:
        return rule(chance, depth + 1)
    if kind == 4:
        return [_value(chance) for _ in range(chance.randrange(4))]
    return _value(chance)


def rule(chance: Random, depth: int = 0) -> Any:
    """Return a random runtime rule: mostly rules that the UI creates, otherwise any operators and operands."""
    style = chance.randrange(8)
    if style < 2:
        operator = chance.choice(("==", "!=", "===", "!==", ">", ">=", "<", "<="))
        return {operator: [{"var": chance.choice(_NAMES)}, chance.choice((*_TEXTS, 18, 3.5, True))]}
    if style == 2:
        return {chance.choice(("and", "or")): [rule(chance, depth + 1) for _ in range(chance.randrange(1, 3))]}
    if style == 3:
        return {"in": [{"var": chance.choice(_NAMES)}, chance.choice((["DE", "pro", 18], "Enterprise Pro", 5, None))]}
    if style == 4:
        operands = [{"var": "appVersion"}, chance.choice(_SYMBOLS), chance.choice(_VERSIONS)]
        return {"semver_compare": operands[: chance.choice((3, 3, 3, 2))]}
    if style == 5:
        target = chance.choice((1784160000000, 1784160000000.5, "1784160000000", True, -1, 2**63, None))
        return {"datetime_compare": [{"var": "signup"}, chance.choice(_SYMBOLS), target]}
    operators = (
        "==", "===", "!=", "!==", ">", ">=", "<", "<=", "!", "!!", "%", "and", "or", "?:", "if", "log", "in", "cat",
        "+", "*", "-", "/", "min", "max", "merge", "count", "var", "missing", "missing_some", "some", "map", "substr",
    )  # fmt: skip
    operands = [_operand(chance, depth) for _ in range(chance.randrange(4))]
    single = operands[0] if len(operands) == 1 and chance.random() < 0.5 else operands
    return chance.choice(({chance.choice(operators): single}, {chance.choice(operators): operands}, {}))


def _share(chance: Random) -> Any:
    return chance.choice((chance.random(), chance.randrange(101) / 100, 0, 1, 1.0, 0.5, 0.005, 0.01, 0.99, True, -0.1))


def definition(chance: Random, key: str) -> dict[str, Any]:
    """Return a random definition that the official SDK can load."""
    variants: list[dict[str, Any]] = []
    for _ in range(chance.choice((1, 2, 2, 3, 4)) if chance.random() < 0.98 else 0):
        variant = {"key": chance.choice(_VARIANTS), "value": _value(chance), "is_control": False}
        if chance.random() < 0.9:
            variant["split"] = _share(chance) if chance.random() < 0.97 else None
        variants.append(variant)
    ruleset: dict[str, Any] = {
        "variants": variants,
        "rollout": [_rollout(chance) for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))],
    }
    if chance.random() < 0.4:
        users = {chance.choice(_PEOPLE): chance.choice((*_VARIANTS, "TREATMENT", "ghost", None)) for _ in range(3)}
        ruleset["test"] = chance.choice(({"users": users}, {"users": users}, {"users": {}}, None))
    flag = {
        "id": "f", "name": "n", "key": key, "status": "enabled", "project_id": 1, "ruleset": ruleset, "extra": [],
        "context": chance.choice(("distinct_id", "distinct_id", "distinct_id", "company_id", "custom_properties")),
    }  # fmt: skip
    if chance.random() < 0.7:
        flag["hash_salt"] = chance.choice(("0123456789abcdef0123456789abcdef", f"{chance.random()}", "", "ß", None))
    if chance.random() < 0.3:
        flag |= {"experiment_id": chance.choice(("e1", None)), "is_experiment_active": chance.choice((True, False))}
    return flag


def _rollout(chance: Random) -> dict[str, Any]:
    rollout: dict[str, Any] = {"rollout_percentage": _share(chance), "cohort_hash": "abc"}
    if chance.random() < 0.3:
        names = [chance.choice((*_VARIANTS, "ghost")) for _ in range(chance.randrange(4))]
        rollout["variant_splits"] = chance.choice(({name: _share(chance) for name in names}, {}, None))
    if chance.random() < 0.15:
        rollout["variant_override"] = chance.choice(({"key": chance.choice((*_VARIANTS, "ghost", "CONTROL"))}, None))
    if chance.random() < 0.45:
        rollout["runtime_evaluation_rule"] = rule(chance)
    if chance.random() < 0.2:
        names = [chance.choice(("plan", "Plan", "country")) for _ in range(chance.randrange(3))]
        rollout["runtime_evaluation_definition"] = {name: chance.choice(_TEXTS) for name in names}
    return rollout


def context(chance: Random) -> dict[str, Any]:
    """Return a random context: mostly string ids, and properties of any type."""
    found: dict[str, Any] = {}
    if chance.random() < 0.95:
        found["distinct_id"] = chance.choice(_PEOPLE) if chance.random() < 0.9 else f"{chance.getrandbits(128):x}"
    if chance.random() < 0.6:
        found["company_id"] = chance.choice((42, "42", 42.0, True, "", 0, None, ["a"], "acme"))
    if chance.random() < 0.85:
        properties = {name: _value(chance) for name in _NAMES[:3] if chance.random() < 0.5}
        if chance.random() < 0.7:
            properties |= {"PLAN": chance.choice(_TEXTS), "appVERSION": chance.choice(_VERSIONS)}
            properties |= {"signup": chance.choice(_MOMENTS), "age": chance.choice((18, 3.5, "18", None))}
            properties |= {"nested": {"Plan": "PRO", "deep": ["x", _value(chance)]}, "Tags": ["Pro", 18]}
        found["custom_properties"] = properties if chance.random() < 0.95 else chance.choice((None, "text", [1], {}))
    return found


def batches(chance: Random, pairs: int) -> Iterator[tuple[bytes, list[str], Callable[[], dict[str, Any]]]]:
    """Yield response bodies with definitions, their keys, and 20 contexts for each definition."""
    while pairs > 0:
        keys = [f"flag-{number}" for number in range(50)]
        content = json.dumps({"flags": [definition(chance, key) for key in keys]})
        yield content.encode(), keys, lambda: context(chance)
        pairs -= 50 * 20
