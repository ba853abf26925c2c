"""Modules that an import loads, lazy public names, and the behaviour of value classes."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import mixpanel_async
from mixpanel_async import BatchPolicy, Delivery, FlushResult, RetryPolicy, SqliteSpool, Stats
from mixpanel_async._model.config import ClientOptions

# Top-level modules that were imported before, or that belong to the four dependencies.
CHILD: Final = """
import json, sys
import anyio, httpx, orjson, tenacity
before = set(sys.modules)
{0}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
USE: Final = """
import asyncio
from mixpanel_async import AsyncMixpanel

async def main():
    global before
    # No server listens on this port.
    client = AsyncMixpanel("token", api_host="http://127.0.0.1:9", shutdown_timeout=0.1)
    {0}
    before = set(sys.modules)
    await client.track("ada", "Signed up", {{"plan": "pro"}})
    await client.people_set("ada", {{"plan": "pro"}})
    await client.flush(timeout=0.2)
    await client.aclose()

asyncio.run(main())
"""
LATER: Final = (
    "mixpanel_async._client.checker",
    "mixpanel_async._delivery.spool_bridge",
    "mixpanel_async._spool.spool",
    "mixpanel_async.flags",
)


def loaded(program: str) -> list[str]:
    """Return the modules that a program imports."""
    command = [sys.executable, "-c", CHILD.format(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def within(modules: list[str], *packages: str) -> list[str]:
    return [one for one in modules if any(f"{one}.".startswith(f"{package}.") for package in packages)]


def test_import_excludes_optional_modules() -> None:
    modules = loaded("from mixpanel_async import AsyncMixpanel")
    assert "mixpanel_async._client.client" in modules
    unused = ("sqlite3", "asyncio", "trio", "httpcore", "subprocess", "json_logic", "isal", *LATER)
    assert within(modules, *unused) == []


def test_client_without_spool_and_flags_does_not_import_them() -> None:
    modules = loaded("from mixpanel_async import AsyncMixpanel\nAsyncMixpanel('token')")
    assert within(modules, "sqlite3", *LATER) == []


@pytest.mark.parametrize("begin", ["await client.start()", "pass"])
def test_calls_of_a_plain_client_import_nothing(begin: str) -> None:
    modules = within(loaded(USE.format(begin)), "mixpanel_async")
    # In the thread that creates the pool, which may have loaded only some of them when the client closes.
    created = {f"mixpanel_async._http.{name}" for name in ("certificates", "connection", "network")}
    assert set(modules) <= (set() if "start" in begin else created)


@pytest.mark.parametrize(
    ("program", "packages"),
    [
        ("from mixpanel_async import SqliteSpool\nSqliteSpool('x')", {"mixpanel_async._spool.spool"}),
        ("from mixpanel_async import Checker", {"mixpanel_async._client.checker"}),
        ("from mixpanel_async.flags import LocalFlags", {"mixpanel_async.flags"}),
    ],
)
def test_lazy_name_imports_only_its_own_module(program: str, packages: set[str]) -> None:
    modules = within(loaded(program), *LATER)
    assert {package for package in LATER if within(modules, package)} == packages


def test_every_public_name_is_importable_in_each_way() -> None:
    everything: dict[str, Any] = {}
    exec("from mixpanel_async import *", everything)
    assert set(mixpanel_async.__all__) <= set(everything)
    assert set(mixpanel_async.__all__) <= set(dir(mixpanel_async))
    assert mixpanel_async.SqliteSpool is mixpanel_async.SqliteSpool is SqliteSpool
    help_text = pydoc.plain(pydoc.render_doc(mixpanel_async))
    assert "class SqliteSpool" in help_text
    assert "class Checker" in help_text
    assert pickle.loads(pickle.dumps(SqliteSpool("x"))) == SqliteSpool("x")


def test_missing_name_raises_attribute_error() -> None:
    name = "SqlSpool"
    with pytest.raises(AttributeError, match="module 'mixpanel_async' has no attribute 'SqlSpool'"):
        getattr(mixpanel_async, name)
    with pytest.raises(ImportError, match="cannot import name 'SqlSpool'"):
        exec(f"from mixpanel_async import {name}")


def test_type_checkers_see_exactly_the_lazy_names() -> None:
    """Type checkers accept any name from a module with `__getattr__`, so it is hidden from them."""
    tree = ast.parse(Path(mixpanel_async.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        name.name: f".{node.module}" for node in typed.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    (table,) = (node.value for node in typed.orelse if isinstance(node, ast.AnnAssign) and node.value is not None)
    assert seen == ast.literal_eval(table)
    functions = {node.name for node in typed.orelse if isinstance(node, ast.FunctionDef)}
    assert functions == {"__getattr__", "__dir__"}
    assert not any(isinstance(node, ast.FunctionDef) for node in tree.body)


# Public values


@pytest.mark.parametrize("value", [BatchPolicy(), RetryPolicy(attempts=2), FlushResult(1, 2, 3), Stats(accepted=1)])
def test_values_have_repr_and_equality_of_dataclasses(value: Any) -> None:
    fields = [(one.name, one.type, one) for one in dataclasses.fields(value)]
    twin = dataclasses.make_dataclass(type(value).__qualname__, fields, frozen=True, slots=True)
    given = {name: getattr(value, name) for name, *_ in fields}
    assert repr(value) == repr(twin(**given))
    assert value == copy.copy(value) == pickle.loads(pickle.dumps(value)) == dataclasses.replace(value)
    assert value != twin(**given)
    first = fields[0][0]
    assert value != dataclasses.replace(value, **{first: 7})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, first, 7)


def test_equal_values_have_equal_hashes() -> None:
    assert hash(BatchPolicy()) == hash(BatchPolicy(max_events=2_000)) != hash(BatchPolicy(max_events=7))
    assert len({FlushResult(1, 2, 3), FlushResult(1, 2, 3, {"closed": 2})}) == 1, "losses are not compared"
    # A mapping is not hashable, as in any dataclass with one.
    with pytest.raises(TypeError, match="unhashable"):
        hash(Stats())
    others: list[Any] = [(1, 2, 3), Delivery(kind="events", records=1, body_bytes=2, attempts=1, duration=0.5), Stats()]
    assert all(FlushResult(1, 2, 3) != other for other in others)


def test_repr_of_a_value_omits_secret_fields() -> None:
    policy = RetryPolicy(attempts=1)
    options = ClientOptions(
        token="canary", credentials=None, region="us", api_host=None, allow_http=False, id_merge=None,
        batching=BatchPolicy(), retry=policy, identity_retry=policy, overflow=mixpanel_async.Overflow.RAISE,
        events_endpoint="auto", timeout=1.0, shutdown_timeout=1.0, loop_end_timeout=1.0,
    )  # fmt: skip
    assert repr(options).startswith("ClientOptions(credentials=None, region='us', ")
    assert "canary" not in repr(options)
