"""Encoding of one message as JSON."""

from __future__ import annotations

from typing import Any

import orjson

from .._model.errors import ValidationError
from .._model.records import Record
from .size_check import MAX_RECORD_BYTES, exceeds
from .validation import Normalizer


def encode_message(message: dict[str, Any], normalizer: Normalizer) -> bytes:
    """Encode a message as JSON.

    orjson does not name the value that it rejects, and is not given a message that is far too large. The normalizer
    then converts the message, or raises with its path.
    """
    try:
        data = b"" if exceeds(message, MAX_RECORD_BYTES) else orjson.dumps(message)
    except TypeError:
        data = b""
    if not data:
        data = orjson.dumps(normalizer.mapping(message, ""))
    if len(data) >= MAX_RECORD_BYTES:
        path = "properties" if "properties" in message else "message"
        raise ValidationError(
            path, f"has {len(data)} bytes as JSON; Mixpanel accepts less than {MAX_RECORD_BYTES} per record"
        )
    # The bytes that orjson returns may keep a whole memory page allocated. A copy takes only its own size.
    return Record(memoryview(data))
