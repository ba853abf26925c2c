"""Flag definitions from `/flags/definitions`, prepared for evaluation.

A definition that the official SDK 5.4.1 cannot load is refused, and the previous definition of that flag stays in use.
A definition that it can load is accepted. An invalid part of it matters only when an evaluation reaches it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .hashing import BUCKETS, Salt
from .model import FallbackReason, SelectedVariant, VariantSource
from .rules import Evaluate, Library, RuleError, compile_rule

# The official SDK compares buckets and shares as fractions.
_FRACTIONS: Final = tuple(bucket / 100.0 for bucket in range(BUCKETS))

_FLAG_KEYS: Final = ("id", "name", "key", "status", "project_id", "ruleset", "context")
_VARIANT_KEYS: Final = ("key", "value", "is_control")


class DefinitionsError(Exception):
    """The response does not contain definitions. The message contains nothing of it."""


class _MalformedError(Exception):
    """The definition of a flag cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout of a flag.

    Args:
        salt: salt of the hash that selects users for the rollout.
        buckets: number of buckets in the rollout, from the first; None if the percentage is not a number.
        rule: evaluates the rule; None without a rule, or if it can never be met.
        is_ruled: whether there is a rule.
        legacy: rule in its older form: property names and the folded strings that they must equal; None without one.
        forced: variant for all users of the rollout, if it is fixed.
        by_bucket: variant of each bucket of the hash with `Flag.variant_salt`; None where the shares are invalid.
        only: the variant of all buckets, if they have the same one.
    """

    salt: Salt
    buckets: int | None
    rule: Evaluate | None
    is_ruled: bool
    legacy: Mapping[str, str | None] | None
    forced: SelectedVariant | None
    by_bucket: Sequence[SelectedVariant | None]
    only: SelectedVariant | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag.

    Args:
        key: name of the flag.
        context: attribute of the context by which the flag is rolled out.
        missing: reason for a fallback if the context lacks that attribute.
        testers: folded name of the variant by id of the test user.
        named: variants for test users by folded name.
        rollouts: in order of priority.
        variant_salt: salt of the hash that selects a variant.
        is_drawn: whether the result can depend on the user's buckets.
        is_shared: whether callers may share the values, because all of them are immutable.
        digest: hash of the definition, to detect changes.
        problems: reasons why rules can never be met.
    """

    key: str
    context: str
    missing: FallbackReason
    testers: Mapping[str, str]
    named: Mapping[str, SelectedVariant]
    rollouts: Sequence[Rollout]
    variant_salt: Salt
    is_drawn: bool
    is_shared: bool
    digest: bytes
    problems: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """All flags of a project.

    Args:
        flags: flags by key.
        changed: keys of flags that were added, removed or changed.
        refused: keys of flags whose definition could not be loaded. They keep their previous definition.
    """

    flags: Mapping[str, Flag]
    changed: Sequence[str] = ()
    refused: Sequence[str] = ()


def read_definitions(body: bytes, earlier: Mapping[str, Flag], library: Library) -> Definitions:
    """Return the definitions in a response.

    Args:
        body: body of the response.
        earlier: current flags. Unchanged ones are reused.
        library: compiles rules.

    Raises:
        DefinitionsError: the body is not a list of definitions, or all definitions are malformed.
    """
    entries = _entries(body)
    flags: dict[str, Flag] = {}
    refused: list[str] = []
    for entry in entries:
        key = entry["key"]
        before = earlier.get(key)
        try:
            flags[key] = _flag(entry, before, library)
        except (_MalformedError, RecursionError):
            refused.append(key)
            if before is not None:
                flags.setdefault(key, before)
    if entries and len(refused) == len(entries):
        raise DefinitionsError("all definitions are malformed")
    changed = [key for key, flag in flags.items() if flag is not earlier.get(key)]
    changed += [key for key in earlier if key not in flags]
    return Definitions(flags=flags, changed=changed, refused=refused)


def _entries(body: bytes) -> list[dict[str, Any]]:
    try:
        # The official SDK uses the same parser, so both accept the same input.
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise DefinitionsError("it is not JSON") from None
    entries = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DefinitionsError('it has no "flags" array')
    if not all(isinstance(entry, dict) and isinstance(entry.get("key"), str) for entry in entries):
        # Without the key it is unknown which flag keeps its previous definition.
        raise DefinitionsError("a definition has no key")
    return entries


def _flag(entry: Mapping[str, Any], before: Flag | None, library: Library) -> Flag:
    digest = hashlib.blake2b(json.dumps(entry).encode()).digest()
    if before is not None and before.digest == digest:
        return before
    _require_keys(entry, _FLAG_KEYS)
    ruleset, salt = entry["ruleset"], entry.get("hash_salt")
    if (
        not isinstance(ruleset, dict)
        or not isinstance(entry["context"], str)
        or not isinstance(salt, (str, type(None)))
    ):
        raise _MalformedError
    variants = sorted(_dicts(ruleset, "variants"), key=_variant_key)
    named: dict[str, SelectedVariant] = {}
    for variant in variants:
        named.setdefault(variant["key"].casefold(), _selected(entry, variant, is_qa_tester=True))
    problems: list[str] = []
    by_split = _shared(lambda splits: _by_bucket(entry, variants, splits))
    rollouts = [
        _rollout(rollout, index, entry, named, by_split, problems, library)
        for index, rollout in enumerate(_dicts(ruleset, "rollout"))
    ]
    return Flag(
        key=entry["key"],
        context=entry["context"],
        missing=FallbackReason.missing_context_key(entry["context"]),
        testers=_testers(ruleset),
        named=named,
        rollouts=rollouts,
        variant_salt=_salt(f"{entry['key']}{salt or ''}variant"),
        is_drawn=any(one.buckets != BUCKETS or not (one.forced or one.only) for one in rollouts),
        is_shared=not any(isinstance(variant["value"], (dict, list)) for variant in variants),
        digest=digest,
        problems=problems,
    )


