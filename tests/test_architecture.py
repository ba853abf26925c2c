"""The shape of the package, held by reading its syntax trees: who imports whom, how large things are, what is state.

Each rule is a function from sources to complaints. It must find nothing in the package, and must find the guilty
snippet beside it: a rule that lets that pass proves nothing.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest

import mixpanel_async
import mixpanel_async.emulator
import mixpanel_async.flags

PACKAGE: Final = "mixpanel_async"
ROOT: Final = Path(mixpanel_async.__file__).parent

# From bottom to top. A package may import the packages before it, but no peer on its own line.
LAYERS: Final[Sequence[tuple[str, ...]]] = (
    ("_model",),
    ("_runtime",),
    ("_encoding",),
    ("_http", "_spool"),
    ("_delivery",),
    ("flags",),
    ("_client",),
    ("__init__.py",),
)
CORE: Final = tuple(name for layer in LAYERS for name in layer)
# Use the public names of the package only; the emulator uses none of them.
USERS: Final = ("cli", "integrations", "testing.py", "_pytest_plugin.py")

# Modules without I/O, clocks and randomness.
PURE: Final = (
    "_model/*.py",
    "_encoding/*.py",
    "_delivery/accounting.py",
    "_delivery/buffer.py",
    "_delivery/disk_backlog.py",
    "_delivery/lanes.py",
    "_http/retry.py",
    "flags/definitions.py",
    "flags/evaluate.py",
    "flags/hashing.py",
    "flags/model.py",
    "flags/operators.py",
    "flags/options.py",
    "flags/rules.py",
    "flags/variants.py",
)

# Files that may import a library; each of them must, or the entry is stale. Other libraries may not be imported.
OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "aiohttp": ("integrations/aiohttp.py",),
    "anyio": (
        "_delivery/*.py",
        "_http/*.py",
        "_runtime/*.py",
        "cli/*.py",
        "emulator/http/*.py",
        "flags/poller.py",
        "integrations/openfeature.py",
    ),
    # The commands are programs on asyncio.
    "asyncio": (
        "_runtime/event_loop.py",
        "_pytest_plugin.py",
        "cli/importing/reader.py",
        "cli/demo/command.py",
        "emulator/http/server.py",
    ),
    "backports": ("cli/importing/inputs.py",),
    # Part of the standard library since Python 3.14.
    "compression": ("cli/importing/inputs.py",),
    "fastapi": ("integrations/fastapi.py",),
    "h11": ("emulator/http/server.py",),
    "httpcore": ("_http/connection.py",),
    "httpx": ("_http/transport.py", "_http/asgi.py", "_http/connection.py", "_http/proxies.py"),
    "isal": ("_encoding/requests.py",),
    "json_logic": ("flags/rules.py",),
    "openfeature": ("integrations/openfeature.py",),
    "opentelemetry": ("integrations/otel.py",),
    "orjson": ("_encoding/*.py", "_spool/*.py", "cli/importing/*.py", "emulator/*.py"),
    "pyarrow": ("cli/importing/parquet_source.py",),
    "pytest": ("_pytest_plugin.py",),
    "rich": ("cli/*.py",),
    "select": ("_http/connection.py",),
    "socket": ("_http/connection.py", "emulator/http/server.py"),
    "sqlite3": ("_spool/*.py", "emulator/storage/store.py"),
    "ssl": ("_http/connection.py", "_http/transport.py"),
    "starlette": ("emulator/http/app.py", "emulator/http/routes.py", "integrations/starlette.py"),
    "tenacity": ("_http/api.py",),
    "trio": ("_runtime/event_loop.py",),
    "typer": ("cli/*.py",),
    "typing_extensions": ("_client/client.py",),
    "uvicorn": ("emulator/http/server.py",),
}
# Modules of the standard library that have owners as well.
OWNED_STDLIB: Final = frozenset({"asyncio", "multiprocessing", "select", "selectors", "socket", "sqlite3", "ssl"})

# Not imported by pure modules.
IMPURE: Final = frozenset(
    {
        "anyio", "asyncio", "concurrent", "httpx", "io", "logging", "multiprocessing", "os", "pathlib", "random",
        "secrets", "select", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "tenacity", "threading", "time",
        "trio", "uuid",
    }
)  # fmt: skip
# Not imported by the other modules of the core, except by the `_runtime` files that own them.
CLOCKS_AND_RANDOMNESS: Final = frozenset({"random", "secrets", "time", "uuid"})
IMPURE_BUT_ALLOWED: Final = frozenset(
    {
        ("_runtime/clock.py", "random"),
        ("_runtime/clock.py", "time"),
        # The type, to recognise values; no id is made there.
        ("_encoding/validation.py", "uuid.UUID"),
    }
)
CLOCK_METHODS: Final = frozenset({"now", "today", "utcnow"})

MAX_MODULE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 60

# Made once, at import, and not changed afterwards although not annotated as Final.
CONSTANT_CALLS: Final = frozenset({"TypeVar", "ParamSpec", "getLogger"})
STATE_ALLOWED: Final = frozenset({("cli/app.py", "app")})
MUTATORS: Final = frozenset(
    {
        "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
        "reverse", "setdefault", "sort", "update",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported name. `module` and `target` are dotted from the root; `target` ends in the name, if there is one."""

    module: str
    target: str
    line: int
    function: str | None
    """The innermost function around it."""
    for_types: bool
    """Whether it stands under `if TYPE_CHECKING`."""

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]

    @property
    def is_internal(self) -> bool:
        return self.root == PACKAGE


