"""Take the pictures of the documentation: the live view of the emulator, and the output of the demo.

    python -m tools.screenshots

Writes PNG files to `docs/assets`. Needs the extra `dev` and Chromium, `/usr/bin/chromium` or the path in `CHROMIUM`.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from playwright.async_api import async_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

ASSETS: Final = Path(__file__).parents[1] / "docs" / "assets"
CHROMIUM: Final = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SIZE_LIMIT: Final = 150_000
LAPTOP: Final = "7c39dc98-5b0e-4a8e-9d1f-2f6a1c0b7e44"
PHONE: Final = "1db4d9ca-83f7-4c55-8a3e-6f0d9b2c7a10"
LAST_SECTION: Final = "Profile"


async def fill(mp: AsyncMixpanel) -> None:
    """Send the events, profiles and identity calls of the first pictures."""
    for number in range(6):
        await mp.track(f"user-{number + 2}", "Report opened", {"pages": number + 1, "format": "pdf"})
    await mp.people_set("user-2", {"$name": "Grace", "$email": "grace@example.com", "plan": "free"})
    await mp.group_set("company", "example-ltd", {"$name": "Example Ltd", "seats": 25})
    await mp.track(LAPTOP, "Page viewed", {"page": "/pricing", "$browser": "Firefox"})
    await mp.flush()
    await mp.identify("maya@example.com", LAPTOP)
    await mp.track("maya@example.com", "Signed up", {"plan": "free", "company": "example-ltd"})
    await mp.people_set("maya@example.com", {"$name": "Maya", "$email": "maya@example.com", "plan": "free"})
    await mp.track(PHONE, "Page viewed", {"page": "/login", "$browser": "Safari"})
    await mp.flush()
    await mp.identify("maya@example.com", PHONE)
    await mp.track("maya@example.com", "Project created", {"template": "blank", "members": ["ada", "grace"]})
    await mp.flush()


async def fail(mp: AsyncMixpanel, emulator: Emulator) -> None:
    """Make an identity call that joins nothing, and a request that fails once."""
    # The device is Maya's, so that Mixpanel reports success and joins nothing.
    await mp.identify("user-2", PHONE)
    emulator.fail_next(status=503, times=1)
    await mp.track("user-2", "Report shared", {"channel": "email"})
    await mp.flush()


async def shoot(page: Page, name: str) -> None:
    """Write a picture of a page."""
    file = ASSETS / name
    await page.screenshot(path=file)
    size = file.stat().st_size
    if size > SIZE_LIMIT:
        sys.exit(f"{file} has {size} bytes; the limit is {SIZE_LIMIT}")
    print(f"{file.name}: {size} bytes")


async def live_view(browser: Browser) -> None:
    """Take the pictures of the live view."""
    emulator = Emulator(IdMerge.ORIGINAL)
    async with emulator.serve() as server, AsyncMixpanel("demo", api_host=server.url) as mp:
        await fill(mp)
        page = await browser.new_page(viewport={"width": 1180, "height": 560}, color_scheme="light")
        await page.goto(f"{server.url}/#/events")
        await page.locator("#event-rows").get_by_text("Project created").first.click()
        await page.get_by_text("template").first.wait_for()
        await shoot(page, "live-events.png")
        await page.goto(f"{server.url}/#/people")
        await page.locator("#people-rows li").filter(has_text="Maya").click()
        await shoot(page, "live-people.png")
        await fail(mp, emulator)
        await page.goto(f"{server.url}/#/identity")
        await page.locator("#identity-cards li").first.wait_for()
        await shoot(page, "live-identity.png")
        await page.goto(f"{server.url}/#/requests")
        await page.locator("#requests").get_by_text("503").first.wait_for()
        await page.get_by_role("button", name="Dismiss").click()
        await shoot(page, "live-requests.png")
        await page.close()


def demo_output() -> list[str]:
    """Run the demo, and return its lines with their colours, without those of the progress bar."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIXPANEL_")}
    command = [str(Path(sys.executable).with_name("mixpanel-async")), "demo"]
    done = subprocess.run(  # noqa: S603  a fixed command
        command, env={**environment, "FORCE_COLOR": "1", "COLUMNS": "100"}, capture_output=True, check=True
    )
    lines: list[str] = []
    for line in done.stdout.decode().splitlines():
        shown = re.sub(r"\x1b\[(\?25[lh]|2K|\d*A)|\r", "", re.split(r"\x1b\[2K", line)[-1])
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
        if not plain.startswith("delivered "):
            lines.append(shown)
        if plain == LAST_SECTION:
            return lines[:-1]
    sys.exit(f"the demo prints no line {LAST_SECTION!r}")


async def demo(browser: Browser) -> None:
    """Take the picture of the demo's output in a terminal."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    for line in demo_output():
        console.print(Text.from_ansi(line))
    style = "margin:0;padding:16px 20px;font:12px/1.35 'DejaVu Sans Mono',monospace"
    html = console.export_html(
        theme=MONOKAI,
        inline_styles=True,
        code_format=f'<pre style="{style};color:#d9d9d9;background:#0c0c0c">{{code}}</pre>',
    )
    page = await browser.new_page(viewport={"width": 720, "height": 400})
    await page.set_content(f'<body style="margin:0;background:#0c0c0c">{html}</body>')
    box = await page.locator("pre").first.bounding_box()
    assert box is not None
    await page.set_viewport_size({"width": 720, "height": int(box["height"])})
    await shoot(page, "demo.png")
    await page.close()


async def main() -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        await live_view(browser)
        await demo(browser)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
