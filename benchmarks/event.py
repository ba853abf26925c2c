"""The event that every subject sends: about 420 bytes of JSON including the properties that SDKs add."""

from __future__ import annotations

from typing import Any, Final

NAME: Final = "Checkout Completed"
TOKEN: Final = "0123456789abcdef0123456789abcdef"


def distinct_id(number: int) -> str:
    """Return one of a thousand user ids."""
    return f"user-{number % 1000:04d}"


def properties(number: int) -> dict[str, Any]:
    """Return a new dict with seven properties: strings, numbers, a boolean and a list."""
    return {
        "order": f"A-{number:07d}",
        "amount": 19.99 + number % 50,
        "items": ["notebook", "pencil"],
        "quantity": 1 + number % 7,
        "currency": "EUR",
        "returning": number % 2 == 0,
        "referrer": "https://shop.example.com/autumn-sale?utm_source=mail",
    }
