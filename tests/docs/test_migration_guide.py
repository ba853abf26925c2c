"""Migration guide in the README: the code before and after produces the same data, and both are executed."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import mixpanel
import pytest

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async.emulator import Emulator

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
GUIDE = README.partition("## Moving over\n")[2].partition("### What differs")[0]
PAIRS = [
    (section.partition("\n")[0], *re.findall(r"```py\n(.*?)```.*?```python\n(.*?)```", section, re.DOTALL)[0])
    for section in GUIDE.split("### ")
    if "```py\n" in section
]
# Properties that identify the SDK, or that differ between runs.
OWN = {"token", "time", "$insert_id", "mp_lib", "$lib_version", "$import", "$last_seen"}


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


def run_before(snippet: str, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    emulator = Emulator(IdMerge.ORIGINAL)
    make = mixpanel.Consumer.__init__

    with emulator.serve() as server:

        def local(self: mixpanel.Consumer, *arguments: Any, **options: Any) -> None:
            make(self, *arguments, **options)
            for name, url in self._endpoints.items():
                self._endpoints[name] = f"{server.url}/{url.rpartition('/')[2]}"

        monkeypatch.setattr(mixpanel.Consumer, "__init__", local)
        exec(compile(snippet, "README.md", "exec"), {})
    return emulator


async def run_after(snippet: str, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    emulator = Emulator(IdMerge.ORIGINAL)
    make = AsyncMixpanel.__init__

    def local(self: AsyncMixpanel, token: str, **options: Any) -> None:
        make(self, token, http_client=asgi_client(emulator.app), **options)

    monkeypatch.setattr(AsyncMixpanel, "__init__", local)
    await eval(compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {})
    return emulator


def test_guide_covers_every_method_of_the_official_sdk() -> None:
    titles = [title for title, _, _ in PAIRS]
    assert titles == [
        "From `Mixpanel`",
        "From `Consumer`",
        "From `BufferedConsumer`",
        "From threads around it",
        "Imports, merges and service accounts",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(("title", "before", "after"), PAIRS, ids=[title for title, _, _ in PAIRS])
async def test_code_before_and_after_produces_the_same_data(
    title: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = left_in(run_before(before, monkeypatch))
    now = left_in(await run_after(after, monkeypatch))
    assert then["events"]
    assert now == then
