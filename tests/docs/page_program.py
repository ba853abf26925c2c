"""Program that runs a block of a page: `page_program.py FILE ID_MERGE VISIT REPORT OPTIONS`.

It serves an emulator, to which clients of the real Mixpanel connect, so that nothing leaves the machine. It runs the
file as `python FILE` does, then the code of the visit in the same namespace, which also has `EMULATOR` and `CLIENTS`.
At the end, each client must have delivered all records. A file with tests is run by pytest.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator

TOKEN = "0123456789abcdef0123456789abcdef"
# Only the plugins that the pages use. Others take longer to import than the tests to run.
PYTEST_PLUGINS = ("pytest_asyncio.plugin", "anyio.pytest_plugin", "mixpanel_async_pytest")
PYTEST_OPTIONS = (
    "-q",
    "-p",
    "no:cacheprovider",
    *(option for plugin in PYTEST_PLUGINS for option in ("-p", plugin)),
    "-o",
    "asyncio_default_fixture_loop_scope=function",
)


def run(file: Path) -> dict[str, Any]:
    """Run a file as a program, or its tests, and return its namespace."""
    if "\ndef test_" in (text := file.read_text("utf-8")) or "\nasync def test_" in text:
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        status = pytest.main([*PYTEST_OPTIONS, "--rootdir", str(file.parent), str(file)])
        assert status == 0, f"pytest ended with {status}"
        return {}
    sys.argv = [str(file)]
    try:
        return runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
        return {}


def visit(code: str, namespace: dict[str, Any]) -> None:
    """Run the code of a visit, which may await at the top level."""
    compiled = compile(code, "visits.py", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        asyncio.run(as_coroutine(result))


async def as_coroutine(awaitable: Any) -> None:
    await awaitable


def main() -> None:
    file, id_merge, code, report = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    os.chdir(file.parent)
    sys.path[0] = str(file.parent)
    options = json.loads(sys.argv[5])
    emulator = Emulator(IdMerge(id_merge))
    clients: list[AsyncMixpanel] = []
    init = AsyncMixpanel.__init__
    with emulator.serve() as server:

        @functools.wraps(init)
        def connect(self: AsyncMixpanel, token: str, *arguments: Any, **named: Any) -> None:
            if "http_client" not in named and "outbox" not in named:
                named["api_host"] = named.get("api_host") or server.url
                named.pop("region", None)
            init(self, token, *arguments, **named)
            clients.append(self)

        AsyncMixpanel.__init__ = connect  # type: ignore[method-assign]
        os.environ |= {"MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": server.url, **options["variables"]}
        namespace = run(file)
        visit(code.read_text("utf-8"), {**namespace, "EMULATOR": emulator, "CLIENTS": clients})
        for client in clients:
            stats = client.stats()
            assert stats.pending == 0
            assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain
            losses = {str(reason): number for reason, number in stats.losses.items() if number}
            assert set(losses) <= set(options["losses"]), losses
    modules = [
        name
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", "")).startswith(str(file.parent))
    ]
    sent = len(emulator.requests())
    report.write_text(json.dumps({"clients": len(clients), "requests": sent, "modules": modules}))


main()
