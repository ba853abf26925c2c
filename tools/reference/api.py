"""Pages of the Python API: which public name is on which page. mkdocstrings writes the details from the docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Final, NamedTuple, Union, get_args, get_origin

from mixpanel_async import AsyncMixpanel
from mixpanel_async.integrations.django._settings import _KEYS as DJANGO_KEYS

from .markdown import code, first_sentence, page, section, table


class Group(NamedTuple):
    """Section of a page with names of one module.

    Args:
        heading: heading of the section; empty for a page with a single group.
        module: module that users import the names from.
        names: public names, in the order of the page.
        text: introduction.
    """

    heading: str
    module: str
    names: tuple[str, ...]
    text: str = ""


class ApiPage(NamedTuple):
    """Page of the API.

    Args:
        title: heading of the page.
        text: introduction.
        groups: sections.
    """

    title: str
    text: str
    groups: tuple[Group, ...]


_ROOT: Final = "mixpanel_async"
_WEB: Final = ("MixpanelIntegration", "CookiePolicy", "current_mixpanel")

API_PAGES: Final[dict[str, ApiPage]] = {
    "client.md": ApiPage(
        "Client",
        "`AsyncMixpanel` is the client. `Checker` validates records and sends nothing.",
        (Group("", _ROOT, ("AsyncMixpanel", "Checker", "Checked", "limit_depth", "__version__")),),
    ),
    "bound.md": ApiPage(
        "Bound and blocking clients",
        "`AsyncMixpanel.bind` returns a client for one user or request, and `AsyncMixpanel.start_in_thread` one whose "
        "methods block.",
        (Group("", _ROOT, ("BoundMixpanel", "BlockingMixpanel", "BlockingBound")),),
    ),
    "options.md": ApiPage(
        "Options and policies",
        "Values for the options of [`AsyncMixpanel`](client.md#mixpanel_async.AsyncMixpanel). All are immutable and "
        "validated when they are created. The options of [feature flags](flags.md) and of [outboxes](outbox.md) have "
        "their own pages.",
        (
            Group("Options of the client", _ROOT, ("BatchPolicy", "RetryPolicy", "Overflow", "IdMerge", "Region")),
            Group("Credentials", _ROOT, ("ServiceAccountCredentials",)),
            Group(
                "Types for annotations",
                "mixpanel_async.types",
                (
                    "BeforeSend",
                    "ClientArguments",
                    "EventsEndpoint",
                    "HttpClient",
                    "IdMergeOption",
                    "InvalidOption",
                    "Meta",
                    "NestingOption",
                    "OnDelivered",
                    "OnDrop",
                    "Properties",
                    "SerializerOption",
                    "WorkerArguments",
                ),
                "Functions that pass options on annotate them as `**options: Unpack[ClientArguments]`, so that a type "
                "checker finds misspelled options.",
            ),
            Group("Spool", _ROOT, ("SqliteSpool", "SpoolStatus", "SpoolCount", "SpooledRecord", "Purged")),
        ),
    ),
    "results.md": ApiPage(
        "Results and statistics",
        "Values that the methods of a client return, and that it passes to `on_drop` and `on_delivered`. "
        "[Reasons of losses](reasons.md) has every `DropReason` in a table.",
        (Group("", _ROOT, ("Stats", "FlushResult", "Delivery", "LostRecord", "DropReason")),),
    ),
    "flags.md": ApiPage(
        "Feature flags",
        "The guide is [Use feature flags](../guides/feature-flags.md).",
        (
            Group(
                "",
                "mixpanel_async.flags",
                (
                    "LocalFlags",
                    "LocalFeatureFlagsProvider",
                    "RemoteFlags",
                    "RemoteFeatureFlagsProvider",
                    "SelectedVariant",
                    "VariantSource",
                    "FallbackReason",
                    "FlagsUpdate",
                ),
            ),
        ),
    ),
    "outbox.md": ApiPage(
        "Outbox",
        "The guide is [Use a queue for many hosts](../guides/outbox.md). An engine of your own implements `Outbox`, "
        "`EntryWriter` and `Inbox`.",
        (
            Group("Engines", "mixpanel_async.outbox", ("RedisOutbox", "MemoryOutbox")),
            Group(
                "Inspection and repair",
                "mixpanel_async.outbox",
                (
                    "QueueAdmin",
                    "QueueStatus",
                    "QueueCount",
                    "QueueServer",
                    "QueueWorker",
                    "QueuedRecord",
                    "QueuePurged",
                ),
            ),
            Group(
                "Protocols of an engine",
                "mixpanel_async.outbox",
                (
                    "Outbox",
                    "EntryWriter",
                    "Inbox",
                    "Entry",
                    "EntryId",
                    "StoredEntry",
                    "DeadEntry",
                    "Held",
                    "PutResult",
                    "BeginResult",
                ),
            ),
        ),
    ),
    "worker.md": ApiPage(
        "Worker",
        "The guide is [Use a queue for many hosts](../guides/outbox.md). The command is "
        "[`mixpanel-async worker`](commands.md).",
        (Group("", "mixpanel_async.worker", ("Worker", "WorkerStats")),),
    ),
    "integrations.md": ApiPage(
        "Integrations",
        "Each integration is a module of `mixpanel_async.integrations`, and needs the extra of its framework.",
        (
            Group("FastAPI", "mixpanel_async.integrations.fastapi", _WEB),
            Group("Starlette", "mixpanel_async.integrations.starlette", _WEB),
            Group("aiohttp", "mixpanel_async.integrations.aiohttp", (*_WEB, "MIXPANEL")),
            Group("ASGI", "mixpanel_async.integrations.asgi", (*_WEB, "TrackingProxy")),
            Group(
                "Django",
                "mixpanel_async.integrations.django",
                (
                    "mixpanel",
                    "MixpanelMiddleware",
                    "RequestMixpanel",
                    "current_mixpanel",
                    "using",
                    "get_asgi_application",
                    "wrap_asgi",
                    "CookiePolicy",
                ),
                "The setting `MIXPANEL` is a dict with these keys: "
                f"{', '.join(map(code, DJANGO_KEYS))}. Keys have the meaning of the option with the same name, of "
                "`AsyncMixpanel` or of the `MixpanelIntegration` for [ASGI](#asgi). `USER_ID` is a function from the "
                "signed-in user to the id; by default the primary key. `CLIENT` is a function that creates the client, "
                "in place of the options of `AsyncMixpanel`. Functions can be dotted paths. With `SIGN_IN_ON_LOGIN` "
                "(default `True`), Django's login and logout sign the visitor in and out.",
            ),
            Group("Celery", "mixpanel_async.integrations.celery", ("MixpanelIntegration", "current_mixpanel")),
            Group("taskiq", "mixpanel_async.integrations.taskiq", ("MixpanelMiddleware", "current_mixpanel")),
            Group("AWS Lambda", "mixpanel_async.integrations.aws_lambda", ("MixpanelIntegration",)),
            Group("OpenTelemetry", "mixpanel_async.integrations.otel", ("MixpanelMetrics", "WorkerMetrics")),
            Group("OpenFeature", "mixpanel_async.integrations.openfeature", ("MixpanelProvider",)),
        ),
    ),
    "emulator.md": ApiPage(
        "Emulator",
        "The guide is [Emulator and live view](../guides/emulator.md). Programs in other languages use the "
        "[HTTP API](emulator-http.md).",
        (
            Group(
                "",
                "mixpanel_async.emulator",
                (
                    "Emulator",
                    "Server",
                    "Tls",
                    "TlsError",
                    "FaultKind",
                    "KINDS",
                    "TRANSIENT",
                    "RecordedRequest",
                    "RequestEntry",
                    "RequestDigest",
                ),
            ),
        ),
    ),
    "identity.md": ApiPage(
        "Identity tools",
        "The guide is [Identity tools](../guides/identity-tools.md). Nothing here does any I/O.",
        (
            Group(
                "Graph of ids",
                "mixpanel_async.identity",
                ("IdentityGraph", "IdentityResult", "Outcome", "Reason", "Step", "GraphDiff", "PersonChange"),
            ),
            Group("Replay of an export", "mixpanel_async.identity", ("History", "Order", "ReplayedCall")),
            Group(
                "Audit",
                "mixpanel_async.identity",
                ("Audit", "AuditReport", "Finding", "FindingKind", "Case", "LargePerson"),
            ),
            Group(
                "Ids and constants",
                "mixpanel_async.identity",
                (
                    "as_id",
                    "id_problem",
                    "is_anonymous",
                    "is_forbidden",
                    "verb_ids",
                    "CLUSTER_LIMIT",
                    "CREATE_ALIAS",
                    "DEVICE_LINK",
                    "DEVICE_PREFIX",
                    "FORBIDDEN_IDS",
                    "IDENTIFY",
                    "MERGE",
                    "VERBS",
                ),
            ),
        ),
    ),
}
"""Pages by file name. `errors.md` and `testing.md` have more than names, and their own modules."""

# Files of the public methods, in the order of the page.
_METHOD_FILES: Final = ("client", "lifecycle", "flag_access", "base", "events", "identity", "profiles", "groups")


def names_on_pages() -> Iterator[tuple[str, str]]:
    """Yield module and name of all public names on the pages of this module."""
    for one in API_PAGES.values():
        for group in one.groups:
            for name in group.names:
                yield group.module, name


def api_page(name: str) -> str:
    """Return a page of the API.

    Args:
        name: a key of `API_PAGES`.
    """
    content = API_PAGES[name]
    parts = [content.text]
    for group in content.groups:
        parts.append(names_table(group))
        details = "\n\n".join(directive(group.module, one, 3 if group.heading else 2) for one in group.names)
        parts.append(details)
        if group.heading:
            parts[-2:] = [section(group.heading, f"Import from `{group.module}`.", group.text, *parts[-2:])]
    return page(content.title, *parts)


def names_table(group: Group) -> str:
    """Return the names of a group with their first sentences; nothing for a group of one."""
    if len(group.names) < 2:
        return ""
    rows = ((f"[`{name}`](#{group.module}.{name})", _summary(group.module, name)) for name in group.names)
    return table(("Name", "Meaning"), rows)


def _summary(module: str, name: str) -> str:
    value = getattr(import_module(module), name)
    if getattr(value, "__module__", "").startswith(("typing", "collections")) or isinstance(value, UnionType):
        return f"Type {code(_annotation(value))}."
    if inspect.isclass(value) and value.__name__ != name:
        return f"Other name of {code(f'{value.__module__}.{value.__name__}')}."
    if inspect.isclass(value) or inspect.isroutine(value):
        return first_sentence(value.__doc__)
    text = constant_docstring(import_module(module), name)
    return first_sentence(text) or f"Constant of type {code(type(value).__name__)}."


def constant_docstring(module: ModuleType, name: str) -> str:
    """Return the docstring below the assignment of a constant, or an empty string.

    Args:
        module: public module that has the constant.
        name: name of the constant, which a module next to it may define.
    """
    paths = Path(module.__path__[0]).rglob("*.py") if hasattr(module, "__path__") else [Path(str(module.__file__))]
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8")
        if f"\n{name}: " in text or f"\n{name} = " in text:
            for statement, following in pairwise(ast.parse(text).body):
                target = getattr(statement, "target", None) or (getattr(statement, "targets", None) or [None])[0]
                if isinstance(target, ast.Name) and target.id == name and isinstance(following, ast.Expr):
                    return str(ast.literal_eval(following.value))
    return ""


def _annotation(value: object) -> str:
    """Return a type without the modules of its names, the same on every version of Python."""
    if get_origin(value) in (Union, UnionType):
        return " | ".join("None" if one is NoneType else _annotation(one) for one in get_args(value))
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", inspect.formatannotation(value))


def directive(module: str, name: str, level: int) -> str:
    """Return the directive by which mkdocstrings writes the details of a name."""
    lines = [f"::: {module}.{name}", "    options:", f"      heading_level: {level}"]
    if name == AsyncMixpanel.__name__:
        lines.append(f"      members: [{', '.join(_methods())}]")
    return "\n".join(lines)


def _methods() -> list[str]:
    """Return the public members of the client: those of the class first, then the groups of methods."""
    by_file: dict[str, list[str]] = {name: [] for name in _METHOD_FILES}
    for base in AsyncMixpanel.__mro__:
        for name, value in vars(base).items():
            if not name.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                by_file.setdefault(base.__module__.rpartition(".")[2], []).append(name)
    return [name for names in by_file.values() for name in names]
