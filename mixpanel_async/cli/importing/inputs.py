"""The files to import: found, told apart by their first bytes, and opened without their compression."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from glob import glob, has_magic
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Final

STDIN: Final = "-"
STATE_SUFFIX: Final = ".import-state"
REJECTS_SUFFIX: Final = ".import-rejects"

_BUFFER: Final = 1024 * 1024
_SAMPLE: Final = 64 * 1024
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_PARQUET: Final = b"PAR1"


class InputError(Exception):
    """A file cannot be imported as it is. Nothing of it was read."""


class DamagedError(Exception):
    """A file cannot be read beyond some point. What came before it is good."""


class Format(str, Enum):
    """How records lie in a file."""

    AUTO = "auto"
    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


_BY_NAME: Final = {
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
}


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells a file from another, or from itself after a change."""

    size: int
    modified: int
    sample: str


@dataclass(frozen=True, slots=True)
class Input:
    """One file, before it is opened.

    Args:
        name: as the user gave it.
        identity: None for what can be read once only, such as a pipe.
    """

    name: str
    identity: FileIdentity | None

    @property
    def path(self) -> str:
        return STDIN if self.name == STDIN else os.path.abspath(self.name)

    @property
    def mark(self) -> str:
        """Tells its lines from those of other files, wherever it lies."""
        return STDIN if self.identity is None else f"{self.identity.size}-{self.identity.sample}"

    @property
    def size(self) -> int | None:
        return None if self.identity is None else self.identity.size


def found(names: Sequence[str]) -> tuple[list[Input], list[str]]:
    """The files behind names and patterns, each once.

    Returns:
        The files, and the names of those that an earlier import left and that are passed over.

    Raises:
        InputError: if one is not there, is a directory or cannot be read, or a pattern fits nothing.
    """
    paths: dict[str, None] = {}
    for name in names:
        if name == STDIN or Path(name).exists() or not has_magic(name):
            paths[name] = None
            continue
        fitting = [path for path in sorted(glob(name, recursive=True)) if not Path(path).is_dir()]
        if not fitting:
            raise InputError(f"no file fits {name}")
        paths.update(dict.fromkeys(fitting))
    passed = [path for path in paths if path.endswith((STATE_SUFFIX, REJECTS_SUFFIX))]
    inputs: dict[str, Input] = {}
    for path in paths:
        if path not in passed:
            one = Input(path, _identity(path))
            inputs.setdefault(one.path, one)
    if not inputs:
        raise InputError("only files that an earlier import has left were given")
    return [*inputs.values()], passed


def _identity(path: str) -> FileIdentity | None:
    if path == STDIN or path.startswith(("/dev/", "/proc/")):
        return None
    try:
        about = Path(path).stat()
        if stat.S_ISDIR(about.st_mode):
            raise InputError(f"{path} is a directory")
        if not stat.S_ISREG(about.st_mode):
            return None
        digest = blake2b(digest_size=16)
        with Path(path).open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, about.st_size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return FileIdentity(about.st_size, about.st_mtime_ns, digest.hexdigest())


class Opened:
    """A file that is open, and its content without compression.

    Args:
        raw: the file itself.
        content: what is in it, as a stream that can be peeked into.
        format: how records lie in it.
    """

    def __init__(self, raw: io.BufferedReader, content: io.BufferedReader, format: Format) -> None:
        self._raw = raw
        self.content = content
        self.format = format

    def done(self) -> int:
        """Bytes of the file itself that were read so far."""
        try:
            return self._raw.tell()
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        self.content.close()
        self._raw.close()


