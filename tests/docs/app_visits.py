"""Requests of a browser to the apps on the pages of the guides, and calls of their tasks and handlers."""

from __future__ import annotations

from textwrap import dedent, indent
from typing import Final


def asgi_visit(requests: str, checks: str, lifespan: str = "app.router.lifespan_context(app)") -> str:
    """Return a visit of an ASGI app.

    Args:
        requests: code that uses `browser` while the app runs.
        checks: code that runs after the end of the app.
        lifespan: expression of a context manager in which the app runs.
    """
    return (
        "import httpx\n"
        f"async with {lifespan}:\n"
        "    transport = httpx.ASGITransport(app)\n"
        '    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as browser:\n'
        f"{indent(dedent(requests).strip(), ' ' * 8)}\n"
        f"{dedent(checks)}"
    )


SIGN_UP: Final = """
    assert (await browser.get("/")).json() == {"hello": "visitor"}
    visitor = browser.cookies["mp_visitor"]
    assert (await browser.post("/signup", json={"email": "maya@example.com"})).status_code == 200
    assert (await browser.get("/")).json() == {"hello": "maya@example.com"}
    assert (await browser.post("/logout")).status_code == 200
    assert (await browser.post("/login", json={"email": "maya@example.com"})).status_code == 200
"""
JOINED: Final = """
    assert EMULATOR.resolve("maya@example.com") == EMULATOR.resolve("$device:" + visitor)
    assert len(EMULATOR.events("Page viewed")) == 2
    for name in ("Signed up", "Signed out", "Signed in"):
        assert len(EMULATOR.events(name)) == 1
    assert EMULATOR.profile("maya@example.com")["$email"] == "maya@example.com"
"""

APP_VISITS: Final[dict[str, str]] = {
    "guides/fastapi.md#app.py": asgi_visit(SIGN_UP, JOINED),
    "guides/fastapi.md#app_with_options.py": asgi_visit(
        """
        assert (await browser.post("/cart/tea")).status_code == 200
        assert "mp_visitor" not in browser.cookies
        browser.cookies["consent"] = "yes"
        assert "domain=shop.example" in (await browser.post("/cart/cup")).headers["set-cookie"].lower()
        """,
        """
        assert [event["properties"]["item"] for event in EMULATOR.events("Added to cart")] == ["cup"]
        assert [event["properties"]["path"] for event in EMULATOR.events("Request")] == ["/cart/{item}"]
        """,
    ),
    "guides/fastapi.md#app_with_lifespan.py": asgi_visit(
        'assert (await browser.get("/report")).status_code == 200',
        'assert {event["event"] for event in EMULATOR.events()} == {"App started", "Report opened"}',
    ),
}
