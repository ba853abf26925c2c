"""Values that are nested deeper than `/import` accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import orjson

from .._model.errors import ConfigurationError, ValidationError, show_text
from .validation import join_path

_IMPORT_DEPTH: Final = 3
# Above these bounds, no event can be sent either.
_MAX_TEXT_DEPTH: Final = 100
_MAX_TEXT_VALUES: Final = 500_000


def limit_depth(properties: dict[str, Any], mode: Literal["text", "cut", "reject"]) -> dict[str, Any]:
    """Return properties without objects and lists that are nested deeper than Mixpanel accepts in an import.

    Mixpanel documents three levels: https://docs.mixpanel.com/reference/import-events, read 2026-08-21. The properties
    themselves are no level.

    Example:
        ```python
        from mixpanel_async import limit_depth

        print(limit_depth({"a": {"b": {"c": {"d": [1, 2]}}}}, "text"))
        ```

    Args:
        properties: JSON values: dicts, lists or tuples, text, numbers, booleans and None. They are not changed.
        mode: what happens to an object or list below the last level. `text` puts its JSON text in its place, `cut`
            leaves it out, and `reject` raises.

    Returns:
        The properties themselves if they are not too deep, otherwise a copy.

    Raises:
        ConfigurationError: if there is no such mode.
        ValidationError: with `reject`, if a value is too deep; with `text`, if it is not JSON, or has more than 100
            levels or 500,000 values. `path` names it.
    """
    if mode not in ("text", "cut", "reject"):
        raise ConfigurationError(f"mode must be 'text', 'cut' or 'reject', not {show_text(mode)}")
    limited: dict[str, Any] = _limited(properties, _IMPORT_DEPTH, mode, "properties")
    return limited


def _limited(container: Any, levels: int, mode: str, path: str) -> Any:
    """Return a container with at most this many levels below it."""
    is_dict = isinstance(container, dict)
    # Changed entries by key or index. Few values are too deep, so most containers are not copied.
    changed: dict[Any, Any] = {}
    removed = set()
    for key, entry in container.items() if is_dict else enumerate(container):
        if isinstance(entry, (dict, list, tuple)):
            inner = join_path(path, key) if is_dict else f"{path}[{key}]"
            if levels:
                limited = _limited(entry, levels - 1, mode, inner)
                if limited is not entry:
                    changed[key] = limited
            elif mode == "cut":
                removed.add(key)
            else:
                changed[key] = _as_text(entry, mode, inner)
    if not changed and not removed:
        return container
    if is_dict:
        return {key: changed.get(key, entry) for key, entry in container.items() if key not in removed}
    return [changed.get(at, entry) for at, entry in enumerate(container) if at not in removed]


def _as_text(value: Any, mode: str, path: str) -> str:
    """Return the JSON text of a value that is too deep."""
    if mode == "reject":
        raise ValidationError(
            path,
            f"is nested more than {_IMPORT_DEPTH} levels deep, which Mixpanel does not accept in an import; flatten "
            'it, or use nesting="text"',
        )
    try:
        return orjson.dumps(_with_lists(value, _MAX_TEXT_DEPTH, iter(range(_MAX_TEXT_VALUES)))).decode()
    except (TypeError, ValueError):
        raise ValidationError(path, "is not JSON, is nested too deeply, or has too many values") from None


def _with_lists(value: Any, levels: int, budget: Iterator[int]) -> Any:
    """Return a value with lists in place of tuples, whose depth orjson 3.13 does not limit: it overwrites memory.

    Raises:
        ValueError: if the value has more levels or values than allowed.
    """
    if next(budget, None) is None:
        raise ValueError
    if not isinstance(value, (dict, list, tuple)):
        return value
    if not levels:
        raise ValueError
    if isinstance(value, dict):
        return {key: _with_lists(entry, levels - 1, budget) for key, entry in value.items()}
    return [_with_lists(entry, levels - 1, budget) for entry in value]
