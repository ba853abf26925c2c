"""Start section: cost of the import, and extras it loads."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any, Final

from ..child import peak_bytes

_FOUNDATION: Final = ("httpx", "anyio", "tenacity", "orjson")
_OF_EXTRAS: Final = (
    "isal", "starlette", "uvicorn", "typer", "rich", "fastapi", "aiohttp", "json_logic", "openfeature", "sqlite3",
)  # fmt: skip


def measure(*, whole: bool, asyncio: bool) -> dict[str, Any]:
    """Return seconds of CPU to import the package and access its client, peak memory, and loaded extras.

    `bare` is the time of the import alone; lazily imported names appear in the difference.

    Args:
        whole: True imports the package, False only its dependencies.
        asyncio: whether to import asyncio first, as every program that uses the package on asyncio does.
    """
    if asyncio:
        importlib.import_module("asyncio")
    cpu = time.process_time()
    modules = [importlib.import_module(name) for name in (("mixpanel_async",) if whole else _FOUNDATION)]
    bare = time.process_time() - cpu
    if whole:
        modules[0].AsyncMixpanel  # noqa: B018  accessed by `from mixpanel_async import AsyncMixpanel`
    cpu = time.process_time() - cpu
    return {
        "cpu": cpu,
        "bare": bare,
        "peak": peak_bytes(),
        "extras": [name for name in _OF_EXTRAS if name in sys.modules],
    }
