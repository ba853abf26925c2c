"""Static files of the live page, which are in this directory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

from ..project.responses import EmulatorResponse

INDEX: Final = "index.html"

_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No content from other origins, no inline code, and no embedding in frames.
_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)


def page_names() -> list[str]:
    """Return the names of the files of the page."""
    return sorted(file.name for file in files(__package__).iterdir() if _suffix(file.name) in _TYPES)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix


def page_file(name: str) -> EmulatorResponse:
    """Return the response to `GET /<name>`.

    Args:
        name: one of `page_names`.
    """
    body = (files(__package__) / name).read_bytes()
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return EmulatorResponse(status=200, body=body, media_type=_TYPES[_suffix(name)], headers=headers)
