"""Architecture rules, checked on the syntax trees of the package: imports, sizes, state and public names.

Each rule is a function from sources to violations. It must find no violation in the package, and must find the
violation in each of its examples in `VIOLATIONS`, which proves that the rule works.
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
import mixpanel_async.identity
import mixpanel_async.integrations.otel
import mixpanel_async.outbox
import mixpanel_async.types
import mixpanel_async.worker

PACKAGE: Final = "mixpanel_async"
ROOT: Final = Path(mixpanel_async.__file__).parent

# From bottom to top. A package may import packages of lower layers, but not of the same layer.
LAYERS: Final[Sequence[tuple[str, ...]]] = (
    ("_model",),
    ("_runtime",),
    ("_encoding", "identity"),
    ("_http", "_spool", "outbox"),
    ("_delivery",),
    ("flags",),
    ("_client", "worker"),
    ("__init__.py", "types.py"),
)
CORE: Final = tuple(name for layer in LAYERS for name in layer)
# Packages that use only public names. The emulator does not use the client.
USERS: Final = ("cli", "integrations", "testing.py", "_pytest_plugin.py")

# Modules without I/O, clocks and randomness.
PURE: Final = (
    "_model/*.py",
    "_encoding/*.py",
    "_delivery/accounting.py",
    "_delivery/batch.py",
    "_delivery/buffer.py",
    "_delivery/disk_backlog.py",
    "_delivery/lanes.py",
    "_http/retry.py",
    "outbox/counters.py",
    "outbox/erasure.py",
    "outbox/lanes.py",
    "outbox/packing.py",
    "outbox/protocol.py",
    "outbox/redis_keys.py",
    "outbox/redis_scripts.py",
    "flags/definitions.py",
    "flags/evaluate.py",
    "flags/hashing.py",
    "flags/model.py",
    "flags/operators.py",
    "flags/options.py",
    "flags/rules.py",
    "flags/variants.py",
    "identity/*.py",
)

# Files that may import a library. An entry that no file uses is an error; libraries without entry are forbidden.
OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "aiohttp": ("integrations/aiohttp.py",),
    "anyio": (
        "_client/bound.py",
        "_delivery/*.py",
        "_http/*.py",
        "_runtime/*.py",
        "cli/*.py",
        "emulator/http/*.py",
        "flags/poller.py",
        "integrations/openfeature.py",
        "integrations/_tracking_proxy.py",
        "worker/*.py",
    ),
    "asgiref": ("integrations/django/*.py",),
    # The commands and Django run on asyncio.
    "asyncio": (
        "_runtime/event_loop.py",
        "_pytest_plugin.py",
        "cli/importing/reader.py",
        "cli/demo/command.py",
        "emulator/http/connections.py",
        "emulator/http/server.py",
        "emulator/http/tls_transport.py",
        "integrations/django/_loop.py",
    ),
    "backports": ("cli/importing/inputs.py",),
    "celery": ("integrations/celery.py",),
    # Part of the standard library since Python 3.14.
    "compression": ("cli/importing/inputs.py",),
    "certifi": ("_http/certificates.py",),
    "django": ("integrations/django/*.py",),
    "fastapi": ("integrations/fastapi.py",),
    "h11": ("emulator/http/server.py",),
    "httpcore": ("_http/connection.py", "_http/network.py"),
    "httpx": (
        "_http/transport.py",
        "_http/asgi.py",
        "_http/connection.py",
        "_http/proxies.py",
        "cli/identity/download.py",
        "cli/identity/profile_query.py",
        "integrations/_tracking_proxy.py",
    ),
    "isal": ("_encoding/requests.py",),
    "json_logic": ("flags/rules.py",),
    "multiprocessing": ("_runtime/fork.py",),
    "openfeature": ("integrations/openfeature.py",),
    "opentelemetry": ("integrations/otel.py", "cli/metrics.py"),
    "orjson": (
        "_encoding/*.py",
        "_spool/*.py",
        "outbox/packing.py",
        "cli/identity/*.py",
        "cli/importing/*.py",
        "emulator/*.py",
    ),
    "platformdirs": ("emulator/http/tls.py",),
    "prometheus_client": ("cli/metrics.py",),
    "pyarrow": ("cli/importing/parquet_source.py",),
    "pytest": ("_pytest_plugin.py",),
    "rich": ("cli/*.py",),
    # Only the types of its clients in redis.py.
    "redis": ("outbox/redis.py", "outbox/redis_connection.py"),
    "select": ("_http/network.py",),
    "socket": ("_http/network.py", "_http/reasons.py", "emulator/http/server.py"),
    "sqlite3": ("_spool/*.py", "emulator/storage/store.py"),
    "ssl": (
        "_http/certificates.py",
        "_http/connection.py",
        "_http/network.py",
        "_http/reasons.py",
        "_http/transport.py",
        "emulator/http/server.py",
        "emulator/http/tls.py",
        "emulator/http/tls_transport.py",
    ),
    "starlette": (
        "emulator/http/app.py",
        "emulator/http/read_routes.py",
        "emulator/http/routes.py",
        "integrations/starlette.py",
    ),
    "taskiq": ("integrations/taskiq.py",),
    "tenacity": ("_http/api.py",),
    "trustme": ("emulator/http/tls.py",),
    "trio": ("_runtime/event_loop.py",),
    "typer": ("cli/*.py",),
    "typing_extensions": ("_client/*.py", "emulator/__init__.py", "outbox/redis_admin.py", "worker/worker.py"),
    "uvicorn": ("emulator/http/server.py",),
}
# Modules of the standard library that also need an entry in OWNERS.
OWNED_STDLIB: Final = frozenset({"asyncio", "multiprocessing", "select", "selectors", "socket", "sqlite3", "ssl"})

# Forbidden in pure modules.
IMPURE: Final = frozenset(
    {
        "anyio", "asyncio", "concurrent", "httpx", "io", "logging", "multiprocessing", "os", "pathlib", "random",
        "secrets", "select", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "tenacity", "threading", "time",
        "trio", "uuid",
    }
)  # fmt: skip
# Forbidden in the other modules of the core, except in `_runtime`.
CLOCKS_AND_RANDOMNESS: Final = frozenset({"random", "secrets", "time", "uuid"})
IMPURE_BUT_ALLOWED: Final = frozenset(
    {
        ("_runtime/environment.py", "random"),
        ("_runtime/environment.py", "time"),
        # Only the type, to recognise values.
        ("_encoding/normalizer.py", "uuid.UUID"),
        ("_encoding/validation.py", "uuid.UUID"),
    }
)
CLOCK_METHODS: Final = frozenset({"now", "today", "utcnow"})

MAX_MODULE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 60
MAX_ROOT_MODULES: Final = 4
MAX_IMPORT_CHAIN: Final = 14
MAX_WRITES_TO_OTHER_OBJECTS: Final = 17
# The integrations have one public name per framework on purpose.
SAME_NAME_ALLOWED: Final = frozenset({"MixpanelIntegration", "MixpanelMiddleware"})

# Calls whose results are constants without a Final annotation.
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
    """One imported name. `module` and `target` are absolute; `target` includes the imported name, if any."""

    module: str
    target: str
    line: int
    function: str | None
    """Name of the innermost enclosing function."""
    for_types: bool
    """Whether the import is inside `if TYPE_CHECKING`."""

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]

    @property
    def is_internal(self) -> bool:
        return self.root == PACKAGE


@dataclass(frozen=True)
class Source:
    """One module of the package. `path` is relative to the package, with slashes."""

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
    """Return the sub-package of a module, or the file name of a root module."""
    return path.partition("/")[0]


def level_of(package: str) -> int:
    (level,) = (number for number, layer in enumerate(LAYERS) if package in layer)
    return level


def core(sources: Sequence[Source]) -> list[Source]:
    return [source for source in sources if package_of(source.path) in CORE]


def is_pure(source: Source) -> bool:
    return any(fnmatch(source.path, pattern) for pattern in PURE)


def file_of(target: str, modules: Mapping[str, Source]) -> Source | None:
    """Return the module that defines a dotted name."""
    return modules.get(target) or modules.get(target.rpartition(".")[0])


# Rules


def every_module_is_in_a_known_package(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if package_of(source.path) not in {*CORE, *USERS, "emulator"}:
            yield f"{source.path} is in no package listed in LAYERS or USERS"


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


def imports_have_no_cycles(sources: Sequence[Source]) -> Iterator[str]:
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


def libraries_are_imported_by_their_owners(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        for one in source.imports:
            is_free = one.root in sys.stdlib_module_names and one.root not in OWNED_STDLIB
            if one.is_internal or is_free:
                continue
            if not any(fnmatch(source.path, pattern) for pattern in OWNERS.get(one.root, ())):
                yield source.at(one.line, f"imports {one.root}")


def owner_entries_are_used(sources: Sequence[Source]) -> Iterator[str]:
    for library, patterns in OWNERS.items():
        for pattern in patterns:
            mine = [source for source in sources if fnmatch(source.path, pattern)]
            if not any(one.root == library for source in mine for one in source.imports):
                yield f"{pattern} does not import {library}"
    used = {(source.path, one.target) for source in sources for one in source.imports}
    yield from (f"{path} does not import {target}" for path, target in IMPURE_BUT_ALLOWED - used)


def extras_are_imported_lazily(sources: Sequence[Source]) -> Iterator[str]:
    """Optional libraries are imported inside functions, so that `import mixpanel_async` works without them."""
    for source in core(sources):
        for one in source.imports:
            if one.root in {"isal", "json_logic", "redis", "trio"} and one.function is None and not one.for_types:
                yield source.at(one.line, f"imports {one.root} at module level")


def users_use_public_names(sources: Sequence[Source]) -> Iterator[str]:
    public = {
        PACKAGE: mixpanel_async.__all__,
        f"{PACKAGE}.emulator": mixpanel_async.emulator.__all__,
        f"{PACKAGE}.flags": mixpanel_async.flags.__all__,
        f"{PACKAGE}.identity": mixpanel_async.identity.__all__,
        f"{PACKAGE}.integrations.otel": mixpanel_async.integrations.otel.__all__,
        f"{PACKAGE}.outbox": mixpanel_async.outbox.__all__,
        f"{PACKAGE}.types": mixpanel_async.types.__all__,
        f"{PACKAGE}.worker": mixpanel_async.worker.__all__,
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
                yield source.at(node.lineno, f"uses private {ast.unparse(node)}")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def emulator_is_independent(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if package_of(source.path) != "emulator":
            continue
        for one in source.imports:
            if not one.is_internal or (one.module + ".").startswith(f"{PACKAGE}.emulator."):
                continue
            is_enum = one.target == f"{PACKAGE}._model.config.IdMerge"
            is_identity = (one.module + ".").startswith(f"{PACKAGE}.identity.")
            is_annotation = one.for_types and one.module in {PACKAGE, f"{PACKAGE}.types"}
            if not is_enum and not is_identity and not is_annotation and one.function != "client":
                yield source.at(one.line, f"imports {one.target}")


def modules_are_small(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        lines = len(source.text.splitlines())
        if lines > MAX_MODULE_LINES:
            yield f"{source.path} has {lines} lines"


def functions_are_small(sources: Sequence[Source]) -> Iterator[str]:
    """Signature and docstring do not count."""
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


def modules_have_no_import_side_effects(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if package_of(source.path) in USERS:
            continue
        for node in statements(source.tree.body):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, (ast.Expr, ast.For, ast.While, ast.With)) and not is_text:
                yield source.at(node.lineno, f"runs {ast.unparse(node)[:60]}")


def private_attributes_are_defined_in_the_same_file(sources: Sequence[Source]) -> Iterator[str]:
    """Private attributes of other libraries, or of another module's objects, may change without notice."""
    for source in sources:
        nodes = list(ast.walk(source.tree))
        own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and is_self(node.value)}
        own |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
        found: list[tuple[ast.expr, str]] = []
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr not in own:
                found.append((node, node.attr))
            elif isinstance(node, ast.Call) and last_name(node.func) in {"getattr", "hasattr", "setattr"}:
                found += [(node, str(name.value)) for name in node.args[1:2] if isinstance(name, ast.Constant)]
        for expression, name in found:
            if is_private(name):
                yield source.at(expression.lineno, f"uses private {ast.unparse(expression)}")


