"""What goes wrong with the requests to an emulator, as its user asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..project.ingestion import ENDPOINTS
from .app import EmulatorState
from .faults import TRANSIENT, Fault, FaultKind, RandomFaults, retry_after_text


class FaultControls:
    """Failures on demand.

    Args:
        state: of the application.
    """

    def __init__(self, state: EmulatorState) -> None:
        self._state = state

    @property
    def latency(self) -> float:
        """Seconds before each answer, 0 at first. The request has taken effect by then.

        Raises:
            ValueError: if set to a number below 0 or above a day's 86,400.
        """
        return self._state.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        if not 0 <= seconds <= 86_400:
            raise ValueError("latency must be a number of seconds from 0 to 86,400")
        self._state.latency = seconds

    def fail_next(
        self,
        status: int = 503,
        times: int = 1,
        retry_after: float | str | None = None,
        path: str | None = None,
        body: bytes | None = None,
        *,
        apply: bool = False,
    ) -> None:
        """Make the next requests fail.

        Args:
            status: HTTP status of the answer, 200 to 599.
            times: how many requests fail, at least 1.
            retry_after: value of `Retry-After`: seconds, or a text such as a date; None for no such header.
            path: only requests to this endpoint, such as `/import` or `/flags`; None for any.
            body: body of the answer; None for the one that Mixpanel documents for the status.
            apply: store the records first and fail then, as when the answer of a true Mixpanel is lost on its way.

        Raises:
            ValueError: if a value is out of bounds.
        """
        header = retry_after_text(retry_after)
        fault = Fault(status=status, path=path, retry_after=header, body=body, apply=apply)
        with self._state.lock:
            self._state.faults.add(fault, times)

    def drop_connections(self, n: int = 1, *, path: str | None = None, apply: bool = False) -> None:
        """Close the connections of the next requests without an answer.

        Args:
            n: how many requests, at least 1.
            path: only requests to this endpoint; None for any.
            apply: store the records first.

        Raises:
            ValueError: if a value is out of bounds.
        """
        with self._state.lock:
            self._state.faults.add(Fault(kind="drop", path=path, apply=apply), n)

    def break_next(
        self,
        kind: FaultKind,
        times: int = 1,
        path: str | None = None,
        *,
        apply: bool = False,
        seconds: float = 1.0,
        before: bool = False,
        rate: float = 100.0,
        indexes: Iterable[int] = (0,),
        location: str = "http://127.0.0.1:9/",
    ) -> None:
        """Make the next requests go wrong in a way that a status alone does not show.

        What goes wrong on a socket goes wrong in-process, too: a broken connection is an error that comes out of the
        application, which the client of `client()` takes for what it stands for.

        Args:
            kind: what goes wrong.

                - `drop`: the connection is closed without an answer.
                - `hang`: no answer comes until the client gives up. In-process, somebody must: plain httpx does not.
                - `half`: the head and half of the body, then the connection is closed.
                - `slow`: the true answer after `seconds`.
                - `drip`: the true answer, its body at `rate` bytes per second.
                - `partial`: the records at `indexes` are refused as invalid, the others taken.
                - `html`: status 200 and a sign-in page, as from a captive portal.
                - `type`: the true answer under a wrong content type.
                - `zero`: status 200 and the body `0`.
                - `empty`: status 200 and no body.
                - `truncated`: status 200 and half of a JSON body, complete as far as HTTP can tell.
                - `redirect`: status 307 to `location`.
                - `status`: status 503; `fail_next` has the choice.
            times: how many requests, at least 1.
            path: only requests to this endpoint; None for any.
            apply: store the records first, so that only the answer is lost. `slow`, `drip`, `partial` and `type` give
                the true answer and always store them.
            seconds: of `slow`.
            before: of `slow`: wait before the records are stored, and not after. A client on a socket that gives up
                in the meantime does not stop them.
            rate: of `drip`, in bytes per second.
            indexes: of `partial`, counted from 0; those beyond the batch have no effect.
            location: of `redirect`.

        Raises:
            ValueError: if a value is out of bounds.
        """
        fault = Fault(
            kind=kind,
            path=path,
            apply=apply,
            seconds=seconds,
            before=before,
            rate=rate,
            indexes=frozenset(indexes),
            location=location,
        )
        with self._state.lock:
            self._state.faults.add(fault, times)

    def random_faults(
        self,
        seed: int | str,
        rate: float = 0.2,
        *,
        kinds: Sequence[FaultKind] = TRANSIENT,
        paths: Sequence[str] = ENDPOINTS,
        seconds: float = 0.05,
    ) -> None:
        """Make requests go wrong at random, the same way for the same seed, until `stop_faults`.

        What the n-th request to an endpoint meets depends on the arguments and on n alone, counted from this call, so
        that a run is repeated by its seed however requests to several endpoints interleave. In half of the cases where
        that makes a difference, the request takes effect first. A failure asked for by `fail_next` and its like goes
        first, and counts.

            for seed in range(200):
                emulator.reset()
                emulator.random_faults(seed, rate=0.3, kinds=[*TRANSIENT, "hang"])

        Args:
            seed: a number or a text.
            rate: share of requests that go wrong, 0 to 1.
            kinds: as of `break_next`; `status` is one of 429, 500, 502, 503 and 504. By default `TRANSIENT`: those
                after which a client that repeats what was not confirmed has lost nothing. `hang` is another, if the
                client gives up soon enough; `partial` and `zero` refuse records for good.
            paths: endpoints where requests go wrong; by default those that take records.
            seconds: how long `slow` and `drip` last at most, above 0.

        Raises:
            ValueError: if a value is out of bounds.
        """
        faults = RandomFaults(seed=seed, rate=rate, kinds=tuple(kinds), paths=tuple(paths), seconds=seconds)
        with self._state.lock:
            self._state.faults.set_random(faults)

    def stop_faults(self) -> None:
        """Forget the failures still planned, random ones included. `latency` stays."""
        with self._state.lock:
            self._state.faults.clear()
