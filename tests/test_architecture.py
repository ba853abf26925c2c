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

# Imports go from a later layer to an earlier one, or stay within their own.
LAYERS: Final[Mapping[str, tuple[str, ...]]] = {
    "vocabulary": ("_records.py", "_config.py", "_credentials.py", "_errors.py", "_runtime.py", "_value.py"),
    "core": (
        "_wire/*.py",
        "_parcel.py",
        "_lanes.py",
        "_ledger.py",
        "_backlog.py",
        "_buffer.py",
        "_retry.py",
        "flags/definitions.py",
        "flags/evaluate.py",
        "flags/hashing.py",
        "flags/model.py",
        "flags/operators.py",
        "flags/options.py",
        "flags/rules.py",
        "flags/wire.py",
    ),
    "shell": (
        "_stage.py",
        "_queue.py",
        "_durable.py",
        "_logbook.py",
        "_hooks.py",
        "_host.py",
        "_threads.py",
        "_network.py",
        "_pool.py",
        "_transport.py",
        "_courier.py",
        "_sender.py",
        "_attempts.py",
        "_spool/*.py",
        "flags/__init__.py",
        "flags/exposures.py",
        "flags/local.py",
        "flags/poller.py",
        "flags/providers.py",
        "flags/remote.py",
        "flags/tally.py",
    ),
    "client": (
        "_core.py",
        "_wiring.py",
        "_tracking.py",
        "_identity.py",
        "_profiles.py",
        "_bound.py",
        "_checker.py",
        "_client.py",
        "__init__.py",
    ),
}
# Stand beside the client and use its public names, but for the emulator, which uses none.
OUTSIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "emulator": ("emulator/*.py",),
    "users": ("cli/*.py", "integrations/*.py", "testing.py", "_pytest_plugin.py"),
}

# Files that may import a library; each must, or the entry is stale. What is missing here nobody may import.
OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "aiohttp": ("integrations/aiohttp.py",),
    "anyio": (
        "_*.py",
        "cli/*.py",
        "emulator/app.py",
        "emulator/delivery.py",
        "emulator/export.py",
        "emulator/routes.py",
        "emulator/server.py",
        "emulator/stream.py",
        "flags/poller.py",
        "integrations/openfeature.py",
    ),
    # The command is a program of its own, and runs on asyncio.
    "asyncio": ("_host.py", "_pytest_plugin.py", "cli/_reader.py", "cli/demo.py", "emulator/server.py"),
    "backports": ("cli/_inputs.py",),
    # From Python 3.14 on, of the standard library.
    "compression": ("cli/_inputs.py",),
    "fastapi": ("integrations/fastapi.py",),
    "h11": ("emulator/server.py",),
    "httpcore": ("_network.py",),
    "httpx": ("_transport.py", "_network.py"),
    "isal": ("_wire/encode.py",),
    "json_logic": ("flags/rules.py",),
    "openfeature": ("integrations/openfeature.py",),
    "opentelemetry": ("integrations/otel.py",),
    "orjson": ("_wire/*.py", "_hooks.py", "_spool/*.py", "cli/_*.py", "emulator/*.py"),
    "pyarrow": ("cli/_parquet.py",),
    "pytest": ("_pytest_plugin.py",),
    "rich": ("cli/*.py",),
    "select": ("_network.py",),
    "socket": ("_network.py", "emulator/server.py"),
    "sqlite3": ("_spool/*.py", "emulator/store.py"),
    "ssl": ("_network.py", "_transport.py"),
    "starlette": ("emulator/app.py", "emulator/routes.py", "integrations/starlette.py"),
    "tenacity": ("_attempts.py",),
    "trio": ("_host.py",),
    "typer": ("cli/*.py",),
    "typing_extensions": ("_client.py",),
    "uvicorn": ("emulator/server.py",),
}
# Of the standard library these have owners, too.
OWNED_STDLIB: Final = frozenset({"asyncio", "multiprocessing", "select", "selectors", "socket", "sqlite3", "ssl"})

