"""Format of the input files of `mixpanel-async import`: the content decides, and the name only between formats."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_command import NOW, finish, run, start

from mixpanel_async.cli.importing.format_detection import FormatError, detect_format
from mixpanel_async.cli.importing.option_values import Format

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

RECORDS = [{"event": "Sold", "distinct_id": f"u{number}", "time": NOW, "note": '{"a": "b"}'} for number in range(3)]


def ndjson() -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in RECORDS)


def table(separator: str) -> bytes:
    rows = [[*RECORDS[0]], *([str(cell).replace('"', '""') for cell in record.values()] for record in RECORDS)]
    return "\r\n".join(separator.join(f'"{cell}"' for cell in row) for row in rows).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(RECORDS), buffer)
    return buffer.getvalue()


def zipped(data: bytes, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder") if hasattr(archive, "mkdir") else archive.writestr("folder/", "")
        for name in names or ("folder/a",):
            archive.writestr(name, data)
    return buffer.getvalue()


CONTENTS: dict[str, bytes] = {
    "ndjson": ndjson(),
    "array": orjson.dumps(RECORDS),
    "pretty": orjson.dumps(RECORDS, option=orjson.OPT_INDENT_2),
    "objects": b"\n".join(orjson.dumps(record, option=orjson.OPT_INDENT_2) for record in RECORDS),
    "csv": table(","),
    "tsv": table("\t"),
    "parquet": parquet(),
}
NAMES = ("a.csv", "a.tsv", "a.json", "a.ndjson", "a.parquet", "a.gz", "a.zip", "a.txt", "a")


PACKS: list[Callable[[bytes], bytes]] = [lambda data: b"\xef\xbb\xbf" + data, gzip.compress, zstd.compress, zipped]


@pytest.mark.parametrize("content", CONTENTS)
def test_content_decides_the_format_whatever_the_name(content: str, tmp_path: Path) -> None:
    for name in NAMES:
        check_is_read(tmp_path / name, CONTENTS[content])


@pytest.mark.parametrize("pack", PACKS, ids=["bom", "gzip", "zstd", "zip"])
@pytest.mark.parametrize("content", [content for content in CONTENTS if content != "parquet"])
def test_compression_and_byte_order_mark_are_found_in_the_content(
    content: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    check_is_read(tmp_path / "a.csv", pack(CONTENTS[content]))


def check_is_read(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    result = run(path, "--dry-run")
    assert (result.status, result.output) == (0, "3 events valid, 0 rejected\n"), (path.name, result)


@pytest.mark.parametrize(
    ("content", "given", "problem"),
    [
        ("ndjson", "csv", "is NDJSON (one JSON object per line), not CSV; use --format ndjson"),
        ("pretty", "tsv", "not TSV; use --format json"),
        ("array", "ndjson", "is JSON (an array, or objects over several lines), not NDJSON"),
        ("objects", "ndjson", "use --format json"),
        ("csv", "json", "is CSV, not JSON"),
        ("tsv", "ndjson", "use --format tsv"),
        ("csv", "parquet", "is CSV, not Parquet; use --format csv"),
        ("parquet", "csv", "is Parquet, not CSV; use --format parquet"),
    ],
)
def test_wrong_format_is_refused_and_the_right_one_named(
    content: str, given: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.data"
    path.write_bytes(CONTENTS[content])
    result = run(path, "--format", given, "--token", "t")
    assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1)
    assert problem in result.errors
    named = result.errors.rpartition("--format ")[0].rpartition("--format ")[2].split(",")[0]
    assert run(path, "--format", named, "--dry-run").status == 0


@pytest.mark.parametrize(("content", "given"), [("ndjson", "json"), ("csv", "tsv"), ("objects", "json")])
def test_given_format_that_can_read_the_content_is_used(content: str, given: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENTS[content])
    options = ["--delimiter", ","] if given == "tsv" else []
    assert run(path, "--format", given, *options, "--dry-run").status == 0


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (ndjson().decode().encode("utf-16"), "is UTF-16; convert it to UTF-8"),
        (table(",").decode().encode("utf-16-le"), "is UTF-16; convert it to UTF-8"),
        (gzip.compress(table("\t").decode().encode("utf-16-be")), "is UTF-16; convert it to UTF-8"),
        (gzip.compress(parquet()), "is compressed Parquet: decompress it first"),
        (zipped(ndjson(), "a", "b"), "contains 2 files: unzip it"),
        (zipped(b"<xml/>", "[Content_Types].xml", "xl/a.xml"), "is an Office document: save the table as CSV"),
        (b"\xfd7zXZ\x00\x00\x00", "is compressed with xz: decompress it first"),
        (b"BZh91AY&SY", "is compressed with bzip2: decompress it first"),
        (b"a;b\n1;2\n", "use --delimiter ';'"),
        (b"PK\x03\x04broken", "cannot read"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07" * 9, "is neither JSON nor a table"),
        (b"one column\n1\n", "use --format csv"),
    ],
)
@pytest.mark.parametrize("name", ["a", "a.json", "a.ndjson"])
def test_content_that_cannot_be_imported_is_refused(name: str, data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    result = run(path, "--token", "t")
    assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1), result
    assert problem in result.errors


def test_zip_is_not_read_from_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(zipped(ndjson()))
    with path.open("rb") as file:
        result = finish(start("-", "--dry-run", stdin=file))
    assert result.status == 1
    assert "is zip, which cannot be read from a stream: save it to a file first" in result.output


@pytest.mark.parametrize(
    ("sample", "name", "expected"),
    [
        # Names break ties only.
        (b"a,b\tc\n", "x.csv", Format.CSV),
        (b"a,b,c\td\n", "x.tsv", Format.TSV),
        (b"a,b\tc\n", "x.json", Format.CSV),
        (b"a\tb\tc,\n", "x", Format.TSV),
        (b"column\n1\n", "x.csv", Format.CSV),
        (b"column\n1\n", "x.tsv.gz", Format.TSV),
        (b"[id],[name]\n1,2\n", "x.csv", Format.CSV),
        (b"{id},{name}\n1,2\n", "x.json", Format.CSV),
        (b'a,b\n"[\n{""x"": 1}]",2\n', "x.json", Format.CSV),
        (b"", "x.csv", Format.CSV),
        (b" \n", "x", Format.JSON),
        # A damaged first line does not change the format of the other lines.
        (b'junk, more\n{"event": "e"}\n', "x.ndjson", Format.NDJSON),
        (b'{"event": NaN}\n{"event": "e"}\n', "x.csv", Format.NDJSON),
        (b'{"event": "cut\n', "x.ndjson", Format.NDJSON),
        (b'[1]\n{"event": "e"}\n', "x.json", Format.NDJSON),
        (b'{\n  "event": "continues after the sam', "x.csv", Format.JSON),
        (b'{"a": 1}\n', "x.json", Format.NDJSON),
        (b'{"a": 1} {"b": 2}\n', "x", Format.JSON),
        (b'{"a": 1,\n"b": 2} {"c":', "x.csv", Format.JSON),
        (b"[\n", "x.csv", Format.JSON),
    ],
)
def test_name_breaks_ties(sample: bytes, name: str, expected: Format) -> None:
    assert detect_format(sample, name) is expected


@given(st.binary(max_size=40), st.sampled_from(NAMES), st.sampled_from(Format))
def test_detection_of_any_content_gives_a_format_or_a_reason(data: bytes, name: str, given: Format) -> None:
    found = None
    with suppress(FormatError):
        found = detect_format(data, name, given)
    assert found is not Format.AUTO
    assert given is Format.AUTO or found in {given, None}
