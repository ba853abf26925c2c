"""Values shown to users: statistics, flush results, deliveries and lost records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .value import Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LostRecord(Value):
    """One record that was not delivered.

    Args:
        kind: `events`, `imports`, `people` or `groups`.
        payload: the message as it would have been sent, without the project token; None if so many records were lost
            faster than `on_drop` could take them that only their number was kept.
        field: path of the property that Mixpanel objected to, if it named one.
        message: Mixpanel's words, or an empty string.
    """

    kind: str
    payload: Mapping[str, Any] | None
    field: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Delivery(Value):
    """One request that Mixpanel took, as `on_delivered` is told of it.

    Args:
        kind: `events`, `imports`, `people` or `groups`.
        records: how many records it delivered.
        body_bytes: uncompressed size of its body.
        attempts: requests that these records took, this one included.
        duration: seconds from its start to the end of the answer.
    """

    kind: str
    records: int
    body_bytes: int
    attempts: int
    duration: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FlushResult(Value):
    """What became of the records that `flush()` or `aclose()` covered.

    Args:
        delivered: taken by Mixpanel.
        failed: ended without delivery, for whatever reason: what `Stats` counts as failed, dropped or uncertain.
        pending: still waiting when the time was up.
        losses: the `failed` ones by the value of their `DropReason`; not compared.
    """

    delivered: int
    failed: int
    pending: int
    losses: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FlagStats(Value):
    """What became of feature flags since the client was made.

    Args:
        ready: whether there are definitions to evaluate locally.
        definitions: flags among them.
        age: seconds since Mixpanel last said, in a usable answer, what they are; None if it never did.
        polls: times that definitions were asked for.
        updates: answers that changed them.
        failures: answers without usable definitions, or none at all; the last good ones stay.
        refused: definitions in the last usable answer that are malformed; earlier versions of these flags stay.
        remote_requests: requests for remote evaluation, second tries included.
        remote_failures: remote evaluations without a usable answer; the caller got its fallback.
        undecidable: local evaluations that failed; the caller got its fallback.
        exposures: exposure events handed to the queue.
        exposures_repeated: exposures left out because the same was reported within the window.
        exposures_lost: exposures that could not be tracked: without a `distinct_id` that is text or a whole number, no
            room, client closed.
        last_error: what went wrong last, in words; None if nothing has.
    """

    ready: bool = False
    definitions: int = 0
    age: float | None = None
    polls: int = 0
    updates: int = 0
    failures: int = 0
    refused: int = 0
    remote_requests: int = 0
    remote_failures: int = 0
    undecidable: int = 0
    exposures: int = 0
    exposures_repeated: int = 0
    exposures_lost: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Stats(Value):
    """A snapshot. At every moment `accepted == delivered + failed + dropped + uncertain + pending`.

    Args:
        accepted: records taken from the caller since the client was made, and those taken over from a spool.
        delivered: taken by Mixpanel.
        failed: refused by Mixpanel, or out of attempts.
        dropped: never sent: no room in the queue, refused by `before_send`, or left over at `aclose()`.
        uncertain: sent once with no telling answer, and not safe to send again.
        pending: waiting or in flight, in memory or on disk.
        pending_bytes: encoded size of the pending records.
        on_disk: the part of `pending` that waits on disk alone.
        recovered: the part of `accepted` that was taken over from a spool: left there by a process that ended, or put
            back by `mixpanel-async spool retry`.
        in_flight: requests under way.
        requests: requests begun, identity calls included.
        retries: the part of `requests` that repeated an earlier one.
        losses: number of records by the value of their `DropReason`.
        last_error: what went wrong last, in words; None if nothing has.
        flags: of feature flags; None without them. Their requests are counted there and not in `requests`.
    """

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    uncertain: int = 0
    pending: int = 0
    pending_bytes: int = 0
    on_disk: int = 0
    recovered: int = 0
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    losses: Mapping[str, int] = field(default_factory=dict)
    last_error: str | None = None
    flags: FlagStats | None = None
