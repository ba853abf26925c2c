"""Contexts and variants as `/flags` takes and returns them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .model import SelectedVariant, VariantSource


class ContextError(Exception):
    """The context cannot be sent. The message contains nothing of it."""


class ResponseError(Exception):
    """The response cannot be understood."""


def encode_context(context: Mapping[str, Any]) -> str:
    """Return the context as JSON.

    Raises:
        ContextError: if the context is not a JSON object.
    """
    try:
        return json.dumps(context, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextError(f"the context cannot be sent as JSON ({type(error).__name__})") from None


def read_variants(body: bytes) -> dict[str, SelectedVariant | None]:
    """Return the variants in a response of `/flags` by flag; None for a malformed one.

    Raises:
        ResponseError: if there are no variants at all.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ResponseError("the response is not JSON") from None
    flags = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(flags, dict):
        raise ResponseError('the response has no "flags" object')
    return {key: _variant(found) for key, found in flags.items()}


def _variant(found: object) -> SelectedVariant | None:
    if not isinstance(found, dict) or "variant_value" not in found:
        return None
    key = found.get("variant_key")
    if not isinstance(key, (str, type(None))):
        return None
    return SelectedVariant(
        variant_value=found["variant_value"],
        variant_key=key,
        experiment_id=found.get("experiment_id"),
        is_experiment_active=found.get("is_experiment_active"),
        is_qa_tester=found.get("is_qa_tester"),
        variant_source=VariantSource.REMOTE,
    )
