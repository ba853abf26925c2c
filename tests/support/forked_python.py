"""Python programs in child processes that start in milliseconds: `subprocess` for commands of this interpreter.

`popen` and `run` take `[sys.executable, OPTIONS, -c CODE | -m MODULE | FILE, ARGUMENTS]` and most arguments of their
counterparts in `subprocess`. The first call with the same options and modules starts a fork server, which imports the
modules; it ends with this process. Use `subprocess` for programs whose imports are tested.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Final

from fork_server import ForkServer, fork_server
from typing_extensions import Self

# What the commands of the package import.
COMMANDS: Final = (
    "mixpanel_async.cli.app",
    "mixpanel_async.emulator",
    "mixpanel_async.emulator.http.server",
    "rich.progress",
    "rich.table",
    "uvicorn",
)
_RUN_MODULE: Final = "import runpy; runpy.run_module({0!r}, None, '__main__', alter_sys=True)"
_SECONDS_BETWEEN_POLLS: Final = 0.003

_stack: Final = ExitStack()
_servers: Final[dict[tuple[tuple[str, ...], tuple[str, ...]], ForkServer]] = {}
_lock: Final = threading.Lock()
atexit.register(_stack.close)


class ForkedPython:
    """Process of a fork server, with the methods of `subprocess.Popen`.

    Args:
        server: server that forked it.
        pid: id of the process.
        streams: our ends of its standard streams, where they are pipes.
        args: the command.
        text: open them as text.
    """

    def __init__(
        self, server: ForkServer, pid: int, streams: Sequence[int | None], args: Sequence[object], *, text: bool
    ) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._server = server
        modes = ("w", "r", "r") if text else ("wb", "rb", "rb")
        opened = [
            None if one is None else os.fdopen(one, mode, encoding="utf-8" if text else None)
            for one, mode in zip(streams, modes, strict=True)
        ]
        self.stdin: IO[Any] | None = opened[0]
        self.stdout: IO[Any] | None = opened[1]
        self.stderr: IO[Any] | None = opened[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_streams()
        self.wait()

    def close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def poll(self) -> int | None:
        """Return the exit status, or `None` while the process runs."""
        with _lock:
            if self.returncode is None:
                self.returncode = self._server.ask({"wait": self.pid, "block": False})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, or raise `subprocess.TimeoutExpired` after this number of seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and timeout is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_SECONDS_BETWEEN_POLLS)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)

    def communicate(self, given: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write the input, read both outputs to their end, and wait for the process."""
        end = None if timeout is None else time.monotonic() + timeout
        outputs: dict[int, Any] = {}
        streams = (self.stdout, self.stderr)
        threads = [
            threading.Thread(target=_read, args=(stream, outputs, at), daemon=True)
            for at, stream in enumerate(streams)
            if stream is not None and not stream.closed
        ]
        if self.stdin is not None and not self.stdin.closed:
            threads.append(threading.Thread(target=_write, args=(self.stdin, given), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        self.close_streams()
        return outputs.get(0), outputs.get(1)


def popen(
    command: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    start_new_session: bool = False,
    text: bool = False,
    modules: tuple[str, ...] = COMMANDS,
) -> ForkedPython:
    """Start a program.

    Args:
        command: the interpreter, options of it, and `-c CODE`, `-m MODULE` or the path of a file with its arguments.
        stdin: as of `subprocess.Popen`, and so are the next six.
        stdout: see there.
        stderr: see there.
        env: see there. Of the variables that the interpreter reads when it starts, only `PYTHONPATH` and
            `PYTHONUNBUFFERED` take effect.
        cwd: see there.
        start_new_session: see there.
        text: see there. The encoding is UTF-8.
        modules: modules that have been imported before the program starts.
    """
    options, code, file, arguments = _parse([os.fspath(one) for one in command[1:]])
    with ExitStack() as opened:
        ours: list[int | None] = []
        theirs: list[int] = []
        for number, given in enumerate((stdin, stdout, stderr)):
            end, kept = _descriptor(number, given, theirs)
            ours.append(kept)
            theirs.append(end)
            opened.callback(os.close, end)
        request = {
            "code": code,
            "file": file,
            "arguments": arguments,
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd or Path.cwd()),
            "session": start_new_session,
        }
        with _lock:
            server = _server(options, modules)
            server.send(request, *theirs)
            pid = server.receive()
    return ForkedPython(server, pid, ours, command, text=text)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    given: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does. `given` is its standard input."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with popen(command, **options) as process:
        try:
            output, errors = process.communicate(given, timeout)
        except BaseException:
            process.kill()
            raise
    assert process.returncode is not None
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "a forked program", output, errors)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _server(options: tuple[str, ...], modules: tuple[str, ...]) -> ForkServer:
    key = (options, modules)
    if key not in _servers:
        _servers[key] = _stack.enter_context(fork_server(*options, modules=modules))
    return _servers[key]


def _parse(words: list[str]) -> tuple[tuple[str, ...], str, str, list[str]]:
    """Return the options of the interpreter, the code, the name of its file, and the arguments of the program."""
    at = 0
    while words[at] in {"-W", "-X"}:
        at += 2
    options, kind, rest = tuple(words[:at]), words[at], words[at + 1 :]
    if kind == "-c":
        return options, rest[0], "-c", rest[1:]
    if kind == "-m":
        return options, _RUN_MODULE.format(rest[0]), "-c", rest[1:]
    return options, Path(kind).read_text("utf-8"), kind, rest


def _descriptor(number: int, given: int | IO[Any] | None, before: Sequence[int]) -> tuple[int, int | None]:
    """Return a descriptor for the process, and our end if it is a pipe."""
    if given == subprocess.PIPE:
        reader, writer = os.pipe()
        return (reader, writer) if number == 0 else (writer, reader)
    if given == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    if given == subprocess.STDOUT:
        return os.dup(before[1]), None
    if given is None:
        return os.dup(number), None
    return os.dup(given if isinstance(given, int) else given.fileno()), None


def _read(stream: IO[Any], outputs: dict[int, Any], at: int) -> None:
    outputs[at] = stream.read()


def _write(stream: IO[Any], given: Any) -> None:
    with suppress(BrokenPipeError):
        if given is not None:
            stream.write(given)
        stream.close()
