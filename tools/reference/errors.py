"""Page of the exceptions."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Final

import mixpanel_async
from mixpanel_async import MixpanelException

from .api import directive
from .markdown import first_sentence, page, section, table

MODULE: Final = mixpanel_async.__name__
ERRORS: Final = tuple(
    name
    for name in mixpanel_async.__all__
    if inspect.isclass(getattr(mixpanel_async, name)) and issubclass(getattr(mixpanel_async, name), BaseException)
)
"""Names of the exceptions."""
# Classes that the exceptions use.
DETAILS: Final = ("FailedRecord",)


def errors_page() -> str:
    """Return the page of the exceptions."""
    return page(
        "Errors",
        "All exceptions inherit from `MixpanelException`. Unknown arguments raise a `TypeError`. Messages contain no "
        "credential, no payload and no URL.",
        "Methods that queue a record, such as `track`, raise only for what the caller can correct: data, a full queue "
        "with `Overflow.RAISE` or `Overflow.WAIT`, a closed client, a spool that cannot be written, or an outbox with "
        "`confirm=True` that does not answer in time. Failures of Mixpanel never reach them; see "
        "[Delivery](../explanation/delivery.md).",
        "Errors with `uncertain=True` mean that Mixpanel may have applied the call.",
        section("When each is raised", table(("Exception", "Inherits from", "Raised when"), map(_row, _tree()))),
        section("Attributes", "\n\n".join(directive(MODULE, name, 3) for name in (*_tree(), *DETAILS))),
    )


def _row(name: str) -> tuple[str, str, str]:
    kind = getattr(import_module(MODULE), name)
    bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
    return f"[`{name}`](#{MODULE}.{name})", bases, first_sentence(kind.__doc__)


def _tree() -> list[str]:
    """Return the names of the exceptions, each below its base."""

    def below(kind: type[BaseException]) -> list[str]:
        return [kind.__name__, *(name for child in kind.__subclasses__() for name in below(child))]

    return [name for name in below(MixpanelException) if name in ERRORS]
