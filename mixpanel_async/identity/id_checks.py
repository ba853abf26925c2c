"""Checks of ids by their text: placeholders, kinds, and variants of one id. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .calls import DEVICE_PREFIX, FORBIDDEN_IDS, is_anonymous

# Texts that languages and templates put in place of a missing value, and ids that all users share, in any letter case.
_PLACEHOLDERS: Final = FORBIDDEN_IDS | frozenset(
    {
        "[object object]", "(null)", "<null>", "(none)", "<none>", "(not set)", "not set", "nan", "void", "empty",
        "unidentified", "no id", "no-id", "no_id", "userid", "user_id", "distinct_id", "device_id", "guest", "visitor",
    }
)  # fmt: skip
# A missing value inside a longer id, such as `user-undefined`, and a template that was not filled.
_CONTAINS_PLACEHOLDER: Final = re.compile(
    r"\[object \w+\]|(?:^|[^a-z])(?:undefined|null|nan)(?:$|[^a-z])|\{\{.*\}\}|\$\{.*\}|%[sd]$|<%.*%>", re.IGNORECASE
)
_REPEATED_CHARACTER: Final = re.compile(r"([0-9a-fA-F])\1*(?:-\1+)*")
_MIN_REPEATED: Final = 8
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


def is_placeholder(text: str) -> bool:
    """Return whether an id is a placeholder for a missing value, such as `undefined` or a UUID of zeros."""
    text = text.removeprefix(DEVICE_PREFIX).strip()
    if not text or text.lower() in _PLACEHOLDERS:
        return True
    is_repeated = text[0] == text[-1] and len(text) >= _MIN_REPEATED and _REPEATED_CHARACTER.fullmatch(text)
    if is_repeated and not text.isdigit():
        return True
    # Any word may be part of the domain of an e-mail address.
    return _CONTAINS_PLACEHOLDER.search(text.partition("@")[0]) is not None


def is_email(text: str) -> bool:
    """Return whether an id has the form of an e-mail address."""
    return "@" in text and _EMAIL.fullmatch(text) is not None


def is_user_id(text: str) -> bool:
    """Return whether an id is neither anonymous, nor a device, nor an e-mail address: an id of a database."""
    return not text.startswith(DEVICE_PREFIX) and not is_anonymous(text) and "@" not in text


def plain_form(text: str) -> str:
    """Return an id without differences in letter case and white space. The ids with one plain form are variants."""
    return " ".join(text.split()).casefold()


def variants(ids: Iterable[str]) -> list[list[str]]:
    """Return the groups of ids that differ in letter case or white space only."""
    seen: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    for one in ids:
        # Numbers as keys take half the memory of texts. Different texts with equal hashes are distinguished.
        plain = plain_form(one)
        other = seen.setdefault(hash(plain), one)
        if other is not one and plain_form(other) == plain:
            groups.setdefault(plain, [other]).append(one)
    return [*groups.values()]
