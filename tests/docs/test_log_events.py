"""Every log event of the client has its meaning in the reference, and every line of the client is a log event."""

from __future__ import annotations

import ast

from tools.reference.log_events import COMPUTED_LEVELS, MEANINGS, log_calls, sources

# Owns the logger, and takes the event from its callers.
OWNER = "_runtime/log_events.py"


def test_every_log_event_has_a_meaning() -> None:
    assert {call.name for call in log_calls()} == set(MEANINGS)


def test_levels_that_the_code_computes_are_listed() -> None:
    assert {call.name for call in log_calls() if call.level is None} == set(COMPUTED_LEVELS)


def test_every_line_of_the_client_is_a_log_event() -> None:
    other = [
        f"{path}:{call.lineno}"
        for path, tree in sources()
        if path != OWNER
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) in {"_log", "logging", "logger", "log"}
        and call.func.attr in {"debug", "info", "warning", "error", "exception", "critical", "log"}
        and not any(keyword.arg == "extra" for keyword in call.keywords)
    ]
    assert other == []
