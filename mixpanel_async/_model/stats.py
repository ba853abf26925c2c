"""Values shown to users: statistics, flush results, deliveries and lost records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRecord:
    """One record that was not delivered.

    Args:
        kind: `events`, `imports`, `people`, `groups` or `identity`.
        payload: the message without the project token. None if records were lost faster than `on_drop` could handle
            them and only their number was kept, or if the record cannot be written as JSON, as with the reason
            `invalid`.
        field: path of the invalid property, if Mixpanel named one or the reason is `invalid`.
        message: Mixpanel's message, or the client's if the reason is `invalid`; else an empty string.
    """

    kind: str
    payload: Mapping[str, Any] | None
    field: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request that Mixpanel accepted, or one hand-over that the outbox took, passed to `on_delivered`.

    Args:
        kind: `events`, `imports`, `people`, `groups` or `identity`. A request with events and deferred identity events
            counts as `events`.
        records: number of records delivered.
        body_bytes: uncompressed size of its body.
        attempts: number of requests made for these records, including this one.
        duration: seconds from the start of the request, or of the hand-over, to its end.
    """

    kind: str
    records: int
    body_bytes: int
    attempts: int
    duration: float


@dataclass(frozen=True, slots=True)
class FlushResult:
    """Results of the records that `flush()` or `aclose()` covered.

    Args:
        delivered: number accepted by Mixpanel; with an outbox, the number that it took.
        failed: number not delivered for any reason: those that `Stats` counts as failed, dropped or uncertain.
        pending: number still waiting when the timeout expired.
        losses: number of `failed` records by the value of their `DropReason`; not compared.
        last_error: if records are still waiting, or were dropped because the client closed, the message of the last
            error; None if there was none. Not compared.
    """

    delivered: int
    failed: int
    pending: int
    losses: Mapping[str, int] = field(default_factory=dict, compare=False)
    last_error: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagStats:
    """Statistics of feature flags since the client was created.

    Args:
        ready: whether there are definitions for local evaluation.
        definitions: number of flags in them.
        age: seconds since Mixpanel last returned valid definitions; None if it never did.
        polls: number of requests for definitions.
        updates: number of responses that changed the definitions.
        failures: number of polls without valid definitions; the last valid ones stay in use.
        refused: number of malformed definitions in the last valid response; earlier versions of these flags stay.
        remote_requests: number of requests for remote evaluation, including second attempts.
        remote_failures: number of remote evaluations without a valid response; the caller received its fallback.
        undecidable: number of local evaluations that failed; the caller received its fallback.
        exposures: number of exposure events added to the queue.
        exposures_repeated: number of exposures skipped because the same was reported within the window.
        exposures_lost: number of exposures that could not be tracked, because `distinct_id` is neither text nor a whole
            number, the queue is full or the client is closed.
        last_error: message of the last error; None if there was no error.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityStats:
    """Statistics of `alias`, `identify` and `merge` since the client was created.

    Args:
        succeeded: number of awaited calls that Mixpanel accepted.
        failed: number of awaited calls that raised after they were sent.
        deferred: number of calls whose event was put into the queue.
        delivered: number of queued identity events that Mixpanel accepted, including those recovered from a spool.
        lost: number of queued identity events that were not delivered. `on_drop` received them.
    """

    succeeded: int = 0
    failed: int = 0
    deferred: int = 0
    delivered: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Snapshot of the counters. At every moment `accepted == delivered + failed + dropped + uncertain + pending`.

    Args:
        accepted: records accepted since the client was created, including those recovered from a spool.
        delivered: records accepted by Mixpanel; with an outbox, those that it took, whatever becomes of them there.
        failed: records refused by Mixpanel, or out of attempts.
        dropped: records that the client gave up: the queue was full, `before_send` refused them, their data was invalid
            (only with `invalid="drop"`), or `aclose()` ran out of time. Only the last may have been sent.
        uncertain: records sent once without a conclusive response that are not safe to send again. With an outbox,
            those that it may have.
        pending: records waiting or in flight, in memory or on disk.
        pending_bytes: encoded size of the pending records.
        on_disk: part of `pending` that is only on disk.
        oldest_age: seconds since the oldest pending record was accepted; 0 if none is pending. For records that were
            read from a spool, the time of the first record of their batch counts, which may be older.
        spool_bytes: bytes in use in the spool file, by all of its clients and its dead letters; 0 without a spool.
        dead_letters: number of dead letters in the spool file, as of the last seconds; 0 without a spool.
        recovered: part of `accepted` that came from a spool: left by a process that ended, or restored by
            `mixpanel-async spool retry`.
        in_flight: requests in flight.
        requests: requests started, including identity calls, and hand-overs to an outbox.
        retries: part of `requests` that repeated an earlier one.
        losses: number of records by the value of their `DropReason`.
        last_error: message of the last error; None if there was no error. It stays after a recovery: use `pending` and
            `oldest_age` for a health check.
        identity: statistics of identity calls. Deferred ones are also counted as records.
        flags: statistics of feature flags; None without them. Their requests are not counted in `requests`.
    """

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    uncertain: int = 0
    pending: int = 0
    pending_bytes: int = 0
    on_disk: int = 0
    oldest_age: float = 0.0
    spool_bytes: int = 0
    dead_letters: int = 0
    recovered: int = 0
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    losses: Mapping[str, int] = field(default_factory=dict)
    last_error: str | None = None
    identity: IdentityStats = IdentityStats()
    flags: FlagStats | None = None
