"""Commands on the pages print what the pages say: each console block with an `Output` block after it is run.

Its lines are calls of `mixpanel-async`, or of `cat`. The commands of a page run in order, in the directory of
the titled blocks of the page, against one emulator.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from page_snippets import Block, blocks_of, page_name, pages, path_of
from test_pages import id_merge_of
from typer.testing import CliRunner
from visits import FILES

from mixpanel_async import IdMerge
from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator

# Address of the emulator on the pages.
URL = "http://127.0.0.1:8080"
VARIABLES: dict[str, str | None] = {
    "MIXPANEL_TOKEN": "0123456789abcdef0123456789abcdef",
    "MIXPANEL_API_SECRET": "any",
    "MIXPANEL_SERVICE_ACCOUNT_USERNAME": None,
    "MIXPANEL_SERVICE_ACCOUNT_SECRET": None,
    "MIXPANEL_PROJECT_ID": None,
    "MIXPANEL_ID_MERGE": None,
    "MIXPANEL_REGION": None,
}


def console_blocks(page: str) -> list[Block]:
    """Return the console blocks of a page whose output the page shows."""
    return [block for block in blocks_of(path_of(page)) if block.language == "console" and block.output is not None]


PAGES = [page_name(path) for path in pages() if console_blocks(page_name(path))]


def output_of(code: str, variables: dict[str, str | None]) -> str:
    """Run the commands of a block and return what they print."""
    printed = ""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        if program == "cat":
            printed += "".join(Path(name).read_text("utf-8") for name in arguments)
            continue
        assert program == "mixpanel-async", line
        result = CliRunner().invoke(app, arguments, env=variables)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in {0, 3}, result.output
        printed += result.stdout
    return re.sub(r" +$", "", printed, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_commands_print_their_output(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(path_of(page))
    titled = {block.title: block.code for block in blocks if block.title is not None}
    for name, text in {**titled, **FILES.get(page, {})}.items():
        (tmp_path / name).write_text(text, "utf-8")
    system = id_merge_of("".join(block.code for block in console_blocks(page)))
    with Emulator(IdMerge(system)).serve() as server:
        for block in console_blocks(page):
            printed = output_of(block.code, {**VARIABLES, "MIXPANEL_API_HOST": server.url})
            assert printed.replace(server.url, URL).replace(f"{tmp_path}/", "") == block.output
