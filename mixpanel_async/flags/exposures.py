"""Exposure events: a user was shown a variant. They are ordinary events and go through the client's queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from .._model.errors import MixpanelException
from .metrics import FlagMetrics
from .model import SelectedVariant

EVENT: Final = "$experiment_started"
_MAX_REMEMBERED: Final = 50_000

Track = Callable[[str, str, Mapping[str, Any]], None]
_Exposure = tuple[str, str | None, str]


class Exposures:
    """Reports exposures. It never raises.

    Args:
        track: enqueues an event, and raises if it cannot.
        mode: `local` or `remote`; a property of the event.
        window: seconds during which the same exposure is reported once; 0 reports each.
        metrics: counters and log.
        monotonic: returns seconds from an arbitrary start.
    """

    def __init__(
        self, track: Track, *, mode: str, window: float, metrics: FlagMetrics, monotonic: Callable[[], float]
    ) -> None:
        self._track = track
        self._mode = mode
        self._window = window
        self._metrics = metrics
        self._monotonic = monotonic
        # Two generations instead of expiring single entries: single operations on a dict need no lock.
        self._recent: dict[_Exposure, float] = {}
        self._older: dict[_Exposure, float] = {}
        self._recent_since = monotonic()
        self._thread = threading.local()

    def report(
        self, flag_key: str, variant: SelectedVariant, context: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        """Enqueue the event.

        Args:
            flag_key: name of the flag.
            variant: the variant that was shown.
            context: of the user. Without a `distinct_id` that is a string or an integer, nothing is reported.
            timing: further properties, for the duration of the evaluation.
        """
        if getattr(self._thread, "is_reporting", False):
            # `before_send` evaluates a flag. Its exposure would call `before_send` again, without end.
            return
        self._thread.is_reporting = True
        try:
            self._report(flag_key, variant, context, timing)
        except Exception as error:  # noqa: BLE001  an evaluation must not fail because its exposure cannot be tracked
            self._lost(str(error) if isinstance(error, MixpanelException) else type(error).__name__)
        finally:
            self._thread.is_reporting = False

    def _report(
        self, flag_key: str, variant: SelectedVariant, context: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        distinct_id = context.get("distinct_id")
        if not distinct_id:
            self._lost("the context has no distinct_id")
            return
        if type(distinct_id) is int:
            # The official SDK sends the number. As a string it belongs to the user that `str(user.id)` tracks.
            distinct_id = str(distinct_id)
        elif not isinstance(distinct_id, str):
            self._lost(f"distinct_id: must be a string, not {type(distinct_id).__name__}")
            return
        exposure = (flag_key, variant.variant_key, distinct_id)
        now = self._monotonic()
        if self._window and self._is_repeated(exposure, now):
            self._metrics.count_repeated_exposure()
            return
        properties = {
            "Experiment name": flag_key,
            "Variant name": variant.variant_key,
            "$experiment_type": "feature_flag",
            "Flag evaluation mode": self._mode,
            "$experiment_id": variant.experiment_id,
            "$is_experiment_active": variant.is_experiment_active,
            "$is_qa_tester": variant.is_qa_tester,
            **timing,
        }
        self._track(distinct_id, EVENT, properties)
        self._metrics.count_exposure()
        self._metrics.record_recovery("exposure")
        if self._window:
            self._remember(exposure, now)

    def _lost(self, problem: str) -> None:
        self._metrics.count_lost_exposure()
        text = f"an exposure could not be tracked ({problem})"
        self._metrics.record_failure("exposure", text, "flags: an exposure could not be tracked (%s)", problem)

    def _is_repeated(self, exposure: _Exposure, now: float) -> bool:
        at = self._recent.get(exposure)
        if at is None:
            at = self._older.get(exposure)
        return at is not None and now - at < self._window

    def _remember(self, exposure: _Exposure, now: float) -> None:
        if now - self._recent_since >= self._window or len(self._recent) >= _MAX_REMEMBERED:
            self._older, self._recent, self._recent_since = self._recent, {}, now
        self._recent[exposure] = now


class ExposureMethods:
    """Base class of both providers: the method that reports an exposure.

    Args:
        exposures: reports exposures.
    """

    def __init__(self, exposures: Exposures) -> None:
        self._exposures = exposures

    def track_exposure_event(self, flag_key: str, variant: SelectedVariant, context: Mapping[str, Any]) -> None:
        """Track that a user was shown a variant, for example after `get_all_variants`.

        It never raises and never waits.

        Args:
            flag_key: name of the flag.
            variant: the variant that was shown.
            context: of the user, with a `distinct_id`.
        """
        self._exposures.report(flag_key, variant, context, {})
