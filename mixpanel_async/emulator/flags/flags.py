"""Feature flags: the endpoints `/flags` and `/flags/definitions`.

The evaluation shares no code with the client's local evaluation. Sources: Mixpanel's OpenAPI description of the feature
flags API for the endpoints (read 2026-08-21), and requests and results of Mixpanel's official SDKs for the arithmetic,
which the description omits.

Decisions where Mixpanel's documents are silent
    - Both endpoints accept the credentials of `/import`: a service account with `project_id`, the project secret, or
      the token as the user, as sent by every official SDK.
    - `/flags` returns the enabled flags that apply to the person, with `"code": 200` first, as the official Python SDK
      requires. `flag_key` selects one flag.
    - `/flags/definitions` returns enabled flags with an `ETag`, and 304 to a request with the same `ETag`.
    - The hash uses Python's text form of the subject, as Mixpanel's Python SDK does. Text gives the same hash in every
      SDK. An empty text, 0 and False count as absent.
    - Cohorts and sticky variants are not supported: a rollout to a cohort applies to every person who meets its other
      conditions.
    - A response contains no personal data that was not in the request. The request log keeps the context.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from ..project.access import Access
from ..project.responses import JSON, EmulatorResponse, error_response, json_response
from .jsonlogic import rule_matches

FLAGS: Final = "/flags"
DEFINITIONS: Final = "/flags/definitions"
FLAG_METHODS: Final[Mapping[str, tuple[str, ...]]] = {FLAGS: ("GET", "POST"), DEFINITIONS: ("GET",)}
"""Methods of each endpoint. mixpanel-browser 2.65 sends a POST to `/flags`, with the context in the body."""

_log = logging.getLogger("mixpanel_async.emulator")

_NEVER_LOADED: Final = object()
_NO_ID: Final = "distinct_id must be provided in evalContext as a string"


class BadFlagError(ValueError):
    """A definition is malformed. The message names the flag and the problem."""


class FlagDefinitions:
    """Flag definitions of a project. Not thread-safe.

    Args:
        initial: definitions, or the path of a JSON file for `read_definitions`.

    Raises:
        BadFlagError: if a definition is malformed.
        OSError: if the file cannot be read.
    """

    def __init__(self, initial: Iterable[Mapping[str, Any]] | Path) -> None:
        self._path = initial if isinstance(initial, Path) else None
        self._initial = [] if isinstance(initial, Path) else [complete_definition(one) for one in initial]
        self._loaded_version: object = None
        self._definitions: dict[str, dict[str, Any]] = {}
        if self._path is None:
            self.replace(self._initial)
        else:
            self._loaded_version = _file_version(self._path)
            self.replace(read_definitions(self._path))

    def replace(self, definitions: Iterable[Mapping[str, Any]]) -> None:
        """Replace all definitions.

        Raises:
            BadFlagError: if a definition is malformed. The flags are unchanged in that case.
        """
        self._definitions = {one["key"]: one for one in map(complete_definition, definitions)}

    def put(self, definition: Mapping[str, Any]) -> None:
        """Add a definition, or replace the one with the same key.

        Raises:
            BadFlagError: if the definition is malformed.
        """
        one = complete_definition(definition)
        self._definitions[one["key"]] = one

    def remove(self, key: str) -> bool:
        """Remove a definition. Return whether it existed."""
        return self._definitions.pop(key, None) is not None

    def reset(self) -> None:
        """Restore the initial definitions, or load the current content of the file."""
        self._loaded_version = _NEVER_LOADED
        if self._path is None:
            self.replace(self._initial)
        self._reload_if_changed()

    def all(self) -> list[dict[str, Any]]:
        """Return all definitions in the order in which they were added."""
        self._reload_if_changed()
        return list(self._definitions.values())

    def respond(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes, access: Access
    ) -> EmulatorResponse:
        """Return the response to a request.

        Args:
            path: a key of `FLAG_METHODS`.
            query: parameters of the URL.
            headers: headers by lower-case name.
            body: body of a POST request, or empty.
            access: access rules of the project.
        """
        credentials = headers.get("authorization", ""), query.get("project_id")
        if not access.may_import(*credentials):
            return error_response(path, 401, reason=f"refused: {access.import_refusal(*credentials)}")
        enabled = [one for one in self.all() if one["status"] == "enabled"]
        if path == DEFINITIONS:
            return _definitions_response(enabled, headers.get("if-none-match", ""))
        try:
            context = _context(orjson.loads(body)) if body else orjson.loads(query.get("context", ""))
        except orjson.JSONDecodeError:
            return error_response(path, 400, "context must be a JSON object")
        if not isinstance(context, dict):
            return error_response(path, 400, "context must be a JSON object")
        if not isinstance(context.get("distinct_id"), str):
            return error_response(path, 400, _NO_ID)
        wanted = query.get("flag_key")
        variants = {one["key"]: evaluate_flag(one, context) for one in enabled if wanted in (None, one["key"])}
        return json_response(
            200, {"code": 200, "flags": {key: one for key, one in variants.items() if one is not None}}
        )

    def _reload_if_changed(self) -> None:
        """Reload the file if it has changed. Keep the current definitions if it cannot be read."""
        if self._path is None:
            return
        version = _file_version(self._path)
        if version == self._loaded_version:
            return
        self._loaded_version = version
        try:
            self.replace(read_definitions(self._path))
        except (OSError, BadFlagError) as error:
            reason = str(error) if isinstance(error, BadFlagError) else error.strerror
            _log.warning("cannot reload flags from %s, keeping the current definitions: %s", self._path, reason)


def _context(content: object) -> object:
    """Return the evaluation context in the body of a POST request."""
    return content.get("context") if isinstance(content, dict) else None


def read_definitions(path: Path) -> list[dict[str, Any]]:
    """Read definitions from a JSON file: a list, or an object in the format of `/flags/definitions`.

    Raises:
        BadFlagError: if the file contains no valid definitions.
        OSError: if the file cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise BadFlagError(f"{path} is not valid JSON") from None
    found = content.get("flags") if isinstance(content, dict) else content
    if not isinstance(found, list):
        raise BadFlagError(f'{path} must contain a JSON list of flags, or an object with a list "flags"')
    return [complete_definition(one) for one in found]


