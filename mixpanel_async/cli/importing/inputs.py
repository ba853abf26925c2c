"""Input files: finds them, opens them and decompresses them."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

from .format_detection import SAMPLE_BYTES, FormatError, UnknownFormatError, detect_format
from .option_values import Format

STDIN: Final = "-"
STATE_SUFFIX: Final = ".import-state"
REJECTS_SUFFIX: Final = ".import-rejects"

_BUFFER_BYTES: Final = 1024 * 1024
_SAMPLE_BYTES: Final = 64 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZIP_MAGIC: Final = b"PK\x03\x04"
_OTHER_COMPRESSIONS: Final = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"PK\x05\x06": "zip",
}
# The part of an Office document, such as an Excel workbook, that names its other parts.
_OFFICE_PART: Final = "[Content_Types].xml"


class InputError(Exception):
    """A file cannot be imported. None of its records was read."""


class UnknownInputError(InputError):
    """The content of a file has no known format."""


class DamagedError(Exception):
    """The rest of a file cannot be read. The records before the damage are valid."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Identity of a file, which changes with its content. Field names are part of the checkpoint format.

    Args:
        size: size in bytes.
        modified: modification time, in nanoseconds.
        sample: hash of the beginning and the end of the content.
    """

    size: int
    modified: int
    sample: str


@dataclass(frozen=True, slots=True)
class InputFile:
    """Input file that is not open yet.

    Args:
        name: name on the command line.
        identity: identity of the file; None for a stream that can be read only once, such as a pipe.
    """

    name: str
    identity: FileIdentity | None

    @property
    def path(self) -> str:
        """Absolute path, or `STDIN`."""
        return STDIN if self.name == STDIN else os.path.abspath(self.name)

    @property
    def content_id(self) -> str:
        """Identifier of the content, independent of the file's name and directory."""
        return STDIN if self.identity is None else f"{self.identity.size}-{self.identity.sample}"

    @property
    def size(self) -> int | None:
        return None if self.identity is None else self.identity.size


def find_inputs(names: Sequence[str]) -> tuple[list[InputFile], list[str]]:
    """Find the files of names and glob patterns. Each file occurs once.

    Returns:
        The files, and the names of skipped files: checkpoints and rejects of earlier imports.

    Raises:
        InputError: if a file does not exist, is a directory or cannot be read, or a pattern matches no file.
    """
    paths: dict[str, None] = {}
    for name in names:
        if name == STDIN or Path(name).exists() or not has_magic(name):
            paths[name] = None
            continue
        matches = [path for path in sorted(glob(name, recursive=True)) if not Path(path).is_dir()]
        if not matches:
            raise InputError(f"no file matches {name}")
        paths.update(dict.fromkeys(matches))
    skipped = [path for path in paths if path.endswith((STATE_SUFFIX, REJECTS_SUFFIX))]
    inputs: dict[str, InputFile] = {}
    for path in paths:
        if path not in skipped:
            input_file = InputFile(path, _identify(path))
            inputs.setdefault(input_file.path, input_file)
    if not inputs:
        raise InputError("all given files are checkpoints or rejects of earlier imports")
    return [*inputs.values()], skipped


def _identify(path: str) -> FileIdentity | None:
    """Return the identity of a regular file, or None for a stream."""
    if path == STDIN or path.startswith(("/dev/", "/proc/")):
        return None
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a directory")
        if not stat.S_ISREG(status.st_mode):
            return None
        digest = blake2b(digest_size=16)
        with Path(path).open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, status.st_size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return FileIdentity(status.st_size, status.st_mtime_ns, digest.hexdigest())


class OpenedInput:
    """Open input file with decompressed content.

    Args:
        raw: the file as stored.
        content: the decompressed content.
        format: the given or detected format.
    """

    def __init__(self, raw: io.BufferedReader, content: io.BufferedReader, format: Format) -> None:
        self._raw = raw
        self.content = content
        self.format = format

    def bytes_read(self) -> int:
        """Return the number of bytes of the file, as stored, that were read so far."""
        try:
            return self._raw.tell()
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        self.content.close()
        self._raw.close()