@dataclass(frozen=True)
class Source:
    """One module of the package. `path` is relative to it, with slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def dotted(self) -> str:
        parts = [PACKAGE, *self.path.removesuffix(".py").split("/")]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(self._imports(self.tree, None, for_types=False))

    def _imports(self, node: ast.AST, function: str | None, *, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield Import(name.name, name.name, child.lineno, function, for_types)
            elif isinstance(child, ast.ImportFrom):
                module = self._absolute(child)
                for name in child.names:
                    yield Import(module, f"{module}.{name.name}", child.lineno, function, for_types)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from self._imports(child, child.name, for_types=for_types)
            elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                body = ast.Module(child.body, [])
                yield from self._imports(body, function, for_types=True)
                yield from self._imports(ast.Module(child.orelse, []), function, for_types=for_types)
            else:
                yield from self._imports(child, function, for_types=for_types)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.dotted.split(".") if self.path.endswith("__init__.py") else self.dotted.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        assert base, f"{self.path}:{node.lineno} leaves the package"
        return ".".join([*base, *([node.module] if node.module else [])])

    def at(self, line: int, problem: str) -> str:
        return f"{self.path}:{line} {problem}"


SOURCES: Final = tuple(
    Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in sorted(ROOT.rglob("*.py"))
)
Rule = Callable[[Sequence[Source]], Iterable[str]]


def package_of(path: str) -> str:
    """The sub-package that a module is in, or the module itself if it is in the root."""
    return path.partition("/")[0]


def level_of(package: str) -> int:
    (level,) = (number for number, layer in enumerate(LAYERS) if package in layer)
    return level


def core(sources: Sequence[Source]) -> list[Source]:
    return [source for source in sources if package_of(source.path) in CORE]


def is_pure(source: Source) -> bool:
    return any(fnmatch(source.path, pattern) for pattern in PURE)


def file_of(target: str, modules: Mapping[str, Source]) -> Source | None:
    """The module that a dotted target lies in; a name that is no module belongs to the package that gives it."""
    return modules.get(target) or modules.get(target.rpartition(".")[0])


# The rules.


def every_module_is_in_a_known_package(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if package_of(source.path) not in {*CORE, *USERS, "emulator"}:
            yield f"{source.path} is in no package of the architecture"


def imports_go_downwards(sources: Sequence[Source]) -> Iterator[str]:
    modules = {source.dotted: source for source in sources}
    for source in core(sources):
        own = package_of(source.path)
        for one in source.imports:
            if not one.is_internal:
                continue
            found = file_of(one.target, modules)
            if found is None:
                yield source.at(one.line, f"imports {one.target}, which does not exist")
                continue
            other = package_of(found.path)
            if other not in CORE or (other != own and level_of(other) >= level_of(own)):
                yield source.at(one.line, f"{own} imports {other}: {one.target}")


def no_import_goes_in_a_circle(sources: Sequence[Source]) -> Iterator[str]:
    modules = {source.dotted: source for source in sources}
    edges: dict[str, set[str]] = {}
    for source in core(sources):
        found = [file_of(one.target, modules) for one in source.imports if one.is_internal and not one.for_types]
        edges[source.dotted] = {one.dotted for one in found if one is not None} - {source.dotted}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> Iterator[str]:
        if module in trail:
            yield " -> ".join([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                yield from visit(target, (*trail, module))
            done.add(module)

    for module in edges:
        yield from visit(module, ())


def pure_modules_do_no_io(sources: Sequence[Source]) -> Iterator[str]:
    for source in core(sources):
        banned = IMPURE if is_pure(source) else CLOCKS_AND_RANDOMNESS
        for one in source.imports:
            if one.root in banned and (source.path, one.target) not in IMPURE_BUT_ALLOWED:
                yield source.at(one.line, f"imports {one.target}")
    for source in filter(is_pure, sources):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input", "__import__"}:
                yield source.at(node.lineno, f"calls {node.func.id}")
            elif isinstance(node.func, ast.Attribute) and node.func.attr in CLOCK_METHODS:
                yield source.at(node.lineno, f"reads a clock: {ast.unparse(node)}")


def each_library_has_one_owner(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for one in source.imports:
            is_free = one.root in sys.stdlib_module_names and one.root not in OWNED_STDLIB
            if one.is_internal or is_free:
                continue
            if not any(fnmatch(source.path, pattern) for pattern in OWNERS.get(one.root, ())):
                yield source.at(one.line, f"imports {one.root}")


def no_owner_is_stale(sources: Sequence[Source]) -> Iterator[str]:
    for library, patterns in OWNERS.items():
        for pattern in patterns:
            mine = [source for source in sources if fnmatch(source.path, pattern)]
            if not any(one.root == library for source in mine for one in source.imports):
                yield f"{pattern} does not import {library}"
    used = {(source.path, one.target) for source in sources for one in source.imports}
    yield from (f"{path} does not import {target}" for path, target in IMPURE_BUT_ALLOWED - used)


def extras_are_imported_where_they_are_used(sources: Sequence[Source]) -> Iterator[str]:
    """What the client can do without is imported by a function, so that `import mixpanel_async` does not need it."""
    for source in core(sources):
        for one in source.imports:
            if one.root in {"isal", "json_logic", "trio"} and one.function is None:
                yield source.at(one.line, f"imports {one.root} at its top")


def users_use_public_names(sources: Sequence[Source]) -> Iterator[str]:
    public = {
        PACKAGE: mixpanel_async.__all__,
        f"{PACKAGE}.emulator": mixpanel_async.emulator.__all__,
        f"{PACKAGE}.flags": mixpanel_async.flags.__all__,
    }
    for source in sources:
        if package_of(source.path) not in USERS:
            continue
        home = ".".join(source.dotted.split(".")[:2])
        for one in source.imports:
            name = one.target.removeprefix(f"{one.module}.")
            is_own = (one.module + ".").startswith(f"{home}.")
            if one.is_internal and not is_own and name not in public.get(one.module, ()):
                yield source.at(one.line, f"imports {one.target}")
        for node in ast.walk(source.tree):
            if (
                isinstance(node, ast.Attribute)
                and is_private(node.attr)
                and ast.unparse(node.value) not in {"self", "cls"}
            ):
                yield source.at(node.lineno, f"reaches for {ast.unparse(node)}")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def the_emulator_stands_alone(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if package_of(source.path) != "emulator":
            continue
        for one in source.imports:
            if not one.is_internal or (one.module + ".").startswith(f"{PACKAGE}.emulator."):
                continue
            is_enum = one.target == f"{PACKAGE}._model.config.IdMerge"
            is_annotation = one.for_types and one.module == PACKAGE
            if not is_enum and not is_annotation and one.function != "client":
                yield source.at(one.line, f"imports {one.target}")


def modules_are_small(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        lines = len(source.text.splitlines())
        if lines > MAX_MODULE_LINES:
            yield f"{source.path} has {lines} lines"


def functions_are_small(sources: Sequence[Source]) -> Iterator[str]:
    """Without signature and docstring, whose length is the contract's."""
    for source in sources:
        for node in ast.walk(source.tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                yield source.at(node.lineno, f"{node.name} has {lines} lines")


def modules_keep_no_state(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Global):
                yield source.at(node.lineno, f"has global {', '.join(node.names)}")
            elif isinstance(node, ast.ClassDef):
                yield from (
                    source.at(line, f"class {node.name} shares {name}")
                    for name, value, line, _ in bindings(node.body)
                    if is_container(value)
                )
        constants = set()
        for name, value, line, is_final in bindings(source.tree.body):
            constants.add(name)
            is_state = is_container(value) or (
                isinstance(value, ast.Call) and last_name(value.func) not in CONSTANT_CALLS
            )
            if is_state and not is_final and name != "__all__" and (source.path, name) not in STATE_ALLOWED:
                yield source.at(line, f"{name} is not Final")
        yield from (source.at(line, f"changes {name}") for name, line in changes(source.tree) if name in constants)


def modules_do_nothing_when_imported(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if package_of(source.path) in USERS:
            continue
        for node in statements(source.tree.body):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, (ast.Expr, ast.For, ast.While, ast.With)) and not is_text:
                yield source.at(node.lineno, f"does {ast.unparse(node)[:60]}")


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a body does, also those under `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            final = node.finalbody if isinstance(node, ast.Try) else []
            yield from statements([*node.body, *node.orelse, *final])
            for handler in handlers:
                yield from statements(handler.body)


def bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr, int, bool]]:
    """Names that a body binds to values, and whether they are annotated as Final."""
    for node in statements(body):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield ast.unparse(target), node.value, node.lineno, False
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value, node.lineno, ast.unparse(node.annotation).startswith("Final")


def is_container(value: ast.expr) -> bool:
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


def last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def changes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names whose value is changed in place somewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield ast.unparse(node.value), node.lineno
        elif isinstance(node, ast.AugAssign):
            yield ast.unparse(node.target), node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            yield ast.unparse(node.func.value), node.lineno


# For each rule, modules that break it, and words of the complaint.
GUILTY: Final[Sequence[tuple[Rule, Mapping[str, str], str]]] = (
    (every_module_is_in_a_known_package, {"_new.py": ""}, "_new.py is in no package"),
    (
        imports_go_downwards,
        {"_model/errors.py": "from .._client.client import X", "_client/client.py": ""},
        "_model imports _client",
    ),
    (
        imports_go_downwards,
        {"_http/pool.py": "def f():\n  from .._spool import writer", "_spool/writer.py": ""},
        "_http imports _spool",
    ),
    (
        imports_go_downwards,
        {
            "_delivery/sender.py": "import typing\nif typing.TYPE_CHECKING:\n  from .._client.client import X",
            "_client/client.py": "",
        },
        "_delivery imports _client",
    ),
    (
        imports_go_downwards,
        {"_client/client.py": "from ..cli import app", "cli/__init__.py": ""},
        "_client imports cli",
    ),
    (imports_go_downwards, {"_client/client.py": "from .nowhere import x"}, "does not exist"),
    (
        no_import_goes_in_a_circle,
        {
            "_delivery/queue.py": "from .callbacks import X",
            "_delivery/callbacks.py": "import mixpanel_async._delivery.queue",
        },
        "mixpanel_async._delivery.queue -> mixpanel_async._delivery.callbacks -> mixpanel_async._delivery.queue",
    ),
    (pure_modules_do_no_io, {"_encoding/records.py": "def f():\n  import time"}, "_encoding/records.py:2 imports time"),
    (pure_modules_do_no_io, {"_encoding/validation.py": "from uuid import UUID, uuid4"}, "imports uuid.uuid4"),
    (pure_modules_do_no_io, {"_model/config.py": "from os import environ"}, "imports os.environ"),
    (pure_modules_do_no_io, {"_delivery/buffer.py": "import threading"}, "imports threading"),
    (pure_modules_do_no_io, {"_delivery/sender.py": "import time"}, "imports time"),
    (pure_modules_do_no_io, {"_http/retry.py": "x = datetime.now(timezone.utc)"}, "reads a clock"),
    (pure_modules_do_no_io, {"_model/errors.py": "print(1)"}, "calls print"),
    (each_library_has_one_owner, {"_delivery/sender.py": "import httpx"}, "_delivery/sender.py:1 imports httpx"),
    (each_library_has_one_owner, {"_delivery/sender.py": "async def f():\n  import trio"}, "imports trio"),
    (each_library_has_one_owner, {"_client/client.py": "import numpy.linalg"}, "imports numpy"),
    (each_library_has_one_owner, {"_delivery/queue.py": "import sqlite3"}, "imports sqlite3"),
    (
        each_library_has_one_owner,
        {"emulator/project/project.py": "from starlette.routing import X"},
        "imports starlette",
    ),
    (no_owner_is_stale, {}, "_http/transport.py does not import httpx"),
    (no_owner_is_stale, {}, "_encoding/validation.py does not import uuid.UUID"),
    (
        extras_are_imported_where_they_are_used,
        {"_runtime/event_loop.py": "try:\n  import trio\nfinally:\n  pass"},
        "trio at its top",
    ),
    (
        users_use_public_names,
        {"cli/demo.py": "from mixpanel_async._client.client import AsyncMixpanel"},
        "imports mixpanel",
    ),
    (users_use_public_names, {"cli/demo.py": "import mixpanel_async._client"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "from .. import _model"}, "imports mixpanel_async._model"),
    (users_use_public_names, {"testing.py": "from .emulator.project.project import Project"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "def f(mp): mp._queue.closed = True"}, "reaches for mp._queue"),
    (
        the_emulator_stands_alone,
        {"emulator/project/ingestion.py": "from ..._encoding.validation import FORBIDDEN_IDS"},
        "imports mixpanel",
    ),
    (
        the_emulator_stands_alone,
        {"emulator/__init__.py": "from mixpanel_async import AsyncMixpanel"},
        "imports mixpanel",
    ),
    (modules_are_small, {"_client/client.py": "\n" * 501}, "_client/client.py has 501 lines"),
    (functions_are_small, {"_client/client.py": "def f():\n  '''d'''\n" + "  pass\n" * 61}, "f has 61 lines"),
    (modules_keep_no_state, {"_client/client.py": "CACHE = {}"}, "CACHE is not Final"),
    (modules_keep_no_state, {"_client/client.py": "try:\n  _ids = count()\nexcept X: pass"}, "_ids is not Final"),
    (modules_keep_no_state, {"_client/client.py": "SEEN: Final = []\ndef f(): SEEN.append(1)"}, "changes SEEN"),
    (modules_keep_no_state, {"_client/client.py": "SEEN: Final = {}\ndef f(): SEEN[1] = 2"}, "changes SEEN"),
    (modules_keep_no_state, {"_client/client.py": "class C:\n  seen: list[int] = []"}, "class C shares seen"),
    (modules_keep_no_state, {"_client/client.py": "def f():\n  global n\n  n = 1"}, "has global n"),
    (modules_do_nothing_when_imported, {"_client/client.py": "'''d'''\natexit.register(f)"}, "does atexit.register(f)"),
)
RULES: Final[Sequence[Rule]] = tuple(dict.fromkeys(rule for rule, _, _ in GUILTY))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    assert len(SOURCES) > 20
    assert list(rule(SOURCES)) == []


@pytest.mark.parametrize(
    ("rule", "files", "words"), GUILTY, ids=[f"{rule.__name__} {number}" for number, (rule, _, _) in enumerate(GUILTY)]
)
def test_the_rule_finds_the_guilty(rule: Rule, files: Mapping[str, str], words: str) -> None:
    complaints = list(rule([Source(path, text) for path, text in files.items()]))
    assert any(words in complaint for complaint in complaints), complaints


def test_names_that_begin_with_an_underscore_are_all_that_is_hidden() -> None:
    """Modules are private unless they are meant to be used."""
    public = {path.name.removesuffix(".py") for path in ROOT.iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert public <= {"cli", "emulator", "flags", "integrations", "testing"}


# The public surface.

# Design, section 2; `SqliteSpool` comes with the spool.
PROMISED: Final = frozenset(
    {
        "ApiError", "AsyncMixpanel", "AuthenticationError", "BatchPolicy", "ClientClosedError", "ConfigurationError",
        "FlushResult", "IdMerge", "IdentityError", "MixpanelException", "Overflow", "PayloadTooLargeError",
        "QueueFullError", "RateLimitError", "RetryPolicy", "ServiceAccountCredentials", "Stats", "TransportError",
        "ValidationError",
    }
)  # fmt: skip


def test_all_is_sorted_and_names_everything_public() -> None:
    given = mixpanel_async.__all__
    assert given == sorted(given)
    (init,) = (source for source in SOURCES if source.path == "__init__.py")
    own = [one.target.rpartition(".")[2] for one in init.imports if one.is_internal]
    bound = own + [name for name, *_ in bindings(init.tree.body)]
    public = {name for name in bound if not name.startswith("_") and name != "VERSION"}
    assert set(given) == public | {"__version__"}
    assert all(hasattr(mixpanel_async, name) for name in given)
    assert set(given) >= PROMISED


# What importing does, seen from inside a child process.

PROBE: Final = """
import json, logging, os, sys, threading

sys.path.insert(0, sys.argv[2])
seen = {"threads": [], "sockets": [], "environment": []}

def audit(event, args):
    if event.startswith("socket."):
        seen["sockets"].append(event)

start = threading.Thread.start

def watched_start(self):
    seen["threads"].append(self.name)
    start(self)

class Watched(type(os.environ)):
    def __getitem__(self, key):
        if key.startswith("MIXPANEL"):
            seen["environment"].append(key)
        return super().__getitem__(key)

import socket
os.environ.__class__ = Watched
threading.Thread.start = watched_start
sys.addaudithook(audit)
# httpx imports rich by itself where that is installed; what counts is what comes on top.
import anyio, httpx, orjson, tenacity
before = set(sys.modules)
__import__(sys.argv[1])
seen["threads"] += [one.name for one in threading.enumerate() if one is not threading.main_thread()]
loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger))]
seen["handlers"] = [one.name for one in loggers if one.handlers]
seen["levels"] = [one.name for one in loggers if one.level != (logging.WARNING if one is logging.root else 0)]
extras = json.loads(sys.argv[3])
seen["extras"] = sorted(name for name in extras if name in sys.modules and name not in before)
print(json.dumps(seen))
"""
EXTRAS: Final = (
    "aiohttp", "fastapi", "isal", "json_logic", "mixpanel", "openfeature", "opentelemetry", "pyarrow", "rich",
    "sqlite3", "starlette", "trio", "typer", "uvicorn", "mixpanel_async.cli", "mixpanel_async.emulator",
    "mixpanel_async.integrations",
)  # fmt: skip
GUILTY_MODULE: Final = """
import logging, os, socket, threading, starlette
threading.Thread(target=print, args=("",), kwargs={"end": ""}).start()
socket.socket().close()
logging.getLogger("somebody").addHandler(logging.NullHandler())
logging.getLogger("somebody").setLevel(logging.ERROR)
os.environ.get("MIXPANEL_TOKEN")
"""


def probe(module: str, folder: Path) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, module, str(folder), json.dumps(EXTRAS)],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, "MIXPANEL_TOKEN": "token", "MIXPANEL_REGION": "eu"},
    )
    assert result.returncode == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


def test_importing_does_nothing(tmp_path: Path) -> None:
    seen = probe("mixpanel_async", tmp_path)
    assert {what for what, traces in seen.items() if traces} == set(), seen


def test_the_probe_sees_a_module_that_does_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "guilty.py").write_text(GUILTY_MODULE)
    seen = probe("guilty", tmp_path)
    assert {what for what, traces in seen.items() if not traces} == set(), seen