def complete_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition with all fields that Mixpanel's SDKs need. Key and ruleset are required.

    Raises:
        BadFlagError: if key or ruleset are missing or malformed.
    """
    key = definition.get("key") if isinstance(definition, Mapping) else None
    if not isinstance(key, str) or not key:
        raise BadFlagError("a flag needs a key, which must be a non-empty string")
    ruleset = definition.get("ruleset")
    if not isinstance(ruleset, Mapping):
        raise BadFlagError(f"flag {key!r}: ruleset must be an object")
    for name, needed in (("variants", ("key", "value")), ("rollout", ("rollout_percentage",))):
        found = ruleset.get(name)
        if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
            raise BadFlagError(f"flag {key!r}: ruleset.{name} must be a list of objects")
        if missing := [part for one in found for part in needed if part not in one]:
            raise BadFlagError(f"flag {key!r}: an item of ruleset.{name} has no {missing[0]}")
    if not all(isinstance(variant["key"], str) for variant in ruleset["variants"]):
        raise BadFlagError(f"flag {key!r}: the key of a variant must be a string")
    variants = [{"is_control": False, "split": 0.0, **variant} for variant in ruleset["variants"]]
    defaults = {"id": key, "name": key, "status": "enabled", "project_id": 1, "workspace_id": 1}
    one = {**defaults, "context": "distinct_id", **definition, "ruleset": {**ruleset, "variants": variants}}
    try:
        # The copy is independent of the caller's object, and proves that the definition can be sent as JSON. A response
        # has it in an object and a list.
        copy: dict[str, Any] = orjson.loads(orjson.dumps([[one]]))[0][0]
    except (TypeError, orjson.JSONDecodeError):
        raise BadFlagError(f"flag {key!r}: the definition cannot be encoded as JSON") from None
    return copy


def single_variant_definition(key: str, value: Any, variant_key: str) -> dict[str, Any]:
    """Return a definition that gives every person the same variant."""
    variant = {"key": variant_key, "value": value, "is_control": False, "split": 1.0}
    return {"key": key, "ruleset": {"variants": [variant], "rollout": [{"rollout_percentage": 1.0}]}}


def evaluate_flag(definition: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the response of `/flags` for one flag; None if the flag does not apply to the person.

    Args:
        definition: complete definition.
        context: evaluation context of the person.
    """
    subject = context.get(definition["context"])
    if not subject:
        return None
    ruleset = definition["ruleset"]
    variants = sorted(ruleset["variants"], key=lambda variant: str(variant["key"]))
    users = (ruleset.get("test") or {}).get("users") or {}
    test_variant = _find_variant(variants, users.get(str(context.get("distinct_id"))) or None)
    if test_variant is not None:
        return _variant_response(definition, test_variant, is_tester=True)
    salt = definition.get("hash_salt")
    for index, rollout in enumerate(ruleset["rollout"]):
        rollout_salt = f"{definition['key']}rollout" if salt is None else f"{definition['key']}{salt}{index}"
        if not _hash_fraction(subject, rollout_salt) < rollout["rollout_percentage"] or not _rule_matches(
            rollout, context
        ):
            continue
        forced = _find_variant(variants, (rollout.get("variant_override") or {}).get("key"))
        if forced is not None:
            return _variant_response(definition, forced, is_tester=True)
        splits = rollout.get("variant_splits") or {}
        fraction, upper_bound = _hash_fraction(subject, f"{definition['key']}{salt or ''}variant"), 0.0
        for variant in variants:
            upper_bound += splits.get(variant["key"], variant["split"]) or 0.0
            if fraction < upper_bound:
                return _variant_response(definition, variant, is_tester=False)
        return _variant_response(definition, variants[-1], is_tester=False) if variants else None
    return None


