"""Page of the reasons why a record was not delivered."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Final

from mixpanel_async import DropReason

from .markdown import code, page, table

_COUNTER: Final = re.compile(r"^(?P<meaning>.*) \((?:counted as )?(?P<counter>dropped|failed|uncertain)\)\.$")


def documented_members(enum: type[Enum]) -> Iterator[tuple[str, str]]:
    """Yield each member of an enumeration with the docstring below it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(enum))).body
    assert isinstance(definition, ast.ClassDef)
    name = ""
    for statement in definition.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
        elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            yield name, inspect.cleandoc(str(statement.value.value))
            name = ""


def reasons_page() -> str:
    """Return the page of the reasons.

    Raises:
        ValueError: if a reason does not name its counter.
    """
    rows = []
    for name, text in documented_members(DropReason):
        found = _COUNTER.match(" ".join(text.split()))
        if found is None:
            raise ValueError(f"the docstring of DropReason.{name} must end with its counter, such as '(dropped).'")
        rows.append((code(DropReason[name].value), code(name), code(found["counter"]), f"{found['meaning']}."))
    return page(
        "Reasons of losses",
        "Every record that a client accepted ends as delivered, or with one of these reasons. The reason is the second "
        "argument of `on_drop`, the key of `Stats.losses`, the data `reason` of the log events `records_dropped` and "
        "`records_lost`, and the attribute `reason` of the [metric](metrics.md) `records.lost`.",
        "The counter says which number of [`Stats`](results.md#mixpanel_async.Stats) counts the record: the client "
        "gave up `dropped` records, Mixpanel refused `failed` records or they ran out of attempts or time, and "
        "`uncertain` records may have been applied by Mixpanel. An event with the reason `closed`, `exhausted` or "
        "`too_old` may have arrived nevertheless, in an attempt without a clear response. "
        "`mixpanel_async.DropReason` has the members.",
        table(("Reason", "Member", "Counter", "Meaning"), rows),
        "[Delivery](../explanation/delivery.md) explains when each of them can happen, and "
        "[Troubleshooting](../troubleshooting.md) what to do.",
    )