def class_names_are_unique_in_a_package(sources: Sequence[Source]) -> Iterator[str]:
    places: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault((package_of(source.path), node.name.lstrip("_")), []).append(source.path)
    for (_, name), paths in places.items():
        if len(paths) > 1 and name not in SAME_NAME_ALLOWED:
            yield f"class {name} is defined in {', '.join(paths)}"


def writes_to_other_objects_are_few(sources: Sequence[Source]) -> Iterator[str]:
    """An object that others write to cannot keep its invariants; prefer a method."""
    writes = [source.at(line, f"writes {text}") for source in sources for text, line in foreign_writes(source.tree)]
    if len(writes) > MAX_WRITES_TO_OTHER_OBJECTS:
        yield f"{len(writes)} writes to attributes of other objects"
        yield from writes


def import_chains_are_short(sources: Sequence[Source]) -> Iterator[str]:
    """Count the modules of the longest chain of imports at module level."""
    modules = {source.dotted: source for source in sources}
    chains: dict[str, tuple[str, ...]] = {}

    def chain(name: str, importers: tuple[str, ...]) -> tuple[str, ...]:
        if name not in chains:
            imports = [one for one in modules[name].imports if one.function is None and not one.for_types]
            targets = {target for one in imports for target in (one.module, one.target) if target in modules}
            rest = (chain(target, (*importers, name)) for target in targets - {name, *importers})
            chains[name] = (name, *max(rest, key=len, default=()))
        return chains[name]

    longest = max((chain(name, ()) for name in modules), key=len, default=())
    if len(longest) > MAX_IMPORT_CHAIN:
        yield f"an import chain has {len(longest)} modules: {' -> '.join(longest)}"


