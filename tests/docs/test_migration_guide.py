"""Migration guide: the code before and after produces the same data, every method is named, and the search works."""

from __future__ import annotations

import inspect
import re
import runpy
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import mixpanel
import pytest
from mixpanel.flags.local_feature_flags import LocalFeatureFlagsProvider
from mixpanel.flags.remote_feature_flags import RemoteFeatureFlagsProvider
from page_snippets import DOCS, Block, blocks_of

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async.emulator import Emulator

PERL = shutil.which("perl")
PAGE = DOCS / "guides/migration.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [block for block in blocks_of(PAGE) if block.language in {"py", "python"}]
# A block for the official SDK, and the block after it.
PAIRS = [(one, two) for one, two in pairwise(BLOCKS) if (one.language, two.language) == ("py", "python")]
# Properties that identify the SDK, or that differ between runs.
OWN = {"token", "time", "$insert_id", "mp_lib", "$lib_version", "$import", "$last_seen"}
SAMPLE = """\
import mixpanel
from mixpanel import MixpanelException, Mixpanel


class Shop:
    def __init__(self, mp: Mixpanel, errors: type[Exception] = mixpanel.MixpanelException) -> None:
        self.mp = mp
        self.errors = errors

    async def paid(self, shops: list[Mixpanel]) -> None:
        self.mp.track("user-1", "Paid")
        await self.mp.people_set("user-1", {"paid": True})
        self.shop.mp.alias("ada", "user-1")
        self.amp.track("user-1", "Paid")


def find(mp: Mixpanel | None, other: None | Mixpanel = None) -> Mixpanel | None:
    return mp or other


async def work(mp: Mixpanel) -> None:
    mp.track("user-1", "Signed up", {"plan": "pro"})
    await mp.people_set("user-1", {"plan": "pro"})
    mp.people_increment("user-1", {"visits": 1})


async def main():
    shop = Shop(mixpanel.Mixpanel("PROJECT_TOKEN"))
    try:
        mp = Mixpanel("PROJECT_TOKEN")
        await work(mp)
        mp.alias("ada", "user-1")
    except MixpanelException as error:
        print("Mixpanel is down", error)
"""
REPLACED = """\
import mixpanel_async
from mixpanel_async import MixpanelException, AsyncMixpanel


class Shop:
    def __init__(self, mp: AsyncMixpanel, errors: type[Exception] = mixpanel_async.MixpanelException) -> None:
        self.mp = mp
        self.errors = errors

    async def paid(self, shops: list[AsyncMixpanel]) -> None:
        await self.mp.track("user-1", "Paid")
        await self.mp.people_set("user-1", {"paid": True})
        await self.shop.mp.alias("ada", "user-1")
        self.amp.track("user-1", "Paid")


def find(mp: AsyncMixpanel | None, other: None | AsyncMixpanel = None) -> AsyncMixpanel | None:
    return mp or other


async def work(mp: AsyncMixpanel) -> None:
    await mp.track("user-1", "Signed up", {"plan": "pro"})
    await mp.people_set("user-1", {"plan": "pro"})
    await mp.people_increment("user-1", {"visits": 1})


async def main():
    shop = Shop(mixpanel_async.AsyncMixpanel("PROJECT_TOKEN"))
    try:
        mp = AsyncMixpanel("PROJECT_TOKEN")
        await work(mp)
        await mp.alias("ada", "user-1")
    except MixpanelException as error:
        print("Mixpanel is down", error)
"""


def left_in(emulator: Emulator) -> dict[str, Any]:
    """Return the content of a project without properties that identify the sender."""
    events = [
        (event["event"], sorted((name, str(value)) for name, value in event["properties"].items() if name not in OWN))
        for event in emulator.events()
    ]
    profiles = {
        who: {name: value for name, value in profile.items() if name not in OWN}
        for who, profile in emulator.profiles().items()
    }
    return {"events": sorted(events), "profiles": profiles, "people": list(map(sorted, emulator.clusters()))}


def run(block: Block, folder: Path) -> None:
    file = folder / "program.py"
    file.write_text(block.code, "utf-8")
    runpy.run_path(str(file), run_name="__main__")


def run_before(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    emulator = Emulator(IdMerge.ORIGINAL)
    make = mixpanel.Consumer.__init__

    with emulator.serve() as server:

        def local(self: mixpanel.Consumer, *arguments: Any, **options: Any) -> None:
            make(self, *arguments, **options)
            for name, url in self._endpoints.items():
                self._endpoints[name] = f"{server.url}/{url.rpartition('/')[2]}"

        monkeypatch.setattr(mixpanel.Consumer, "__init__", local)
        run(block, folder)
    return emulator


def run_after(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    emulator = Emulator(IdMerge.ORIGINAL)
    make = AsyncMixpanel.__init__

    def local(self: AsyncMixpanel, token: str, **options: Any) -> None:
        make(self, token, http_client=asgi_client(emulator.app), **options)

    monkeypatch.setattr(AsyncMixpanel, "__init__", local)
    run(block, folder)
    return emulator


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=[one.key for one, _ in PAIRS])
def test_code_before_and_after_produces_the_same_data(
    before: Block, after: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = left_in(run_before(before, tmp_path, monkeypatch))
    now = left_in(run_after(after, tmp_path, monkeypatch))
    assert then["events"]
    assert now == then


def test_each_block_for_the_official_sdk_has_its_counterpart() -> None:
    assert len(PAIRS) == len([block for block in BLOCKS if block.language == "py"]) == 6


@pytest.mark.parametrize(
    "official",
    [
        mixpanel.Mixpanel,
        mixpanel.Consumer,
        mixpanel.BufferedConsumer,
        LocalFeatureFlagsProvider,
        RemoteFeatureFlagsProvider,
    ],
)
def test_every_method_and_argument_of_the_official_sdk_is_on_the_page(official: type) -> None:
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("| `"))
    # Helpers of the local evaluation, which are not meant for callers.
    helpers = {"lowercase_keys_and_values", "lowercase_only_leaf_nodes"}
    for name, _ in inspect.getmembers(official, callable):
        if not name.startswith("_") and name not in helpers:
            assert re.search(rf"`(\w+\.)?{name}\b", rows), name
    if not official.__module__.startswith("mixpanel.flags"):
        for name in list(inspect.signature(official).parameters)[1:]:
            assert f"{name}=" in rows, name


@pytest.mark.skipif(PERL is None, reason="needs perl")
def test_script_moves_a_sample_file_in_perl(tmp_path: Path) -> None:
    (script,) = (block.code for block in blocks_of(PAGE) if block.title == "move.pl")
    (tmp_path / "move.pl").write_text(script, "utf-8")
    shop = tmp_path / "shop.py"
    shop.write_text(SAMPLE, "utf-8")
    subprocess.run([str(PERL), "-pi", "move.pl", "shop.py"], cwd=tmp_path, check=True, timeout=30)
    assert shop.read_text("utf-8") == REPLACED


def test_search_and_replace_moves_a_sample_file() -> None:
    (script,) = (block.code for block in blocks_of(PAGE) if block.title == "move.pl")
    rules = [
        (search, re.sub(r"\$(\d)", r"\\\1", replacement))
        for search, replacement in re.findall(r"^s/(.+)/(.+)/g?;$", script, re.MULTILINE)
    ]
    assert len(rules) == len(script.splitlines()) == 7
    lines = SAMPLE.splitlines()
    for search, replacement in rules:
        lines = [re.sub(search, replacement, line) for line in lines]
    assert "\n".join(lines) + "\n" == REPLACED
    compile(REPLACED, "shop.py", "exec")
