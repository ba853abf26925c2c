"""What an import costs, and what else it brings in."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any, Final

_FOUNDATION: Final = ("httpx", "anyio", "tenacity", "orjson")
_OF_EXTRAS: Final = (
    "isal", "starlette", "uvicorn", "typer", "rich", "fastapi", "aiohttp", "json_logic", "openfeature", "sqlite3", "trio",
)  # fmt: skip


def measure(*, whole: bool) -> dict[str, Any]:
    """Seconds of CPU to import the package, or with `whole=False` what it stands on; and the extras that came along."""
    cpu = time.process_time()
    for name in ("mixpanel_async",) if whole else _FOUNDATION:
        importlib.import_module(name)
    cpu = time.process_time() - cpu
    return {"cpu": cpu, "extras": [name for name in _OF_EXTRAS if name in sys.modules]}
