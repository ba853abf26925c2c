"""Text of servers and libraries, made fit for messages."""

from __future__ import annotations

import re
from typing import Final

# A URL, or a path with a query. Not compiled here: few processes need it.
_URL: Final = r"""[^\s"'<>]*(?:://|\?[^\s"'<>]*=)[^\s"'<>]*"""


def mask_urls(text: str) -> str:
    """Replace URLs, and paths with a query, which may name a person."""
    return re.sub(_URL, "***", text)


def one_line(text: str, length: int) -> str:
    """Return at most this many characters of a text on one printable line."""
    return "".join(char if char.isprintable() else " " for char in text[:length])
