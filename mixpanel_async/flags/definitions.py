"""What `/flags/definitions` answers, made ready for evaluation.

A definition that the official SDK 5.4.1 could not load is refused here: the earlier version of that flag stays. One
that it could load is loaded, and a part in it that makes no sense counts when an evaluation gets there, not before.
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

# As the official SDK compares them: a bucket and a share are both fractions.
_FRACTIONS: Final = tuple(bucket / 100.0 for bucket in range(BUCKETS))

_FLAG_KEYS: Final = ("id", "name", "key", "status", "project_id", "ruleset", "context")
_VARIANT_KEYS: Final = ("key", "value", "is_control")


class DefinitionsError(Exception):
    """A reply that is none of definitions; the text says why, and repeats nothing of it."""


class _MalformedError(Exception):
    """A definition that cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout of a flag.

    Args:
        salt: that its buckets are drawn with.
        buckets: how many of the 100, from the first, it reaches; None if its share is no number.
        rule: evaluates its rule; None if it has none.
        is_ruled: whether there is a rule; without `rule` it is never met.
        legacy: the older form of a rule: names and folded texts that must be equal; None if there is none.
        forced: the variant that everybody in it gets, if there is one.
        by_bucket: the variant of each bucket of the variants' own salt, or None where none can be told.
        only: the same for every bucket, if it is the same.
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
        key: its name.
        context: the attribute that it is rolled out by.
        missing: the reason given without that attribute.
        testers: the folded name of the variant of each test user.
        named: what a test user gets, by the variant's folded name.
        rollouts: in order.
        variant_salt: that variants are drawn with.
        is_drawn: whether a person's buckets can make a difference.
        is_shared: whether every value may be handed to several callers, as none can be changed by them.
        digest: of the definition, to tell whether it changed.
        problems: of its rules that are never met.
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
        flags: by key.
        changed: keys of flags that were added, removed or changed against the earlier ones.
        refused: keys of flags whose definition could not be loaded; they are as they were before.
    """

    flags: Mapping[str, Flag]
    changed: Sequence[str] = ()
    refused: Sequence[str] = ()


def read_definitions(body: bytes, earlier: Mapping[str, Flag], library: Library) -> Definitions:
    """Make a reply ready.

    Args:
        body: of the reply.
        earlier: the flags so far; what has not changed is taken from there.
        library: for rules.

    Raises:
        DefinitionsError: if it is no list of definitions, or every definition in it is malformed.
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
        raise DefinitionsError("every definition in it is malformed")
    changed = [key for key, flag in flags.items() if flag is not earlier.get(key)]
    changed += [key for key in earlier if key not in flags]
    return Definitions(flags=flags, changed=changed, refused=refused)


def _entries(body: bytes) -> list[dict[str, Any]]:
    try:
        # The standard library's parser takes whatever the official SDK's does: it is the same.
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise DefinitionsError("it is not JSON") from None
    entries = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DefinitionsError("it has no list of flags")
    if not all(isinstance(entry, dict) and isinstance(entry.get("key"), str) for entry in entries):
        # Without its name it cannot be told which flag is to stay as it was.
        raise DefinitionsError("a definition in it has no key")
    return entries


def _flag(entry: Mapping[str, Any], before: Flag | None, library: Library) -> Flag:
    digest = hashlib.blake2b(json.dumps(entry).encode()).digest()
    if before is not None and before.digest == digest:
        return before
    _need(entry, _FLAG_KEYS)
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
    _need(rollout, ("rollout_percentage",))
    salt = entry.get("hash_salt")
    override = rollout.get("variant_override")
    if override is not None:
        _need(override, ("key",))
        override = override["key"]
    rule, legacy = rollout.get("runtime_evaluation_rule"), rollout.get("runtime_evaluation_definition")
    evaluate: Evaluate | None = None
    if rule:
        try:
            evaluate = compile_rule(rule, library)
        except (RuleError, RecursionError) as error:
            problems.append(str(error) if isinstance(error, RuleError) else "it is nested too deeply")
    by_bucket = by_split(rollout.get("variant_splits"))
    return Rollout(
        salt=_salt(f"{entry['key']}rollout" if salt is None else f"{entry['key']}{salt}{index}"),
        buckets=_reached(rollout["rollout_percentage"]),
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


def _reached(share: object) -> int | None:
    """How many buckets lie below a share. A share that is no number compares to none, NaN is above no bucket."""
    return bisect_left(_FRACTIONS, share) if isinstance(share, (int, float)) else None


def _legacy(definition: object) -> Mapping[str, str | None]:
    """Texts to be equal; None for what can equal no text, also under an empty name for what is no definition."""
    if not isinstance(definition, dict):
        return {"": None}
    return {key: text.casefold() if isinstance(text, str) else None for key, text in definition.items()}


def _testers(ruleset: Mapping[str, Any]) -> Mapping[str, str]:
    test = ruleset.get("test")
    if test is None:
        return {}
    _need(test, ("users",))
    users = test["users"]
    if not isinstance(users, dict):
        return {}
    return {person: key.casefold() for person, key in users.items() if isinstance(key, str) and key}


def _shared(
    make: Callable[[object], Sequence[SelectedVariant | None]],
) -> Callable[[object], Sequence[SelectedVariant | None]]:
    """The same with what rollouts without splits of their own have in common made once."""
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
    """The variant of each bucket: the first, by key, at which the sum of the shares goes beyond it, else the last."""
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
        # Neither this variant nor what follows can be told from one another.
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
    _need(variant, _VARIANT_KEYS)
    if not isinstance(variant["key"], str):
        raise _MalformedError
    return str(variant["key"])


def _need(value: object, keys: Sequence[str]) -> None:
    if not isinstance(value, dict) or not all(key in value for key in keys):
        raise _MalformedError
