"""Log lines for operators about failing requests and lost records, one for each episode.

The text is our own, because a server's message could repeat a payload.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from .._encoding.clock import ClockNotice, ClockState
from .._model.errors import count_of
from .._model.outcomes import ConfigurationRefused, Delivered, Outcome, Retry
from .._model.records import DROPPED, DropReason, Loss, RecordKind
from .._runtime.log_events import log_event

# Seconds after which a failure that lasts, or occurs again, may be logged again.
_REPEAT_AFTER: Final = 20.0
# Losses that the application or its operator asked for. They are counted and passed to `on_drop`.
DELIBERATE: Final = frozenset({DropReason.BEFORE_SEND, DropReason.PURGED})
_HOUR: Final = 3_600.0
_DAY: Final = 86_400.0


class EpisodeLog:
    """Logs the first failed request of each kind, and the next one only after a success and some time.

    Args:
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.failures: dict[tuple[RecordKind, int | None], float] = {}
        """Failures that were logged and have not ended, with the time of the log line."""

    def request_succeeded(self, kind: RecordKind) -> None:
        """End the episodes of this kind that are old enough."""
        now = self._monotonic()
        for key in [key for key, at in self.failures.items() if key[0] is kind and now - at >= _REPEAT_AFTER]:
            del self.failures[key]

    def request_failed(self, kind: RecordKind, outcome: Outcome, records: int) -> None:
        """Log a failed request, unless the same failure was logged in this episode."""
        assert not isinstance(outcome, Delivered)
        if (kind, outcome.status) in self.failures:
            return
        self.failures[kind, outcome.status] = self._monotonic()
        name, status, cause, batch = kind.value, outcome.status, cause_of(outcome), count_of(records, "record")
        if isinstance(outcome, ConfigurationRefused):
            text, options = "%s: batch of %s refused (%s) and kept; check %s", "credentials, region and api_host"
            options = "the outbox" if status is None else options
            log_event(
                logging.ERROR, "configuration_refused", text, name, batch, cause, options,
                kind=name, status=status, records=records,
            )  # fmt: skip
        elif isinstance(outcome, Retry):
            text = "%s: batch of %s failed (%s); retryable records will be resent"
            log_event(
                logging.WARNING, "retry_scheduled", text, name, batch, cause,
                kind=name, status=status, records=records,
            )  # fmt: skip
        else:
            text = "%s: records were rejected in a batch of %d (%s)"
            log_event(
                logging.WARNING, "records_rejected", text, name, records, cause,
                kind=name, status=status, records=records,
            )  # fmt: skip


