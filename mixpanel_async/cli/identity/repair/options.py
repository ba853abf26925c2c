"""Options that the commands `plan`, `apply` and `verify` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from mixpanel_async import IdMerge

EXIT_OK: Final = 0
EXIT_STOPPED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCOMPLETE: Final = 3
EXIT_INTERRUPTED: Final = 130

PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="Plan file, made by `identity plan`.", show_default=False)
]


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 call`, `1,000 calls`.

    Args:
        count: the number.
        one: the noun after 1.
        many: the noun after any other number; by default `one` with an `s`.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def client_message(error: Exception) -> str:
    """Return the message of an error, with the names of options instead of arguments of the client."""
    return str(error).replace("allow_http=True", "--allow-http").replace(" for from_env()", "")


def environment_id_merge() -> IdMerge | None:
    """Return the ID merge system of `MIXPANEL_ID_MERGE`, or None if it is not set.

    Raises:
        ValueError: if the value is unknown.
    """
    text = os.environ.get("MIXPANEL_ID_MERGE", "").strip()
    if not text:
        return None
    try:
        return IdMerge(text)
    except ValueError:
        raise ValueError(f"MIXPANEL_ID_MERGE must be legacy, original or simplified, not {text[:40]!r}") from None
