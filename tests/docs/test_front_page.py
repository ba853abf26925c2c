"""Facts of the README: its length and commands, the dependencies, and its statements about the official SDK."""

from __future__ import annotations

import re
from pathlib import Path

import mixpanel
import pytest
from page_snippets import pages

import mixpanel_async
from mixpanel_async import AsyncMixpanel
from mixpanel_async.emulator import Emulator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_readme_is_short_and_has_its_two_commands() -> None:
    assert len(README.splitlines()) <= 250
    assert '\npip install -e ".[demo]" && mixpanel-async demo\n' in README
    assert '\npip install -e ".[dev]" && pytest\n' in README


def test_readme_names_every_extra() -> None:
    extras = re.findall(
        r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.MULTILINE
    )
    text = README.partition("## Install\n")[2].partition("\n## ")[0]
    for extra in {*extras} - {"bench", "dev", "docs"}:
        assert f"`{extra}`" in text


def test_version_is_in_the_changelog_and_dependencies_are_few() -> None:
    assert f"## [{mixpanel_async.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    # Read the project file, because the metadata of an editable installation may be out of date.
    found = re.search(r"^dependencies = \[(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    assert found is not None
    needed = set(re.findall(r'^    "([a-z0-9-]+)', found[1], re.MULTILINE))
    assert needed == {"anyio", "certifi", "httpcore", "httpx", "orjson", "tenacity"}


def test_imports_in_the_text_of_the_pages_work() -> None:
    lines = {
        line
        for page in pages()
        for line in re.findall(r"`(from mixpanel_async[\w.]* import [\w, ]+)`", page.read_text("utf-8"))
    }
    assert lines
    for line in lines:
        exec(line, {})


@pytest.mark.anyio
async def test_comparison_with_the_official_sdk_is_true() -> None:
    emulator = Emulator("original")
    async with emulator.serve() as server:
        consumer = mixpanel.Consumer(
            people_url=f"{server.url}/engage", events_url=f"{server.url}/track", retry_backoff_factor=0
        )
        # Its retries hold for https.
        consumer._session.mount("http://", consumer._session.get_adapter("https://"))
        official = mixpanel.Mixpanel("any", consumer=consumer)
        emulator.drop_connections(1, apply=True)
        official.people_increment("user-1", {"visits": 1})
        assert emulator.profile("user-1") == {"visits": 2}
        official.track(7, "Signed up")
        assert emulator.requests()[-1].path == "/track"

        async with AsyncMixpanel("any", api_host=server.url) as mp:
            emulator.drop_connections(1, apply=True)
            await mp.people_increment("user-2", {"visits": 1})
            await mp.flush()
            assert mp.stats().uncertain == 1
            assert emulator.profile("user-2") == {"visits": 1}
    assert mixpanel.BufferedConsumer(max_size=2_000)._max_size == 50


def test_alias_of_the_official_sdk_ignores_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(mixpanel.Consumer, "_write_request", lambda _, url, *rest, **options: sent.append(url))
    mixpanel.Mixpanel("any", consumer=mixpanel.Consumer(api_host="api-eu.mixpanel.com")).alias("user-1", "visitor-1")
    assert [url.partition("?")[0] for url in sent] == ["https://api.mixpanel.com/track"]
