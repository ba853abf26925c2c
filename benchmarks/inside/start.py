"""What an import costs, and what else it brings in."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any, Final

_FOUNDATION: Final = ("httpx", "anyio", "tenacity", "orjson")
_OF_EXTRAS: Final = (
    "isal", "starlette", "uvicorn", "typer", "rich", "fastapi", "aiohttp", "json_logic", "openfeature", "sqlite3",
)  # fmt: skip


def measure(*, whole: bool, asyncio: bool) -> dict[str, Any]:
    """Seconds of CPU to import the package, and the extras that came along.

    Args:
        whole: the package, or only what it stands on.
        asyncio: whether the program has imported asyncio before, as each that uses the package on asyncio has to.
    """
    if asyncio:
        importlib.import_module("asyncio")
    cpu = time.process_time()
    for name in ("mixpanel_async",) if whole else _FOUNDATION:
        importlib.import_module(name)
    cpu = time.process_time() - cpu
    return {"cpu": cpu, "extras": [name for name in _OF_EXTRAS if name in sys.modules]}
