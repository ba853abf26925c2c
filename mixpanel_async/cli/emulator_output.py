"""Terminal output of `mixpanel-async emulator`: hints at the start, and a line for each request.

Everything here goes to standard error. Standard output has the address, which other
programs read, and with `--tls` the lines about its certificate.

A thread reads the log of the emulator a few times per second. Requests therefore never wait for the terminal, even if
nothing reads the output. Above `_LINES_PER_SECOND`, further requests are summarised in one line, so that a fast client
does not fill the terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from rich.console import Console

from .visible import visible

if TYPE_CHECKING:
    from mixpanel_async.emulator import Emulator, RequestDigest, RequestEntry, Server

_INTERVAL: Final = 0.1
_LINES_PER_SECOND: Final = 50
_MAX_BURST: Final = 100
_SUMMARY_SECONDS: Final = 1.0
# For the last lines at the end, if nothing reads the output.
_STOP_SECONDS: Final = 0.5
_MAX_PATH: Final = 60
_MAX_REASON: Final = 160
_STYLES: Final = {"good": "32", "bad": "31", "warn": "33", "quiet": "2", "bold": "1"}

Style = Callable[[str, str], str]
"""Function that styles a text: the name of the style, and the text."""


def styler(console: Console) -> Style:
    """Return a function that styles text, or leaves it plain unless a terminal shows colours.

    Rich decides, from the kind of the output and from the variables `NO_COLOR`, `FORCE_COLOR` and `TERM`.
    """
    has_colors = console.color_system not in {None, "windows"} and not console.no_color

    def style(name: str, text: str) -> str:
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if has_colors else text

    return style


def printable(text: str, limit: int) -> str:
    """Return text of a request without characters that a terminal would interpret, at most `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return visible(cut)


def first_steps(url: str, *, https_url: str | None, id_merge: str, has_token: bool, style: Style) -> str:
    """Return the hints for the first start: the live page, and how to point an SDK at the emulator.

    Args:
        url: address of the server.
        https_url: its address for https, or None.
        id_merge: ID merge system of the project.
        has_token: whether the project has a token, which is not shown.
        style: styles the text.
    """
    token = "'<the token of --token>'" if has_token else "any"
    lines = [
        f"{style('bold', 'Mixpanel emulator')}. The live page is {url}/ and has code for each SDK.",
        f"  mixpanel-async   export MIXPANEL_API_HOST={url} MIXPANEL_ID_MERGE={id_merge} MIXPANEL_TOKEN={token}",
        f"  Python           Consumer(events_url='{url}/track', people_url='{url}/engage', ...)",
        f"  Node             host: '{url.partition('//')[2]}', protocol: '{url.partition(':')[0]}'",
        f"  Browser          api_host: '{url}'",
        *([] if https_url is None else [f"  https            {https_url}, if the client trusts the certificate"]),
        style("quiet", "Requests follow, at most 50 lines per second. --quiet turns them off. Ctrl-C stops."),
    ]
    return "\n".join(lines) + "\n"


def entry_line(entry: RequestEntry, style: Style) -> str:
    """Return the line of one request: time, status, endpoint, records, result and first reason."""
    clock = time.strftime("%H:%M:%S", time.localtime(entry.received_at))
    is_bad = entry.status is None or entry.status >= 400
    kind = "bad" if is_bad else "warn" if entry.rejected or entry.reason else "good"
    status = "---" if entry.status is None else str(entry.status)
    path = printable(entry.path, _MAX_PATH)
    head = f"{style('quiet', clock)} {style(kind, status)} {entry.method:<4.7} {path:<14}"
    return f"{head}  {_result(entry)}".rstrip()


def _result(entry: RequestEntry) -> str:
    parts = []
    if entry.records:
        parts.append(_counted(entry.records, "record"))
    if entry.rejected:
        parts.append("refused" if not entry.records else f"{entry.rejected:,} not stored")
    if entry.fault:
        parts.append("planned fault" if entry.fault == "status" else f"planned fault {entry.fault}")
    if entry.status is None and not entry.fault and not entry.reason:
        parts.append("no response")
    result = ", ".join(parts)
    if not entry.reason:
        return result
    reason = printable(entry.reason.removeprefix(f"{entry.status}: "), _MAX_REASON)
    return f"{result}: {reason}" if result else reason


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class LineBudget:
    """Number of lines that may be printed: `_LINES_PER_SECOND`, and up to `_MAX_BURST` after a pause."""

    def __init__(self) -> None:
        self._left = float(_MAX_BURST)

    def take(self, wanted: int, elapsed: float) -> int:
        """Return how many of the wanted lines may be printed, `elapsed` seconds after the last call."""
        self._left = min(_MAX_BURST, self._left + elapsed * _LINES_PER_SECOND)
        allowed = min(wanted, int(self._left))
        self._left -= allowed
        return allowed


class RequestLines:
    """Turns what the log of an emulator reports into lines.

    Args:
        style: styles the text.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._budget = LineBudget()
        self._seen = self._records = self._rejected = 0
        self._skipped = self._skipped_records = self._skipped_rejected = 0
        self._skipped_reason = ""
        self._since_summary = 0.0

    @property
    def seen(self) -> int:
        """Number of the latest request that has been turned into a line or skipped."""
        return self._seen

    def lines(self, digest: RequestDigest, elapsed: float) -> Iterator[str]:
        """Return the lines of new requests.

        Args:
            digest: requests after `seen`, across resets.
            elapsed: seconds since the last call.
        """
        new, records = digest.requests - self._seen, digest.records - self._records
        rejected = digest.rejected - self._rejected
        self._seen, self._records, self._rejected = digest.requests, digest.records, digest.rejected
        self._since_summary += elapsed
        if self._skipped and (self._since_summary >= _SUMMARY_SECONDS or not new):
            yield self._summary()
        shown = digest.entries[: self._budget.take(len(digest.entries), elapsed)]
        for entry in shown:
            yield entry_line(entry, self._style)
        if new > len(shown):
            self._skipped += new - len(shown)
            self._skipped_records += records - sum(entry.records for entry in shown)
            self._skipped_rejected += rejected - sum(entry.rejected for entry in shown)
            rest = (entry.reason for entry in digest.entries[len(shown) :] if entry.reason)
            self._skipped_reason = self._skipped_reason or next(rest, "")

    def rest(self) -> Iterator[str]:
        """Return the summary of the skipped requests, if there are any."""
        if self._skipped:
            yield self._summary()

    def _summary(self) -> str:
        text = f"     ... {_counted(self._skipped, 'more request')}, {_counted(self._skipped_records, 'record')}"
        if self._skipped_rejected:
            text += f", {self._skipped_rejected:,} not stored"
        if self._skipped_reason:
            text += f": {printable(self._skipped_reason, _MAX_REASON)}"
        self._skipped = self._skipped_records = self._skipped_rejected = 0
        self._skipped_reason, self._since_summary = "", 0.0
        return self._style("quiet", text)


class RequestPrinter:
    """Thread that writes a line for each request to a file descriptor, until the descriptor is closed.

    It writes to the descriptor, not to `sys.stderr`, whose lock a blocked thread would hold at the exit of the process.

    Args:
        emulator: the emulator.
        descriptor: file descriptor of the output.
        style: styles the text.
        introduction: text that comes first.
    """

    def __init__(self, emulator: Emulator, descriptor: int, style: Style, introduction: str) -> None:
        self._emulator = emulator
        self._descriptor = descriptor
        self._introduction = introduction
        self._lines = RequestLines(style)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mixpanel-emulator-output", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write the last lines, unless nothing reads them, and end the thread."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        # The reader of the output may have gone. The emulator goes on.
        with contextlib.suppress(OSError):
            self._write(self._introduction)
            last = time.monotonic()
            while not self._stop.wait(_INTERVAL):
                now = time.monotonic()
                self._print_new(now - last)
                last = now
            self._print_new(_INTERVAL)
            self._write_lines(self._lines.rest())

    def _print_new(self, elapsed: float) -> None:
        digest = self._emulator.request_log(after=self._lines.seen, across_resets=True)
        self._write_lines(self._lines.lines(digest, elapsed))

    def _write_lines(self, lines: Iterator[str]) -> None:
        self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        rest = text.encode("utf-8", "replace")
        while rest:
            written = self._write_part(rest)
            rest = rest[written:]
            if not written and self._stop.wait(_INTERVAL):
                return

    def _write_part(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # A parent process has made the descriptor non-blocking, and nothing reads it.
            return 0


@contextlib.contextmanager
def printing(emulator: Emulator, server: Server, *, is_first_start: bool) -> Iterator[None]:
    """Print requests to standard error, if there is one, while the context is open.

    Args:
        emulator: the emulator.
        server: its server, which is running.
        is_first_start: whether to explain how to use it first.
    """
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        # A program without a console has no standard error.
        yield
        return
    style = styler(Console(stderr=True))
    hints = ""
    if is_first_start:
        hints = first_steps(
            server.url,
            https_url=server.https_url if server.has_tls else None,
            id_merge=emulator.id_merge.value,
            has_token=emulator.token is not None,
            style=style,
        )
    printer = RequestPrinter(emulator, descriptor, style, hints)
    printer.start()
    try:
        yield
    finally:
        printer.close()
