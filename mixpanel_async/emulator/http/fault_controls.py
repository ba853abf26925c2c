"""Public interface of planned faults: the methods of `Emulator` that make requests fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..project.ingestion import ENDPOINTS
from .app import EmulatorState
from .faults import TRANSIENT, Fault, FaultKind, RandomFaults, retry_after_text


class FaultControls:
    """Methods that make requests to the emulator fail or slow down.

    Args:
        state: state of the application.
    """

    def __init__(self, state: EmulatorState) -> None:
        self._state = state

    @property
    def latency(self) -> float:
        """Delay in seconds before each response, 0 to 86,400; 0 by default. Requests take effect before the delay.

        Raises:
            ValueError: if set to a value out of bounds.
        """
        return self._state.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        if not 0 <= seconds <= 86_400:
            raise ValueError(f"latency must be between 0 and 86,400 seconds, not {seconds}")
        self._state.latency = seconds

    def set_clock_error(self, seconds: float) -> None:
        """Let the emulator's clock be ahead, or behind.

            emulator.set_clock_error(-7_200)

        The clock decides which events are too old, and a server of `serve()` sends it as `Date`. For a client, that is
        as if its own clock were wrong by the same number of seconds in the other direction.

        Args:
            seconds: seconds that the clock is ahead, negative if it is behind, at most 100 years; 0 ends the error.

        Raises:
            ValueError: if the value is out of bounds.
        """
        self._state.now.set_error(seconds)

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
        """Make the next requests fail with an HTTP status.

        Example:
            ```python
            from mixpanel_async import RetryPolicy
            from mixpanel_async.emulator import Emulator

            emulator = Emulator()
            emulator.fail_next(503, times=2)
            with emulator.client(retry=RetryPolicy(initial=0.01)).in_thread() as mp:
                mp.track("user-1", "Order placed")
            assert [request.status for request in emulator.requests()] == [503, 503, 200]
            ```

        Args:
            status: HTTP status of the response, 200 to 599, except 204, 205 and 304.
            times: number of requests that fail, at least 1.
            retry_after: value of `Retry-After`: a number of seconds, or text such as a date. None sends no such header.
            path: endpoint whose requests fail, such as `/import` or `/flags`; None for any.
            body: body of the response; None for the one that Mixpanel documents for the status.
            apply: store the records before the request fails, as if the response of Mixpanel were lost.

        Raises:
            ValueError: if a value is out of bounds.
        """
        header = retry_after_text(retry_after)
        fault = Fault(status=status, path=path, retry_after=header, body=body, apply=apply)
        with self._state.lock:
            self._state.faults.add(fault, times)

    def drop_connections(self, n: int = 1, *, path: str | None = None, apply: bool = False) -> None:
        """Close the connections of the next requests without a response.

        Args:
            n: number of requests, at least 1.
            path: endpoint whose requests fail; None for any.
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
        """Make the next requests fail in other ways than with an HTTP status.

            emulator.break_next("slow", seconds=0.2)

        Faults work on a socket and in-process. In-process, the application raises an error for a broken connection,
        which a client of `client()` handles like a connection error.

        Args:
            kind: kind of fault.

                - `drop`: the connection is closed without a response.
                - `hang`: no response is sent until the client disconnects. In-process, the client needs its own
                  timeout, which plain httpx does not apply there.
                - `half`: the response head and half of the body are sent, then the connection is closed.
                - `slow`: the true response after `seconds`.
                - `drip`: the true response, with the body at `rate` bytes per second.
                - `partial`: the records at `indexes` are refused as invalid, and the others are accepted.
                - `html`: status 200 and a sign-in page, as from a captive portal.
                - `type`: the true response with a wrong content type.
                - `zero`: status 200 and the body `0`.
                - `empty`: status 200 and no body.
                - `truncated`: status 200 and half of a JSON body, with a matching content length.
                - `redirect`: status 307 to `location`.
                - `status`: status 503. Use `fail_next` for other statuses.
            times: number of requests, at least 1.
            path: endpoint whose requests fail; None for any.
            apply: store the records first, so that only the response is lost. `slow`, `drip`, `partial` and `type`
                always store the records.
            seconds: for `slow`: delay in seconds, at least 0.
            before: for `slow`: wait before the records are stored, instead of after. The records are stored even if the
                client disconnects during the delay.
            rate: for `drip`: bytes per second, above 0.
            indexes: for `partial`: indexes of the refused records, from 0. Indexes beyond the batch have no effect.
            location: for `redirect`: target URL.

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
        """Make random requests fail, reproducibly for the same seed, until `stop_faults`.

        The fault of the n-th request to an endpoint, counted from this call, depends only on n and the arguments. The
        seed therefore reproduces a run even if requests to several endpoints interleave. Where both are possible, half
        of the failing requests take effect. Faults of `fail_next`, `break_next` and `drop_connections` come first, and
        their requests are counted too.

        Example:
            ```python
            from mixpanel_async import RetryPolicy
            from mixpanel_async.emulator import TRANSIENT, Emulator

            emulator = Emulator()
            for seed in range(3):
                emulator.reset()
                emulator.random_faults(seed, rate=0.3, kinds=TRANSIENT)
                with emulator.client(retry=RetryPolicy(initial=0.01)).in_thread() as mp:
                    mp.track("user-1", "Order placed")
                assert len(emulator.events("Order placed")) == 1
            ```

        Args:
            seed: an integer or a string.
            rate: share of requests that fail, 0 to 1.
            kinds: kinds of `break_next`. `status` uses 429, 500, 502, 503 or 504. The default `TRANSIENT` contains the
                kinds from which a client recovers by repeating unconfirmed requests, without loss. A client with a
                short timeout also recovers from `hang`. `partial` and `zero` refuse records permanently.
            paths: endpoints whose requests fail; by default the endpoints for records.
            seconds: maximum duration of `slow` and `drip` in seconds, at least 0.001.

        Raises:
            ValueError: if a value is out of bounds.
        """
        faults = RandomFaults(seed=seed, rate=rate, kinds=tuple(kinds), paths=tuple(paths), seconds=seconds)
        with self._state.lock:
            self._state.faults.set_random(faults)

    def stop_faults(self) -> None:
        """Remove all planned faults, random ones included. `latency` is not changed."""
        with self._state.lock:
            self._state.faults.clear()
