"""Run over the calls of a plan: sends the remaining calls, in order for each person, and stops cleanly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from ...importing.progress import Display, WorkProgress
from ...importing.signals import SignalCounter
from .calls import Call, can_repeat
from .journal import CallState, Entry, Journal
from .pace import FailureBound, Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mixpanel_async import AsyncMixpanel

    from .plan_file import Plan
    from .sender import CallSender

_SUPERVISE_INTERVAL: Final = 0.1
_OPEN: Final = frozenset({CallState.STARTED, CallState.UNCERTAIN})

Task = tuple[int, Call]
"""Number of a call, from 1, and the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyLimits:
    """Limits of a run.

    Args:
        rate: maximum number of calls per second.
        concurrency: maximum number of calls in flight.
        limit: maximum number of calls in this run; None for all.
        max_failures: share of failed calls above which the run stops, from 0 to 1.
        repeat_uncertain: repeat calls that may have been applied, also if the repetition leaves a trace.
    """

    rate: float
    concurrency: int
    limit: int | None
    max_failures: float
    repeat_uncertain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """Calls of a plan that are left, given its journal.

    Args:
        groups: the calls to send, by person.
        accepted: number of calls that were accepted by earlier runs.
        uncertain: numbers of calls that may have been applied and are not repeated.
        waiting: number of calls of the same people, which come after these.
    """

    groups: Sequence[Sequence[Task]]
    accepted: int
    uncertain: Sequence[int]
    waiting: int

    @property
    def count(self) -> int:
        return sum(map(len, self.groups))

    def limited(self, limit: int | None) -> Sequence[Sequence[Task]]:
        """Return the first calls, at most `limit`."""
        if limit is None:
            return self.groups
        groups: list[Sequence[Task]] = []
        for group in self.groups:
            if limit <= 0:
                break
            groups.append(group[:limit])
            limit -= len(group)
        return groups


def remaining_calls(plan: Plan, entries: Mapping[int, Entry], *, repeat_uncertain: bool) -> Remaining:
    """Return the calls that are left.

    A call that failed was not applied, and is sent again. One that may have been applied is sent again if that leaves
    no trace, or on demand; otherwise, the later calls of the person wait.
    """
    groups: list[Sequence[Task]] = []
    uncertain: list[int] = []
    number = accepted = waiting = 0
    for group in plan.groups:
        tasks: list[Task] = []
        is_blocked = False
        for pair in group:
            number += 1
            state = entries[number].state if number in entries else None
            if state is CallState.ACCEPTED:
                accepted += 1
            elif is_blocked:
                waiting += 1
            elif state in _OPEN and not (repeat_uncertain or can_repeat(plan.id_merge, pair.call.kind)):
                uncertain.append(number)
                is_blocked = True
            else:
                tasks.append((number, pair.call))
        if tasks:
            groups.append(tasks)
    return Remaining(groups=groups, accepted=accepted, uncertain=uncertain, waiting=waiting)


class ApplyRun:
    """Run over the calls that are left.

    Args:
        remaining: the calls.
        journal: journal of the plan, which is open.
        limits: limits of the run.
        display: shows progress.
        signals: counts the signals that ask the run to stop. The first one lets calls in flight end.
    """

    def __init__(
        self,
        remaining: Remaining,
        journal: Journal,
        *,
        limits: ApplyLimits,
        display: Display,
        signals: SignalCounter,
    ) -> None:
        self._remaining = remaining
        self._journal = journal
        self._limits = limits
        self._display = display
        self._signals = signals
        groups = remaining.limited(limits.limit)
        self._groups: Iterator[Sequence[Task]] = iter(groups)
        self._count = sum(map(len, groups))
        self._pace = Pace(limits.rate)
        self._bound = FailureBound(limits.max_failures)
        self.accepted = 0
        """Number of calls that Mixpanel accepted in this run."""
        self.failure: str | None = None
        """Reason why the run stopped early; None if it did not, or only because of a signal."""

    async def run(self, client: AsyncMixpanel, sender: CallSender) -> None:
        """Send the calls, until all are sent or the run is stopped."""
        stop = anyio.Event()
        async with client, self._supervised(stop), anyio.create_task_group() as workers:
            for _ in range(self._limits.concurrency):
                workers.start_soon(self._work, sender, stop)
        self._show(last=True)

    @asynccontextmanager
    async def _supervised(self, stop: anyio.Event) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._supervise, tasks.cancel_scope, stop)
            yield
            tasks.cancel_scope.cancel()

    async def _supervise(self, scope: anyio.CancelScope, stop: anyio.Event) -> None:
        while self._signals.count < 2:
            await anyio.sleep(_SUPERVISE_INTERVAL)
            if self._is_stopped:
                stop.set()
            self._show()
        # A call that is cut stays `started` in the journal.
        scope.cancel()

    async def _work(self, sender: CallSender, stop: anyio.Event) -> None:
        for group in self._groups:
            for number, call in group:
                with anyio.move_on_after(self._pace.reserve(monotonic())):
                    await stop.wait()
                if self._is_stopped or not await self._send(number, call, sender):
                    break
            if self._is_stopped:
                return

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return bool(self._signals.count)

    @property
    def _is_stopped(self) -> bool:
        return self.is_interrupted or self.failure is not None

    async def _send(self, number: int, call: Call, sender: CallSender) -> bool:
        """Send a call, with its lines in the journal. Return whether the next call of the person may follow."""
        try:
            self._journal.write(number, CallState.STARTED)
            result = await sender.send(call)
            self._journal.write(number, result.state, result.reason)
        except OSError as error:
            self.failure = f"cannot write {self._journal.path}: {error.strerror or error}"
            return False
        if result.is_fatal:
            self.failure = f"{result.reason}. Fix the credentials"
        self._count_call(result.state)
        return result.state is CallState.ACCEPTED

    def _count_call(self, state: CallState) -> None:
        self.accepted += state is CallState.ACCEPTED
        self._bound.add(failed=state is not CallState.ACCEPTED)
        if self._bound.is_exceeded and self.failure is None:
            self.failure = (
                f"{self._bound.failures} of {self._bound.calls} calls failed, more than --max-failures "
                f"{self._limits.max_failures:g} allows"
            )

    def _show(self, *, last: bool = False) -> None:
        progress = WorkProgress(
            records=self.accepted, rejected=self._bound.failures, done=self._bound.calls, total=self._count
        )
        self._display.show(progress, last=last)