def _hash_fraction(subject: object, salt: str) -> float:
    """Hash a subject by 64-bit FNV-1a to hundredths from 0.00 to 0.99."""
    number = 14695981039346656037
    for byte in f"{subject}{salt}".encode("utf-8", "replace"):
        number = (number ^ byte) * 1099511628211 % 2**64
    return number % 100 / 100


def _rule_matches(rollout: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    rule, expected_values = rollout.get("runtime_evaluation_rule"), rollout.get("runtime_evaluation_definition")
    if not rule and not expected_values:
        return True
    properties = context.get("custom_properties")
    if not isinstance(properties, dict) or not properties:
        return False
    if rule or not isinstance(expected_values, dict):
        return rule_matches(rule, properties)
    conditions = [{"===": [{"var": name}, text]} for name, text in expected_values.items()]
    return rule_matches({"and": conditions}, properties)


def _find_variant(variants: list[dict[str, Any]], name: object) -> dict[str, Any] | None:
    if not isinstance(name, str):
        return None
    return next((variant for variant in variants if variant["key"].casefold() == name.casefold()), None)


def _variant_response(definition: Mapping[str, Any], variant: Mapping[str, Any], *, is_tester: bool) -> dict[str, Any]:
    response = {"variant_key": variant["key"], "variant_value": variant["value"], "is_qa_tester": is_tester}
    experiment = {name: definition.get(name) for name in ("experiment_id", "is_experiment_active")}
    return response | {name: value for name, value in experiment.items() if value is not None}


def _definitions_response(enabled: list[dict[str, Any]], known: str) -> EmulatorResponse:
    body = orjson.dumps({"flags": enabled})
    etag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    if etag in (part.strip().removeprefix("W/") for part in known.split(",")):
        return EmulatorResponse(status=304, body=b"", media_type=JSON, headers={"ETag": etag})
    return EmulatorResponse(status=200, body=body, headers={"ETag": etag, "Cache-Control": "no-cache"})


def _file_version(path: Path) -> tuple[int, int] | None:
    """Return a value that changes with the content of a file; None if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
