"""Log lines of the client, each with the same facts as data for handlers that write JSON.

The record's attribute `mixpanel` is a dict with `event`, the name of the log event, and its data.
`docs/reference/log-events.md` lists all events. Texts and data never contain a payload, a credential or a URL with a
query.
"""

from __future__ import annotations

import logging

from .._model.interruption import raise_interruption

_log = logging.getLogger("mixpanel_async")


def is_logged(level: int) -> bool:
    """Return whether a line of this level is used, so that a caller can skip work for one that is not."""
    return _log.isEnabledFor(level)


def log_event(level: int, event: str, text: str, *args: object, **data: object) -> None:
    """Log one line.

    Args:
        level: level of the line, such as `logging.WARNING`.
        event: name of the event.
        text: the line, with a placeholder for each of `args`.
        args: values of the placeholders.
        data: the facts, for handlers that write JSON.
    """
    try:
        _log.log(level, text, *args, extra={"mixpanel": {"event": event, **data}}, stacklevel=2)
    except Exception as error:  # noqa: BLE001  a log handler of the application must not stop delivery
        raise_interruption(error)
