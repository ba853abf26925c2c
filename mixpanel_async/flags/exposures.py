"""Telling Mixpanel that a person was shown a variant: an ordinary event, through the client's own queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from .._model.errors import MixpanelException
from .metrics import FlagMetrics
from .model import SelectedVariant

EVENT: Final = "$experiment_started"
_REMEMBERED: Final = 50_000

Track = Callable[[str, str, Mapping[str, Any]], None]
_Exposure = tuple[str, str | None, str]


class Exposures:
    """Reports exposures, and never fails.

    Args:
        track: queues an event; raises if it cannot.
        mode: `local` or `remote`, as Mixpanel's reports tell them apart.
        window: seconds in which the same exposure is reported once; 0 reports each.
        tally: counts them.
        monotonic: seconds from an arbitrary start.
    """

    def __init__(
        self, track: Track, *, mode: str, window: float, tally: FlagMetrics, monotonic: Callable[[], float]
    ) -> None:
        self._track = track
        self._mode = mode
        self._window = window
        self._tally = tally
        self._monotonic = monotonic
        # Two generations instead of a queue to expire from: single operations on a dict need no lock.
        self._recent: dict[_Exposure, float] = {}
        self._older: dict[_Exposure, float] = {}
        self._since = monotonic()
        self._here = threading.local()

    def report(
        self, flag_key: str, variant: SelectedVariant, context: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        """Queue the event.

        Args:
            flag_key: name of the flag.
            variant: that was shown.
            context: of the person; without a `distinct_id` that is text or a whole number nothing can be reported.
            timing: further properties: how long the evaluation took.
        """
        if getattr(self._here, "is_reporting", False):
            # `before_send` evaluates a flag: the exposure of that would come through `before_send` again.
            return
        self._here.is_reporting = True
        try:
            self._report(flag_key, variant, context, timing)
        except Exception as error:  # noqa: BLE001  an evaluation must not fail because of what is said about it
            self._lose(str(error) if isinstance(error, MixpanelException) else type(error).__name__)
        finally:
            self._here.is_reporting = False

    def _report(
        self, flag_key: str, variant: SelectedVariant, context: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        distinct_id = context.get("distinct_id")
        if not distinct_id:
            self._lose("the context has no distinct_id")
            return
        if type(distinct_id) is int:
            # The official SDK sends the number. As text it is the person whom `str(user.id)` tracks.
            distinct_id = str(distinct_id)
        elif not isinstance(distinct_id, str):
            self._lose(f"properties.distinct_id: must be a string, not {type(distinct_id).__name__}")
            return
        exposure = (flag_key, variant.variant_key, distinct_id)
        now = self._monotonic()
        if self._window and self._is_repeated(exposure, now):
            self._tally.exposures_repeated += 1
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
        self._tally.exposures += 1
        self._tally.record_recovery("exposure")
        if self._window:
            self._remember(exposure, now)

    def _lose(self, words: str) -> None:
        self._tally.exposures_lost += 1
        text = f"an exposure could not be tracked ({words})"
        self._tally.record_failure("exposure", text, "flags: an exposure could not be tracked (%s)", words)

    def _is_repeated(self, exposure: _Exposure, now: float) -> bool:
        at = self._recent.get(exposure)
        if at is None:
            at = self._older.get(exposure)
        return at is not None and now - at < self._window

    def _remember(self, exposure: _Exposure, now: float) -> None:
        if now - self._since >= self._window or len(self._recent) >= _REMEMBERED:
            self._older, self._recent, self._since = self._recent, {}, now
        self._recent[exposure] = now


class Reporting:
    """A provider, as far as it reports exposures.

    Args:
        exposures: reports them.
    """

    def __init__(self, exposures: Exposures) -> None:
        self._exposures = exposures

    def track_exposure_event(self, flag_key: str, variant: SelectedVariant, context: Mapping[str, Any]) -> None:
        """Track that a person was shown a variant, as after `get_all_variants`. It never raises, and does not wait.

        Args:
            flag_key: name of the flag.
            variant: that was shown.
            context: of the person, with a `distinct_id`.
        """
        self._exposures.report(flag_key, variant, context, {})