def open_input(input_file: InputFile, format: Format, delimiter: str | None = None) -> OpenedInput:
    """Open a file.

    Args:
        input_file: the file.
        format: its format; `Format.AUTO` detects it.
        delimiter: its CSV delimiter, if it is given.

    Raises:
        InputError: if it cannot be opened, or its format cannot be detected or is not the given one.
    """
    name = input_file.name
    try:
        # Not `sys.stdin`: the interpreter acquires its lock on exit, and a blocked read may hold that lock forever.
        file: io.RawIOBase = io.FileIO(0, closefd=False) if name == STDIN else io.FileIO(name)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    raw: io.BufferedReader = io.BufferedReader(file, _BUFFER_BYTES)
    try:
        head = raw.read(8)
        source = raw
        if input_file.identity is not None:
            raw.seek(0)
        else:
            # Read everything that has arrived, so that there is enough content to detect the format.
            head += raw.read(len(raw.peek()))
            prefixed: io.RawIOBase = _PrefixedStream(head, raw)
            source = io.BufferedReader(prefixed, _BUFFER_BYTES)
        content = _decompress(source, head, input_file)
        sample = content.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]
        try:
            detected = detect_format(sample, name, format, delimiter)
        except UnknownFormatError as error:
            raise UnknownInputError(f"{name} {error}") from None
        except FormatError as error:
            raise InputError(f"{name} {error}") from None
        if detected is Format.PARQUET:
            _check_parquet(input_file, is_plain=content is source)
        return OpenedInput(raw, content, detected)
    except (OSError, EOFError, zlib.error) as error:
        raw.close()
        raise InputError(f"cannot read {name}: {error}") from None
    except InputError:
        raw.close()
        raise


def _check_parquet(input_file: InputFile, *, is_plain: bool) -> None:
    """Check that a Parquet file can be read from its end.

    Raises:
        InputError: if it cannot.
    """
    if input_file.identity is None:
        raise InputError(f"{input_file.name} is Parquet, which cannot be read from a stream: save it to a file first")
    if not is_plain:
        raise InputError(f"{input_file.name} is compressed Parquet: decompress it first")


class _PrefixedStream(io.RawIOBase):
    """Stream of bytes that were already read from an unseekable stream, followed by the rest of that stream."""

    def __init__(self, head: bytes, rest: io.BufferedReader) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._head or self._rest.read1(len(buffer))
        piece, remaining = data[: len(buffer)], data[len(buffer) :]
        self._head = remaining if self._head else b""
        buffer[: len(piece)] = piece
        return len(piece)


def _decompress(source: io.BufferedReader, head: bytes, input_file: InputFile) -> io.BufferedReader:
    """Return the decompressed content. The first bytes decide, not the name."""
    name = input_file.name
    decompressed: io.RawIOBase
    if head.startswith(_GZIP_MAGIC):
        decompressed = _DecompressedStream(gzip.GzipFile(fileobj=source), zlib.error)
    elif head.startswith(_ZSTD_MAGIC):
        decompressed = _open_zstd(source, name)
    elif head.startswith(_ZIP_MAGIC):
        if input_file.identity is None:
            raise InputError(f"{name} is zip, which cannot be read from a stream: save it to a file first")
        decompressed = _open_zip(source, name)
    else:
        for magic, label in _OTHER_COMPRESSIONS.items():
            if head.startswith(magic):
                raise InputError(f"{name} is compressed with {label}: decompress it first, or use gzip, zstd or zip")
        return source
    return io.BufferedReader(decompressed, _BUFFER_BYTES)


def _open_zip(source: io.BufferedReader, name: str) -> io.RawIOBase:
    """Open the only file of a zip archive."""
    try:
        archive = zipfile.ZipFile(source)
        members = [member for member in archive.infolist() if not member.is_dir()]
        if _OFFICE_PART in archive.namelist():
            raise InputError(f"{name} is an Office document: save the table as CSV first")
        if len(members) != 1:
            raise InputError(f"{name} contains {len(members)} files: unzip it, and import the files")
        return _DecompressedStream(
            cast("io.BufferedIOBase", archive.open(members[0])), (zipfile.BadZipFile, zlib.error)
        )
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # Encrypted files raise `RuntimeError`.
        raise InputError(f"cannot read {name}: {error}") from None


def _open_zstd(source: io.BufferedReader, name: str) -> io.RawIOBase:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        if find_spec("backports") is None or find_spec("backports.zstd") is None:
            raise InputError(f'{name}: zstd needs an extra: run pip install ".[cli]" in a clone of the repository')
        from backports import zstd
    return _DecompressedStream(zstd.ZstdFile(source), zstd.ZstdError)


class _DecompressedStream(io.RawIOBase):
    """Decompressed stream that returns all valid data before damage, then raises `OSError`."""

    def __init__(self, file: io.BufferedIOBase, error_type: type[Exception] | tuple[type[Exception], ...]) -> None:
        self._file = file
        self._error_type = error_type

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
        except self._error_type as error:
            raise OSError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)