# What the core and the vocabulary may not import: anything that waits, talks, remembers or guesses.
IMPURE: Final = frozenset(
    {
        "anyio", "asyncio", "concurrent", "httpx", "io", "logging", "multiprocessing", "os", "pathlib", "random",
        "secrets", "select", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "tenacity", "threading", "time",
        "trio", "uuid",
    }
)  # fmt: skip
# In the shell and the client, only the first of these may be read, and by `_runtime` alone.
CLOCKS_AND_CHANCE: Final = frozenset({"random", "secrets", "time", "uuid"})
IMPURE_BUT_ALLOWED: Final = frozenset(
    {
        ("_runtime.py", "os"),
        ("_runtime.py", "random"),
        ("_runtime.py", "time"),
        # The type, to know a value of it; no id is made there.
        ("_wire/values.py", "uuid.UUID"),
    }
)
CLOCK_METHODS: Final = frozenset({"now", "today", "utcnow"})

MAX_MODULE_LINES: Final = 400
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


def places(path: str) -> list[str]:
    return [name for name, patterns in {**LAYERS, **OUTSIDE}.items() if any(fnmatch(path, one) for one in patterns)]


def place(source: Source) -> str:
    (name,) = places(source.path)
    return name


def within(sources: Sequence[Source], *names: str) -> list[Source]:
    return [source for source in sources if places(source.path) in [[name] for name in names]]


def file_of(target: str, modules: Mapping[str, Source]) -> Source | None:
    """The module that a dotted target lies in; a name that is no module belongs to the package that gives it."""
    return modules.get(target) or modules.get(target.rpartition(".")[0])


# The rules.


