"""The built documentation works without a network and without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from page_snippets import DOCS, ROOT

from tools.site_check import problems

CHROMIUM: Final = Path("/usr/bin/chromium")
PAGES: Final = {
    "index.md": "# Start\n\nSend events with [the client](deep/client.md).\n",
    "deep/client.md": "# Client\n\nThe walrus of this page is unique.\n\n```python\nimport mixpanel_async\n```\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small site with the settings of the documentation."""
    folder = tmp_path_factory.mktemp("site")
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    settings = re.sub(r"^nav = \[.*?^\]$", f"nav = {[*PAGES]}", settings, flags=re.MULTILINE | re.DOTALL)
    # The small site has no page of the API.
    settings = settings.partition("[project.plugins.mkdocstrings")[0]
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")
    shutil.copytree(DOCS / "assets", folder / "docs" / "assets")
    for name, text in PAGES.items():
        path = folder / "docs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


def test_pages_have_no_broken_link_and_load_nothing_from_other_hosts(site: Path) -> None:
    assert (site / "deep" / "client.html").is_file()
    assert [*problems(site)] == []


def test_check_finds_loads_from_other_hosts_and_broken_links(tmp_path: Path) -> None:
    other = "https://cdn.example/x"
    loads = f'<a href="{other}">link</a><script src="{other}"></script><link rel="icon" href="//cdn.example/y">'
    links = (
        '<h2 id="here"><a href="#here">1</a><a href="#gone">2</a><a href="deep/other.html#top">3</a><a href="no">4</a>'
    )
    (tmp_path / "page.html").write_text(f"{loads}{links}<p style=\"background: url('{other}')\">")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.html").write_text(
        '<a href="../page.html#here" id="top">1</a><a href="../style.css">2</a>'
    )
    (tmp_path / "style.css").write_text(f"@import '{other}'; p {{ background: url(data:image/png) }}")
    assert [*problems(tmp_path)] == [
        f"page.html loads {other}",
        "page.html loads //cdn.example/y",
        f"page.html loads {other}",
        "page.html links to #gone, which does not exist",
        "page.html links to no, which does not exist",
        f"style.css loads {other}",
    ]


@pytest.fixture
def page() -> Iterator[Any]:
    """Provide a page of a browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


@pytest.mark.browser
@pytest.mark.long
@pytest.mark.xdist_group("browser")
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} does not exist")
def test_search_works_in_pages_opened_as_files(site: Path, page: Any) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Search").fill("walrus")
    page.get_by_role("option").filter(has_text="The walrus of this page").click()
    page.wait_for_url("**/deep/client.html*")
    assert {url.partition(":")[0] for url in requested} <= {"file", "data", "blob", "about"}