def _rollout(
    rollout: Mapping[str, Any],
    index: int,
    entry: Mapping[str, Any],
    named: Mapping[str, SelectedVariant],
    by_split: Callable[[object], Sequence[SelectedVariant | None]],
    problems: list[str],
    library: Library,
) -> Rollout:
    _require_keys(rollout, ("rollout_percentage",))
    salt = entry.get("hash_salt")
    override = rollout.get("variant_override")
    if override is not None:
        _require_keys(override, ("key",))
        override = override["key"]
    rule, legacy = rollout.get("runtime_evaluation_rule"), rollout.get("runtime_evaluation_definition")
    evaluate: Evaluate | None = None
    if rule:
        try:
            evaluate = compile_rule(rule, library)
        except (RuleError, RecursionError) as error:
            problems.append(str(error) if isinstance(error, RuleError) else "the rule is nested too deeply")
    by_bucket = by_split(rollout.get("variant_splits"))
    return Rollout(
        salt=_salt(f"{entry['key']}rollout" if salt is None else f"{entry['key']}{salt}{index}"),
        buckets=_buckets_below(rollout["rollout_percentage"]),
        rule=evaluate,
        is_ruled=bool(rule),
        legacy=_legacy(legacy) if legacy and not rule else None,
        forced=named.get(override.casefold()) if isinstance(override, str) else None,
        by_bucket=by_bucket,
        only=by_bucket[0] if all(one is by_bucket[0] for one in by_bucket) else None,
    )


def _salt(text: str) -> Salt:
    try:
        return Salt(text)
    except UnicodeEncodeError:
        raise _MalformedError from None


def _buckets_below(share: object) -> int | None:
    """Return the number of buckets below a share; None if it is not a number. No bucket is below NaN."""
    return bisect_left(_FRACTIONS, share) if isinstance(share, (int, float)) else None


def _legacy(definition: object) -> Mapping[str, str | None]:
    """Return the folded strings that properties must equal.

    None equals no property. A rule that is not an object becomes such an entry, so it is never met.
    """
    if not isinstance(definition, dict):
        return {"": None}
    return {key: text.casefold() if isinstance(text, str) else None for key, text in definition.items()}


def _testers(ruleset: Mapping[str, Any]) -> Mapping[str, str]:
    test = ruleset.get("test")
    if test is None:
        return {}
    _require_keys(test, ("users",))
    users = test["users"]
    if not isinstance(users, dict):
        return {}
    return {user: key.casefold() for user, key in users.items() if isinstance(key, str) and key}


def _shared(
    make: Callable[[object], Sequence[SelectedVariant | None]],
) -> Callable[[object], Sequence[SelectedVariant | None]]:
    """Return the function with a cache for rollouts without their own splits."""
    common: list[Sequence[SelectedVariant | None]] = []

    def shared(splits: object) -> Sequence[SelectedVariant | None]:
        if splits:
            return make(splits)
        if not common:
            common.append(make({}))
        return common[0]

    return shared


def _by_bucket(
    entry: Mapping[str, Any], variants: Sequence[Mapping[str, Any]], splits: Any
) -> Sequence[SelectedVariant | None]:
    """Return the variant of each bucket: the first one, by key, whose cumulative share exceeds it, or the last one."""
    result: SelectedVariant | None = None
    chosen: list[SelectedVariant | None] = []
    total = 0.0
    try:
        for variant in variants:
            share = splits[variant["key"]] if variant["key"] in splits else variant.get("split", 0.0)
            total += share
            result = _selected(entry, variant)
            chosen += [result] * (bisect_left(_FRACTIONS, total) - len(chosen))
    except (TypeError, OverflowError):
        # A share is not a number, so the variants from here on have no known buckets.
        result = None
    return chosen + [result] * (BUCKETS - len(chosen))


def _selected(
    entry: Mapping[str, Any], variant: Mapping[str, Any], *, is_qa_tester: bool | None = None
) -> SelectedVariant:
    return SelectedVariant(
        variant_value=variant["value"],
        variant_key=variant["key"],
        experiment_id=entry.get("experiment_id"),
        is_experiment_active=entry.get("is_experiment_active"),
        is_qa_tester=is_qa_tester,
        variant_source=VariantSource.LOCAL,
    )


def _dicts(ruleset: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = ruleset.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _MalformedError
    return found


def _variant_key(variant: Mapping[str, Any]) -> str:
    _require_keys(variant, _VARIANT_KEYS)
    if not isinstance(variant["key"], str):
        raise _MalformedError
    return str(variant["key"])


def _require_keys(value: object, keys: Sequence[str]) -> None:
    if not isinstance(value, dict) or not all(key in value for key in keys):
        raise _MalformedError
