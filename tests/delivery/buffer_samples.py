"""Outcomes, records and helpers for the tests of the buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mixpanel_async._model.errors import FailedRecord
from mixpanel_async._model.outcomes import ConfigurationRefused, PartialFailure, Refused, Retry, SplitBatch
from mixpanel_async._model.records import DropReason, Loss, RecordKind

ORDERED = (RecordKind.PEOPLE, RecordKind.GROUPS)
AGAIN = Retry(message="not now", applied=False, status=503)
UNKNOWN = Retry(message="no answer", applied=True)
REFUSED = Refused(status=406, message="no")
CONFIGURATION_REFUSED = ConfigurationRefused(status=401, message="wrong credentials")
TOO_LARGE = SplitBatch(reason=DropReason.TOO_LARGE, status=413, message="too large")
INVALID = SplitBatch(reason=DropReason.REJECTED, status=400, message="something is wrong")
NONE_ACCEPTED = SplitBatch(reason=DropReason.REJECTED, status=200, message="Mixpanel accepted no record of the request")


def pruned(*indexes: int) -> PartialFailure:
    return PartialFailure(failed=tuple(failure(index) for index in indexes), status=400, message="some failed")


def failure(index: int) -> FailedRecord:
    return FailedRecord(index=index, field=f"properties.p{index}", message=f"m{index}")


def records(count: int, size: int = 8, *, start: int = 0) -> list[bytes]:
    """Return different records of one size."""
    return [b"%0*d" % (size, start + number) for number in range(count)]


def body(items: Iterable[bytes]) -> int:
    """Return the size of the request body of these records."""
    return len(b"[" + b",".join(items) + b"]")


def lost(losses: Sequence[Loss]) -> dict[bytes, DropReason]:
    return {item: loss.reason for loss in losses for item in loss.items}


class SignalCounter:
    """Listener of a queue. Counts its signals."""

    def __init__(self) -> None:
        self.work = self.losses = self.room = self.forks = 0

    def on_work(self) -> None:
        self.work += 1

    def on_losses(self) -> None:
        self.losses += 1

    def on_room(self) -> None:
        self.room += 1

    def on_fork(self) -> None:
        self.forks += 1
