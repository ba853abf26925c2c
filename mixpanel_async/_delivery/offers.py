"""Result of offering a record to the buffer."""

from __future__ import annotations

from enum import Enum


class OfferResult(Enum):
    """Result of an offered record."""

    ACCEPTED = "accepted"
    WAKE_SENDER = "wake_sender"
    """Accepted, and the sender has to look at the buffer."""
    FULL = "full"