def opened(one: Input, format: Format) -> Opened:
    """Open a file.

    Args:
        one: the file.
        format: how records lie in it, if that is known.

    Raises:
        InputError: if it cannot be opened, or it cannot be told what it is.
    """
    try:
        # Not `sys.stdin`: the interpreter takes that one's lock when it ends, and a read may hold it for ever.
        file: io.RawIOBase = io.FileIO(0, closefd=False) if one.name == STDIN else io.FileIO(one.name)
    except OSError as error:
        raise InputError(f"cannot read {one.name}: {error.strerror or error}") from None
    raw: io.BufferedReader = io.BufferedReader(file, _BUFFER)
    try:
        head = raw.read(4)
        source = raw
        if one.identity is not None:
            raw.seek(0)
        else:
            # All that has come in, so that there is enough to tell what it is.
            head += raw.read(len(raw.peek()))
            rejoined: io.RawIOBase = _Rejoined(head, raw)
            source = io.BufferedReader(rejoined, _BUFFER)
        content = _decompressed(source, head, one.name)
        return Opened(raw, content, _told(one, format, head, content))
    except (OSError, EOFError, zlib.error) as error:
        raw.close()
        raise InputError(f"cannot read {one.name}: {error}") from None
    except InputError:
        raw.close()
        raise


class _Rejoined(io.RawIOBase):
    """A stream that cannot be wound back, with what was read of it put in front again."""

    def __init__(self, head: bytes, rest: io.BufferedReader) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._head or self._rest.read1(len(buffer))
        piece, rest = data[: len(buffer)], data[len(buffer) :]
        self._head = rest if self._head else b""
        buffer[: len(piece)] = piece
        return len(piece)


def _decompressed(source: io.BufferedReader, head: bytes, name: str) -> io.BufferedReader:
    unpacked: io.RawIOBase
    if head.startswith(_GZIP):
        unpacked = _Unpacked(gzip.GzipFile(fileobj=source), zlib.error)
    elif head.startswith(_ZSTD):
        unpacked = _zstd(source, name)
    else:
        return source
    return io.BufferedReader(unpacked, _BUFFER)


def _zstd(source: io.BufferedReader, name: str) -> io.RawIOBase:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        if find_spec("backports") is None or find_spec("backports.zstd") is None:
            raise InputError(f'{name} is compressed with zstd: pip install "mixpanel-async[cli]"')
        from backports import zstd
    return _Unpacked(zstd.ZstdFile(source), zstd.ZstdError)


class _Unpacked(io.RawIOBase):
    """A compressed stream that hands over what is good of it before it fails, and fails as other streams do."""

    def __init__(self, file: io.BufferedIOBase, fault: type[Exception]) -> None:
        self._file = file
        self._fault = fault

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        try:
            data = self._file.read1(len(buffer))
        except self._fault as error:
            raise OSError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)


def _told(one: Input, format: Format, head: bytes, content: io.BufferedReader) -> Format:
    """What a file is, by its first bytes, then by its name, then by its content."""
    if head.startswith(_PARQUET) or format is Format.PARQUET:
        if one.identity is None:
            raise InputError(f"{one.name} is Parquet, which is read from its end: save it to a file first")
        return Format.PARQUET
    start = content.peek(_SAMPLE)
    if start[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise InputError(f"{one.name} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    told = _by_name(one.name) if format is Format.AUTO else format
    if told is Format.AUTO:
        if text and text[:1] not in {b"{", b"["}:
            raise InputError(f"cannot tell what {one.name} is; say so with --format")
        told = Format.JSON
    is_guess = told is Format.JSON and format is Format.AUTO
    return Format.NDJSON if is_guess and _has_a_record_a_line(text) else told


def _by_name(name: str) -> Format:
    path = Path(name)
    if path.suffix.lower() in {".gz", ".gzip", ".zst", ".zstd"}:
        path = path.with_suffix("")
    return _BY_NAME.get(path.suffix.lower(), Format.AUTO)


def _has_a_record_a_line(text: bytes) -> bool:
    """Whether a file begins with a line that is an object by itself: so do raw exports that are called `.json`."""
    if not text.startswith(b"{"):
        return False
    line, newline, _ = text.partition(b"\n")
    if not newline:
        # An object that is laid out over lines has its first break at once.
        return True
    import orjson

    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True