def root_has_few_modules(sources: Sequence[Source]) -> Iterator[str]:
    roots = [source.path for source in sources if "/" not in source.path]
    if len(roots) > MAX_ROOT_MODULES:
        yield f"the root has {len(roots)} modules: {', '.join(roots)}"


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def foreign_writes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield assignments to attributes of objects other than `self`, with the line."""
    targets: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets.append(node.target)
    for target in targets:
        for one in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(one, ast.Attribute) and not is_self(one.value):
                yield ast.unparse(one), one.lineno


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, including those nested in `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            final = node.finalbody if isinstance(node, ast.Try) else []
            yield from statements([*node.body, *node.orelse, *final])
            for handler in handlers:
                yield from statements(handler.body)


def bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr, int, bool]]:
    """Yield the names bound in a body: name, value, line, and whether it is annotated as Final."""
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
    """Yield names whose value is modified in place, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield ast.unparse(node.value), node.lineno
        elif isinstance(node, ast.AugAssign):
            yield ast.unparse(node.target), node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            yield ast.unparse(node.func.value), node.lineno


# Rule, modules that violate it, and words of the reported violation.
VIOLATIONS: Final[Sequence[tuple[Rule, Mapping[str, str], str]]] = (
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
        imports_have_no_cycles,
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
    (
        libraries_are_imported_by_their_owners,
        {"_delivery/sender.py": "import httpx"},
        "_delivery/sender.py:1 imports httpx",
    ),
    (libraries_are_imported_by_their_owners, {"_delivery/sender.py": "async def f():\n  import trio"}, "imports trio"),
    (libraries_are_imported_by_their_owners, {"_client/client.py": "import numpy.linalg"}, "imports numpy"),
    (libraries_are_imported_by_their_owners, {"_delivery/queue.py": "import sqlite3"}, "imports sqlite3"),
    (
        libraries_are_imported_by_their_owners,
        {"emulator/project/project.py": "from starlette.routing import X"},
        "imports starlette",
    ),
    (owner_entries_are_used, {}, "_http/transport.py does not import httpx"),
    (owner_entries_are_used, {}, "_encoding/validation.py does not import uuid.UUID"),
    (
        extras_are_imported_lazily,
        {"_runtime/event_loop.py": "try:\n  import trio\nfinally:\n  pass"},
        "trio at module level",
    ),
    (
        users_use_public_names,
        {"cli/demo.py": "from mixpanel_async._client.client import AsyncMixpanel"},
        "imports mixpanel",
    ),
    (users_use_public_names, {"cli/demo.py": "import mixpanel_async._client"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "from .. import _model"}, "imports mixpanel_async._model"),
    (users_use_public_names, {"testing.py": "from .emulator.project.project import Project"}, "imports mixpanel"),
    (users_use_public_names, {"cli/demo.py": "def f(mp): mp._queue.closed = True"}, "uses private mp._queue"),
    (
        emulator_is_independent,
        {"emulator/project/ingestion.py": "from ..._encoding.validation import FORBIDDEN_IDS"},
        "imports mixpanel",
    ),
    (
        emulator_is_independent,
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
    (
        private_attributes_are_defined_in_the_same_file,
        {"_http/pool.py": "def f(loop): return loop._thread_id"},
        "uses private loop._thread_id",
    ),
    (
        private_attributes_are_defined_in_the_same_file,
        {"_http/pool.py": "def f(pool): return hasattr(pool, '_network')"},
        "uses private hasattr(pool, '_network')",
    ),
    (
        class_names_are_unique_in_a_package,
        {"_http/pool.py": "class Line: ...", "_http/connection.py": "class _Line: ..."},
        "class Line is defined in _http/pool.py, _http/connection.py",
    ),
    (
        writes_to_other_objects_are_few,
        {"_delivery/buffer.py": "def f(x):\n" + "  x.a, self.b = 1, 2\n" * (MAX_WRITES_TO_OTHER_OBJECTS + 1)},
        "writes x.a",
    ),
    (
        import_chains_are_short,
        {f"_client/m{at}.py": f"from . import m{at + 1}" for at in range(MAX_IMPORT_CHAIN + 1)},
        f"an import chain has {MAX_IMPORT_CHAIN + 1} modules",
    ),
    (root_has_few_modules, {f"m{at}.py": "" for at in range(MAX_ROOT_MODULES + 1)}, "the root has 5 modules"),
    (
        modules_have_no_import_side_effects,
        {"_client/client.py": "'''d'''\natexit.register(f)"},
        "runs atexit.register(f)",
    ),
)
RULES: Final[Sequence[Rule]] = tuple(dict.fromkeys(rule for rule, _, _ in VIOLATIONS))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_follows(rule: Rule) -> None:
    assert len(SOURCES) > 20
    assert list(rule(SOURCES)) == []


@pytest.mark.parametrize(
    ("rule", "files", "words"),
    VIOLATIONS,
    ids=[f"{rule.__name__} {number}" for number, (rule, _, _) in enumerate(VIOLATIONS)],
)
def test_rule_finds_the_violation(rule: Rule, files: Mapping[str, str], words: str) -> None:
    violations = list(rule([Source(path, text) for path, text in files.items()]))
    assert any(words in violation for violation in violations), violations


def test_only_documented_modules_have_public_names() -> None:
    public = {path.name.removesuffix(".py") for path in ROOT.iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert public <= {"cli", "emulator", "flags", "identity", "integrations", "outbox", "testing", "types", "worker"}


# Public names

# Names that may not disappear.
PROMISED: Final = frozenset(
    {
        "ApiError", "AsyncMixpanel", "AuthenticationError", "BatchPolicy", "ClientClosedError", "ConfigurationError",
        "FlushResult", "IdMerge", "IdentityError", "MixpanelException", "Overflow", "PayloadTooLargeError",
        "QueueFullError", "RateLimitError", "RetryPolicy", "ServiceAccountCredentials", "Stats", "TransportError",
        "ValidationError",
    }
)  # fmt: skip


def test_dunder_all_is_sorted_and_complete() -> None:
    given = mixpanel_async.__all__
    assert given == sorted(given)
    (init,) = (source for source in SOURCES if source.path == "__init__.py")
    own = [one.target.rpartition(".")[2] for one in init.imports if one.is_internal]
    bound = own + [name for name, *_ in bindings(init.tree.body)]
    public = {name for name in bound if not name.startswith("_") and name != "VERSION"}
    assert set(given) == public | {"__version__"}
    assert all(hasattr(mixpanel_async, name) for name in given)
    assert set(given) >= PROMISED


# Side effects of importing, observed in a child process.

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
# Dependencies may import extras themselves: httpx imports rich if it is installed. Count only additional modules.
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
    "aiohttp", "fastapi", "isal", "json_logic", "mixpanel", "openfeature", "opentelemetry", "pyarrow", "redis",
    "rich", "sqlite3", "starlette", "trio", "typer", "uvicorn", "mixpanel_async.cli", "mixpanel_async.emulator",
    "mixpanel_async.integrations",
)  # fmt: skip
MODULE_WITH_SIDE_EFFECTS: Final = """
import logging, os, socket, threading, starlette
threading.Thread(target=print, args=("",), kwargs={"end": ""}).start()
socket.socket().close()
logging.getLogger("other").addHandler(logging.NullHandler())
logging.getLogger("other").setLevel(logging.ERROR)
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
    assert {effect for effect, traces in seen.items() if traces} == set(), seen


def test_probe_detects_every_side_effect(tmp_path: Path) -> None:
    (tmp_path / "effects.py").write_text(MODULE_WITH_SIDE_EFFECTS)
    seen = probe("effects", tmp_path)
    assert {effect for effect, traces in seen.items() if not traces} == set(), seen