class LossLog:
    """Logs lost records with their number, kind and reason.

    The first loss of an episode is logged at once. Later ones are added up until 20 seconds have passed or the client
    closes, so that every loss is part of the number in some line. Methods may be called from any thread.

    Args:
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # Reentrant: a signal handler may lose a record while this thread holds the lock.
        self._lock = threading.RLock()
        self._entries: dict[tuple[RecordKind, DropReason], _Entry] = {}
        self._is_incomplete = False

    def lost(self, losses: Iterable[Loss]) -> None:
        """Count losses, and log those that begin an episode."""
        with self._lock:
            for loss in losses:
                if loss.reason not in DELIBERATE and (count := len(loss.items) + loss.count_only):
                    self._entries.setdefault((loss.kind, loss.reason), _Entry()).add(count)
                    self._is_incomplete = True
        self.log_due()

    def log_due(self, *, is_last: bool = False) -> None:
        """Log the losses since the last line of their episode, if that is old enough.

        Args:
            is_last: log the younger ones, too: the client closes.
        """
        if not self._is_incomplete:
            return
        now = self._monotonic()
        lines: list[tuple[RecordKind, DropReason, int, int]] = []
        with self._lock:
            for (kind, reason), entry in self._entries.items():
                if entry.unlogged and (is_last or now - entry.logged_at >= _REPEAT_AFTER):
                    # Before the line: a log handler that tracks an event may lose it, and call this method again.
                    lines.append((kind, reason, entry.take(now), entry.total))
            self._is_incomplete = any(entry.unlogged for entry in self._entries.values())
        for kind, reason, records, total in lines:
            if reason in DROPPED:
                log_event(
                    logging.WARNING, "records_dropped", "%s: %s dropped (%s), %d so far",
                    kind.value, count_of(records, "record"), reason.value, total,
                    kind=kind.value, reason=reason.value, records=records, total=total,
                )  # fmt: skip
            else:
                log_event(
                    logging.WARNING, "records_lost", "%s: %s lost (%s), %d so far",
                    kind.value, count_of(records, "record"), reason.value, total,
                    kind=kind.value, reason=reason.value, records=records, total=total,
                )  # fmt: skip


class SignInLog:
    """Logs errors that `sign_in` does not raise, one line of each kind within 20 seconds.

    Args:
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._logged_at: dict[bool, float] = {}

    def failed(self, error: Exception, *, is_final: bool) -> None:
        """Log an error.

        Args:
            error: error of the identity call.
            is_final: the queue did not accept the identity event, or the event that was tracked with it.
        """
        now = self._monotonic()
        if now - self._logged_at.get(is_final, -inf) < _REPEAT_AFTER:
            return
        # Before the line: a log handler may call this method again.
        self._logged_at[is_final] = now
        status = getattr(error, "status", None)
        cause = type(error).__name__ if status is None else f"HTTP {status}"
        if is_final:
            text = "sign_in: the queue did not accept the identity event or the event after it (%s)"
            log_event(logging.ERROR, "sign_in_failed", text, cause, status=status)
        else:
            text = "sign_in: Mixpanel did not accept the identity call (%s); it is queued and sent later"
            log_event(logging.WARNING, "identity_deferred", text, cause, status=status)


def log_loop_ended(records: int, fate: str | None, error: str | None, *, is_dropped: bool) -> None:
    """Log that an event loop ended before all records were delivered.

    Args:
        records: number of the records that were not.
        fate: what becomes of them in a spool, such as `wait in the spool`; None without a spool.
        error: last error of a request.
        is_dropped: the client was garbage-collected.
    """
    they, wait, are = ("it", "waits", "is") if records == 1 else ("they", "wait", "are")
    if fate is None:
        lost = f"{are} lost, because the client was dropped without aclose()"
        fate = lost if is_dropped else f"{wait} for the next event loop"
    text = "the event loop ended before %s delivered; %s %s; last error: %s"
    left = count_of(records, "record was", "records were")
    log_event(logging.WARNING, "loop_ended", text, left, they, fate, error, records=records, error=error)


@dataclass(slots=True)
class _Entry:
    """Losses of one kind for one reason."""

    total: int = 0
    unlogged: int = 0
    logged_at: float = -inf

    def add(self, count: int) -> None:
        self.total += count
        self.unlogged += count

    def take(self, now: float) -> int:
        """Return the number of unlogged losses, which are logged now."""
        count, self.unlogged, self.logged_at = self.unlogged, 0, now
        return count


def cause_of(outcome: Outcome) -> str:
    """Return the reason of an outcome without the server's words."""
    if isinstance(outcome, Delivered):
        return "HTTP 200"
    return f"HTTP {outcome.status}" if outcome.status is not None else outcome.message


def log_clock(notice: ClockNotice) -> None:
    """Log a notice about the local clock."""
    state, ahead = notice.state, notice.ahead
    args: tuple[str, ...] = (_duration(abs(ahead)), "ahead of" if ahead > 0 else "behind")
    if state is ClockState.CORRECTED:
        text = "this machine's clock is %s %s Mixpanel's; new events get the time of Mixpanel's clock"
    elif state is ClockState.BEYOND_CORRECTION:
        text = "this machine's clock is %s %s Mixpanel's, which is too much to correct times of events; set the clock"
    else:
        text, args = "the times in Mixpanel's responses contradict each other, so none is used; check api_host", ()
    log_event(logging.WARNING, "clock_wrong", text, *args, state=state.value, seconds=round(ahead, 3))


def _duration(seconds: float) -> str:
    if seconds < 2 * _HOUR:
        return f"{seconds:.0f} s"
    return f"{seconds / _HOUR:.1f} hours" if seconds < 2 * _DAY else f"{seconds / _DAY:.1f} days"
