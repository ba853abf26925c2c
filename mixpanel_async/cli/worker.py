"""Command `mixpanel-async worker`: deliver what producers have put into an outbox."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import sys
import time
from datetime import datetime, timezone
from os import _exit as end_process
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn
from urllib.parse import urlsplit

import anyio
import typer

from mixpanel_async import ConfigurationError, OutboxError

from . import require
from .importing.signals import SignalCounter
from .metrics import reporting

if TYPE_CHECKING:
    from mixpanel_async.outbox import Outbox
    from mixpanel_async.worker import Worker, WorkerStats

_EXIT_FAILED: Final = 1
_EXIT_USAGE: Final = 2
_SECONDS_BETWEEN_LINES: Final = 60.0
# Process id of the first process of a container.
_INIT: Final = 1
_SIGNAL_POLL_SECONDS: Final = 0.1
_SCHEMES: Final = ("redis", "rediss", "unix")


def worker(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            envvar="MIXPANEL_OUTBOX",
            help="Outbox: a redis://, rediss:// or unix:// URL.",
            show_default=False,
        ),
    ],
    queue: Annotated[str, typer.Option(help="Name of the queue, as in RedisOutbox(name=...).")] = "mixpanel",
    name: Annotated[
        str | None, typer.Option(help="Name of this worker in the status of the queue.", show_default="HOST-PID")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Requests with events in flight at once.")] = 4,
    kinds: Annotated[
        str | None,
        typer.Option(help="Deliver only these: events, imports, people, groups, identity; joined by commas."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Deliver the waiting records, and exit.")] = False,  # noqa: FBT002  an option
    log: Annotated[str, typer.Option(metavar="text|json", help="Form of the output.")] = "text",
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve metrics to Prometheus on this port.", show_default=False),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of the metrics.")] = "0.0.0.0",  # noqa: S104  to be scraped
) -> None:
    """Deliver what clients have put into an outbox to Mixpanel, until Ctrl-C or SIGTERM.

    The token and the service account come from the variables that `AsyncMixpanel.from_env` reads: MIXPANEL_TOKEN,
    MIXPANEL_SERVICE_ACCOUNT_USERNAME, MIXPANEL_SERVICE_ACCOUNT_SECRET, MIXPANEL_PROJECT_ID, MIXPANEL_REGION and
    MIXPANEL_API_HOST. Run two workers or more, on different machines: they share the load, and one takes over when
    another ends.

    After the first signal the worker gives back its unsent records and exits with status 0; requests in flight have
    10 seconds. A second signal ends it at once. Status 1: the outbox refused the first connection, or could not be
    reached (only with --once). Status 2: an option, a variable or a setting of the queue is wrong.

    One line at the start, one per minute and one at the end go to standard output: the records delivered per second,
    the records that wait in the queue, the age of the oldest, and the dead letters. Warnings go to standard error.

    --metrics-port serves the metrics to Prometheus and needs the extra `prometheus`. Under `opentelemetry-instrument`
    they go to its exporter.
    """
    if log not in ("text", "json"):
        _fail(f"--log must be text or json, not {log!r}", _EXIT_USAGE)
    with SignalCounter() as signals:
        try:
            worker = _make_worker(source, queue, name, concurrency, kinds)
        except (ConfigurationError, ValueError) as error:
            _fail(_in_options(str(error)), _EXIT_USAGE)
        _start_log(is_json=log == "json")
        lines = _Lines(worker, is_json=log == "json")
        lines.print_start(source, queue)
        try:
            with reporting(worker, host=metrics_host, port=metrics_port):
                is_drained = anyio.run(_run, worker, signals, once, lines)
        except ConfigurationError as error:
            _fail(str(error), _EXIT_USAGE)
        except OutboxError as error:
            _fail(str(error), _EXIT_FAILED)
    if once and not is_drained:
        raise typer.Exit(signals.status or _EXIT_FAILED)


def _make_worker(source: str, queue: str, name: str | None, concurrency: int, kinds: str | None) -> Worker:
    from mixpanel_async.worker import Worker

    return Worker.from_env(
        _outbox(source, queue),
        name=name or f"{platform.node() or 'host'}-{os.getpid()}",
        concurrency=concurrency,
        kinds=None if kinds is None else [kind.strip() for kind in kinds.split(",")],
    )


def _outbox(source: str, queue: str) -> Outbox:
    """Return the outbox at a URL. Errors do not show the URL, which may hold a password."""
    if urlsplit(source).scheme not in _SCHEMES:
        raise ConfigurationError(f"--from must be a URL that begins with {', '.join(f'{one}://' for one in _SCHEMES)}")
    require("redis", "redis")
    from mixpanel_async.outbox import RedisOutbox

    return RedisOutbox(source, name=queue)


async def _run(worker: Worker, signals: SignalCounter, once: bool, lines: _Lines) -> bool:  # noqa: FBT001  of anyio.run
    """Run the worker until it has ended. Return whether it was not stopped before the outbox was empty."""
    failure: OutboxError | ConfigurationError | None = None
    is_drained = False
    async with worker, anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_signal, worker, signals)
        tasks.start_soon(lines.print_regularly)
        try:
            if once:
                is_drained = await worker.drain()
            else:
                await worker.run()
        except (OutboxError, ConfigurationError) as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    lines.print(is_last=True)
    return is_drained


async def _stop_on_signal(worker: Worker, signals: SignalCounter) -> None:
    while not signals.count:  # noqa: ASYNC110  a signal handler cannot set an event
        await anyio.sleep(_SIGNAL_POLL_SECONDS)
    # A second signal ends the process. As the first process of a container it would ignore one without a handler.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_at_once if os.getpid() == _INIT else signal.SIG_DFL)
    worker.stop()


def _exit_at_once(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  of signal handlers
    end_process(128 + number)


class _Lines:
    """Lines about the progress of a worker."""

    def __init__(self, worker: Worker, *, is_json: bool) -> None:
        self._worker = worker
        self._is_json = is_json
        self._since = self._started = time.monotonic()
        self._delivered = 0

    def print_start(self, source: str, queue: str) -> None:
        """Print where the worker reads from, without the user and password of the URL, and where it sends to."""
        url = urlsplit(source)
        place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        name, target = self._worker.name, self._worker.api_host
        if self._is_json:
            data = {"worker": name, "source": place, "queue": queue, "target": target}
            line = _json_line(time=_now(), event="worker_started", **data)
        else:
            line = f"{_now()} {name}: reads {place}, queue {queue}; delivers to {target}"
        print(line, flush=True)

    async def print_regularly(self) -> None:
        """Print a line every minute."""
        while True:
            await anyio.sleep(_SECONDS_BETWEEN_LINES)
            self.print(is_last=False)

    def print(self, *, is_last: bool) -> None:
        """Print one line; the last one is about the whole run."""
        now, stats = time.monotonic(), self._worker.stats()
        seconds = now - (self._started if is_last else self._since)
        records = stats.delivered - (0 if is_last else self._delivered)
        self._since, self._delivered = now, stats.delivered
        rate = records / seconds if seconds > 0 else 0.0
        print(self._as_json(stats, rate) if self._is_json else self._as_text(stats, rate, is_last), flush=True)

    def _as_text(self, stats: WorkerStats, rate: float, is_last: bool) -> str:  # noqa: FBT001
        state = "delivered" if is_last else "delivering"
        text = f"{_now()} {self._worker.name}: {state} {rate:,.1f} records/s, {stats.delivered:,} in all; "
        if stats.workers:
            text += f"{stats.waiting:,} wait in the queue, oldest {_age(stats.oldest_age)}; {stats.dead:,} dead letters"
        else:
            text += "not connected to the queue yet"
        return text if stats.last_error is None else f"{text}; last error: {stats.last_error}"

    def _as_json(self, stats: WorkerStats, rate: float) -> str:
        return _json_line(
            time=_now(),
            event="worker",
            worker=self._worker.name,
            records_per_second=round(rate, 1),
            delivered=stats.delivered,
            failed=stats.failed,
            dropped=stats.dropped,
            uncertain=stats.uncertain,
            held=stats.pending,
            lanes=stats.lanes,
            # Unknown before the first connection.
            waiting=stats.waiting if stats.workers else None,
            oldest_seconds=round(stats.oldest_age, 1) if stats.workers else None,
            dead=stats.dead if stats.workers else None,
            last_error=stats.last_error,
        )


class _JsonFormatter(logging.Formatter):
    """Log lines as JSON, with the data of the event."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = getattr(record, "mixpanel", {})
        return _json_line(time=_now(record.created), level=record.levelname, message=record.getMessage(), **data)


def _start_log(*, is_json: bool) -> None:
    """Write the log of the package to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z")
    handler.setFormatter(_JsonFormatter() if is_json else text)
    logger = logging.getLogger("mixpanel_async")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _now(seconds: float | None = None) -> str:
    moment = time.time() if seconds is None else seconds
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _json_line(**data: object) -> str:
    return json.dumps(data, separators=(",", ":"), default=str)


def _in_options(message: str) -> str:
    """Return a message with the options of the command in place of the arguments of `Worker`."""
    for argument in ("name", "concurrency", "kinds"):
        if message.startswith(f"{argument} must"):
            return f"--{message}"
    return message


def _fail(message: str, status: int) -> NoReturn:
    print(f"mixpanel-async worker: {message}", file=sys.stderr)
    raise typer.Exit(status)
