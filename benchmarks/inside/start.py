"""What an import costs, and what else it brings in."""

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
    """Seconds of CPU to import the package and to have its client, the peak of memory, and the extras that came along.

    `bare` are the seconds of the import alone: names that it left for later would show in the difference.

    Args:
        whole: the package, or only what it stands on.
        asyncio: whether the program has imported asyncio before, as each that uses the package on asyncio has to.
    """
    if asyncio:
        importlib.import_module("asyncio")
    cpu = time.process_time()
    modules = [importlib.import_module(name) for name in (("mixpanel_async",) if whole else _FOUNDATION)]
    bare = time.process_time() - cpu
    if whole:
        modules[0].AsyncMixpanel  # noqa: B018  what `from mixpanel_async import AsyncMixpanel` does
    cpu = time.process_time() - cpu
    return {
        "cpu": cpu,
        "bare": bare,
        "peak": peak_bytes(),
        "extras": [name for name in _OF_EXTRAS if name in sys.modules],
    }
