"""Overview of the reference."""

from __future__ import annotations

from typing import Final

from .markdown import page, section, table

_PYTHON: Final = (
    ("client.md", "Client", "`AsyncMixpanel` with all options and methods"),
    ("bound.md", "Bound and blocking clients", "clients of one user or request, and clients for code without `await`"),
    ("options.md", "Options and policies", "batches, retries, overflow, credentials, the spool, types for annotations"),
    ("results.md", "Results and statistics", "what `stats()`, `flush()` and the callbacks get"),
    ("errors.md", "Errors", "every exception, and when it is raised"),
    ("flags.md", "Feature flags", "local and remote evaluation"),
    ("outbox.md", "Outbox", "queues that many hosts share"),
    ("worker.md", "Worker", "delivery of what an outbox holds"),
    ("integrations.md", "Integrations", "web frameworks, task queues, AWS Lambda, OpenTelemetry, OpenFeature"),
    ("emulator.md", "Emulator", "a local Mixpanel"),
    ("testing.md", "Testing", "assertions, and the fixtures and settings of the pytest plugin"),
    ("identity.md", "Identity tools", "persons that identity calls make of ids"),
)
_OTHER: Final = (
    ("commands.md", "Commands", "`mixpanel-async` with all options"),
    ("environment.md", "Environment variables", "what the client, the commands and the integrations read"),
    ("metrics.md", "Metrics", "OpenTelemetry and Prometheus names"),
    ("log-events.md", "Log events", "every line that the client logs, with its data"),
    ("reasons.md", "Reasons of losses", "every `DropReason`"),
    ("emulator-http.md", "HTTP API of the emulator", "endpoints of Mixpanel, and those for tests in other languages"),
)


def index_page() -> str:
    """Return the overview of the reference."""
    return page(
        "Reference",
        "These pages are generated from the code. Names that they do not list may change at any time; "
        "[Versions](../explanation/versions.md) lists the stable parts.",
        section("Python", _overview(_PYTHON)),
        section("Programs and operation", _overview(_OTHER)),
    )


def _overview(pages: tuple[tuple[str, str, str], ...]) -> str:
    return table(("Page", "Content"), ((f"[{title}]({name})", text) for name, title, text in pages))
