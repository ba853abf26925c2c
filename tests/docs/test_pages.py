"""Code on the pages of the documentation works as pasted.

A Python block is a program, run in a separate process against an emulator, in the directory of the titled blocks of its
page.
A block titled `Output` after it is what the program prints. Commands and their options exist; data can be parsed.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
import yaml
from fork_server import ForkServer, fork_server
from page_snippets import DOCS, ROOT, Block, all_blocks, blocks_of, page_name, pages, path_of
from visits import ENVIRONMENT, FILES, IMPORTED, LOSSES, SILENT, VISITS

from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROGRAM: Final = Path(__file__).with_name("page_program.py")
PYTHON: Final = all_blocks("python")
SYSTEMS: Final = ("SIMPLIFIED", "LEGACY")
# URL of the programs with a queue in Redis.
QUEUE: Final = "redis://queue:6379/0"
PRELOADED: Final = (
    "pytest",
    "mixpanel_async.emulator",
    "uvicorn",
    "httpx",
    "fastapi",
    "mixpanel_async.integrations.fastapi",
    "mixpanel_async.integrations.aiohttp",
    "mixpanel_async.integrations.otel",
    "opentelemetry.exporter.prometheus",
    "lifespans",
)


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServer]:
    with fork_server("-W", "error", modules=PRELOADED) as server:
        yield server


def id_merge_of(code: str) -> str:
    """Return the ID-merge system that a program names, or Original."""
    return next((name.lower() for name in SYSTEMS if name in code or f'"{name.lower()}"' in code), "original")


@pytest.mark.parametrize("block", [block for block in PYTHON if block.key not in IMPORTED], ids=lambda block: block.key)
def test_program_runs(block: Block, processes: ForkServer, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    redis = request.getfixturevalue("redis_server").url if QUEUE in block.code else ""
    folder = tmp_path / "page"
    folder.mkdir()
    for other in blocks_of(path_of(block.page)):
        is_earlier = other.number <= block.number or other.language != "python"
        if other.title is not None and (is_earlier or IMPORTED.get(other.key) == block.key):
            (folder / other.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / other.title).write_text(other.code.replace(QUEUE, redis), "utf-8")
    for name, text in FILES.get(block.page, {}).items():
        (folder / name).write_text(text, "utf-8")
    (folder / block.file).write_text(block.code.replace(QUEUE, redis), "utf-8")
    visit = tmp_path / "visit.py"
    visit.write_text(VISITS.get(block.key, ""), "utf-8")
    report = tmp_path / "report.json"
    options: dict[str, Any] = {"variables": ENVIRONMENT.get(block.page, {}), "losses": LOSSES.get(block.key, [])}
    id_merge = options["variables"].get("MIXPANEL_ID_MERGE") or id_merge_of(block.code)
    status, printed, errors = processes.run(PROGRAM, folder / block.file, id_merge, visit, report, json.dumps(options))
    assert status == 0, f"{printed}{errors}"
    facts = json.loads(report.read_text("utf-8"))
    assert block.key in SILENT or facts["requests"] or facts["clients"], "the program sends nothing"
    for module, importer in IMPORTED.items():
        if importer == block.key:
            assert module.rpartition("#")[2].removesuffix(".py").replace("/", ".") in facts["modules"]
    if block.output is not None:
        assert printed == block.output


def test_titles_name_files_within_the_folder_of_the_page() -> None:
    for path in pages():
        for block in blocks_of(path):
            assert block.title is None or not (Path(block.title).is_absolute() or ".." in block.title), block.key


def test_keys_of_the_visits_exist() -> None:
    keys = {block.key for block in PYTHON}
    assert {*VISITS, *IMPORTED, *IMPORTED.values(), *SILENT, *LOSSES} <= keys
    assert {*FILES, *ENVIRONMENT} <= {page_name(path) for path in pages()}


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return a command of the application, and the words after its name."""
    found: Any = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    return found, words


def command_lines() -> Iterator[tuple[str, str]]:
    """Return the calls of the command in the console blocks, each with its page."""
    for block in all_blocks("console", "sh", "bash", "shell"):
        for line in block.code.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\|?|;", line.removeprefix("$ ")):
                part = re.sub(r"^(\s*\w+=\S+)+\s+", "", part).strip()
                if part.startswith("mixpanel-async "):
                    yield block.page, part


@pytest.mark.parametrize(("page", "line"), [*command_lines()])
def test_command_and_its_options_exist(page: str, line: str) -> None:
    command, words = command_of(shlex.split(line, comments=True)[1:])
    assert not getattr(command, "commands", {}) or words in (["--help"], [])
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("block", all_blocks("json", "toml", "yaml"), ids=lambda block: f"{block.key}-{block.language}")
def test_data_can_be_parsed(block: Block) -> None:
    if block.language == "json":
        json.loads(block.code)
    elif block.language == "yaml":
        yaml.safe_load(block.code)
    else:
        tomllib.loads(block.code)


async def run_cells(blocks: list[Block], origin: str) -> dict[str, Any]:
    """Run the cells of a notebook, which may await, and return their names."""
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.code.replace("http://127.0.0.1:8080", origin)
        result = eval(compile(code, block.key, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.iscoroutine(result):
            await result
    return names


def test_cells_of_the_notebook_run() -> None:
    emulator = Emulator()
    cells = [block for block in blocks_of(DOCS / "guides/notebooks.md") if block.language == "py"]
    with emulator.serve() as server:
        names = asyncio.run(run_cells(cells, server.url))
        names["mp"].close()
    assert len(emulator.events("Notebook opened")) == len(cells) == 2


def prose_of(path: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as the site and the usual viewers of Markdown make it."""
    words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[\s]+", "-", words)


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    text = prose_of(path)
    return {slug(heading) for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "path", [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.name
)
def test_linked_files_and_headings_exist(path: Path) -> None:
    text = prose_of(path)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else (path.parent / name).resolve()
        assert target.exists(), link
        if anchor and target.suffix == ".md" and not anchor.startswith("mixpanel_async"):
            assert anchor in anchors_of(target), link


def test_imports_in_the_text_work() -> None:
    lines = {
        line for path in pages() for line in re.findall(r"`(from mixpanel_async[\w.]* import \w+)`", prose_of(path))
    }
    assert lines
    for line in lines:
        exec(line, {})


def test_code_in_tables_has_no_escapes() -> None:
    # The site shows the backslash. Write <code>a&#124;b</code>, or a block of code.
    for path in pages():
        rows = [line for line in prose_of(path).splitlines() if line.startswith("|")]
        assert [row for row in rows if re.search(r"`[^`]*\\\|[^`]*`", row)] == [], page_name(path)


def test_no_page_is_too_long() -> None:
    for path in pages():
        if "reference" not in path.parts:
            text = prose_of(path)
            assert len(text.split()) <= 2_500, page_name(path)