def every_module_has_a_place(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if len(places(source.path)) != 1:
            yield f"{source.path} is in {places(source.path) or 'no layer'}"


def imports_go_one_way(sources: Sequence[Source]) -> Iterator[str]:
    order = list(LAYERS)
    modules = {source.dotted: source for source in sources}
    for source in within(sources, *LAYERS):
        own = place(source)
        for one in source.imports:
            if not one.is_internal:
                continue
            found = file_of(one.target, modules)
            if found is None:
                yield source.at(one.line, f"imports {one.target}, which is not there")
            elif place(found) not in order or order.index(place(found)) > order.index(own):
                yield source.at(one.line, f"is {own} and imports {place(found)}: {one.target}")


def no_import_goes_in_a_circle(sources: Sequence[Source]) -> Iterator[str]:
    modules = {source.dotted: source for source in sources}
    edges: dict[str, set[str]] = {}
    for source in within(sources, *LAYERS):
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


def the_core_is_pure(sources: Sequence[Source]) -> Iterator[str]:
    for source in within(sources, *LAYERS):
        banned = IMPURE if place(source) in {"vocabulary", "core"} else CLOCKS_AND_CHANCE
        for one in source.imports:
            if one.root in banned and (source.path, one.target) not in IMPURE_BUT_ALLOWED:
                yield source.at(one.line, f"imports {one.target}")
    for source in within(sources, "vocabulary", "core"):
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
    for source in within(sources, *LAYERS):
        for one in source.imports:
            if one.root in {"isal", "json_logic", "trio"} and one.function is None:
                yield source.at(one.line, f"imports {one.root} at its top")


def users_use_public_names(sources: Sequence[Source]) -> Iterator[str]:
    public = {
        PACKAGE: mixpanel_async.__all__,
        f"{PACKAGE}.emulator": mixpanel_async.emulator.__all__,
        f"{PACKAGE}.flags": mixpanel_async.flags.__all__,
    }
    for source in within(sources, "users"):
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
    for source in within(sources, "emulator"):
        for one in source.imports:
            if not one.is_internal or (one.module + ".").startswith(f"{PACKAGE}.emulator."):
                continue
            is_enum = one.target == f"{PACKAGE}._config.IdMerge"
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
    for source in within(sources, *LAYERS, "emulator"):
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
    (every_module_has_a_place, {"_new.py": ""}, "_new.py is in no layer"),
    (imports_go_one_way, {"_errors.py": "from ._client import X", "_client.py": ""}, "vocabulary and imports client"),
    (
        imports_go_one_way,
        {"_buffer.py": "def f():\n  from . import _sender", "_sender.py": ""},
        "core and imports shell",
    ),
    (imports_go_one_way, {"_wire/a.py": "from .._queue import X", "_queue.py": ""}, "core and imports shell"),
    (
        imports_go_one_way,
        {"_sender.py": "import typing\nif typing.TYPE_CHECKING:\n  from ._client import X", "_client.py": ""},
        "shell and imports client",
    ),
    (imports_go_one_way, {"_client.py": "from .cli import app", "cli/__init__.py": ""}, "client and imports users"),
    (imports_go_one_way, {"_client.py": "from .nowhere import x"}, "not there"),
    (
        no_import_goes_in_a_circle,
        {"_queue.py": "from ._hooks import X", "_hooks.py": "import mixpanel_async._queue"},
        "mixpanel_async._queue -> mixpanel_async._hooks -> mixpanel_async._queue",
    ),
    (the_core_is_pure, {"_wire/build.py": "def f():\n  import time"}, "_wire/build.py:2 imports time"),
    (the_core_is_pure, {"_wire/values.py": "from uuid import UUID, uuid4"}, "imports uuid.uuid4"),
    (the_core_is_pure, {"_config.py": "from os import environ"}, "imports os.environ"),
    (the_core_is_pure, {"_runtime.py": "import threading"}, "imports threading"),
    (the_core_is_pure, {"_sender.py": "import time"}, "imports time"),
    (the_core_is_pure, {"_retry.py": "x = datetime.now(timezone.utc)"}, "reads a clock"),
    (the_core_is_pure, {"_errors.py": "print(1)"}, "calls print"),
    (each_library_has_one_owner, {"_sender.py": "import httpx"}, "_sender.py:1 imports httpx"),
    (each_library_has_one_owner, {"_sender.py": "async def f():\n  import trio"}, "imports trio"),
    (each_library_has_one_owner, {"_client.py": "import numpy.linalg"}, "imports numpy"),
    (each_library_has_one_owner, {"_queue.py": "import sqlite3"}, "imports sqlite3"),
    (each_library_has_one_owner, {"emulator/project.py": "from starlette.routing import X"}, "imports starlette"),
    (no_owner_is_stale, {}, "_transport.py does not import httpx"),
    (no_owner_is_stale, {}, "_wire/values.py does not import uuid.UUID"),
    (extras_are_imported_where_they_are_used, {"_host.py": "try:\n  import trio\nfinally:\n  pass"}, "trio at its top"),
    (users_use_public_names, {"cli/demo.py": "from mixpanel_async._client import AsyncMixpanel"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "import mixpanel_async._client"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "from .. import _config"}, "imports mixpanel_async._config"),
    (users_use_public_names, {"testing.py": "from .emulator.project import Project"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "def f(mp): mp._queue.closed = True"}, "reaches for mp._queue"),
    (the_emulator_stands_alone, {"emulator/ingest.py": "from .._wire.values import FORBIDDEN_IDS"}, "imports mixpanel"),
    (
        the_emulator_stands_alone,
        {"emulator/__init__.py": "from mixpanel_async import AsyncMixpanel"},
        "imports mixpanel",
    ),
    (modules_are_small, {"_client.py": "\n" * 401}, "_client.py has 401 lines"),
    (functions_are_small, {"_client.py": "def f():\n  '''d'''\n" + "  pass\n" * 61}, "f has 61 lines"),
    (modules_keep_no_state, {"_client.py": "CACHE = {}"}, "CACHE is not Final"),
    (modules_keep_no_state, {"_client.py": "try:\n  _ids = count()\nexcept X: pass"}, "_ids is not Final"),
    (modules_keep_no_state, {"_client.py": "SEEN: Final = []\ndef f(): SEEN.append(1)"}, "changes SEEN"),
    (modules_keep_no_state, {"_client.py": "SEEN: Final = {}\ndef f(): SEEN[1] = 2"}, "changes SEEN"),
    (modules_keep_no_state, {"_client.py": "class C:\n  seen: list[int] = []"}, "class C shares seen"),
    (modules_keep_no_state, {"_client.py": "def f():\n  global n\n  n = 1"}, "has global n"),
    (modules_do_nothing_when_imported, {"_client.py": "'''d'''\natexit.register(f)"}, "does atexit.register(f)"),
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
