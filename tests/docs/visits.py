"""Uses of the programs on the pages: requests to web apps, files that programs read, modules that others import.

Keys are those of `Block.key`: a page relative to `docs/`, and the title or the number of the block.
"""

from __future__ import annotations

from typing import Final

from app_visits import APP_VISITS

# A visitor of the shop signs up.
SHOP: Final = """
import httpx
async with app.router.lifespan_context(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as browser:
        assert (await browser.get("/")).json() == {"hello": "visitor"}
        assert (await browser.post("/signup", params={"user": "user-3"})).json() == {"hello": "user-3"}
        assert (await browser.get("/")).json() == {"hello": "user-3"}
assert len([event for event in EMULATOR.events() if event["properties"]["distinct_id"] == "user-3"]) == 3
"""

# Code that uses a program after it ran. It sees the names of the program, `EMULATOR` and `CLIENTS`, and may await.
VISITS: Final[dict[str, str]] = {
    **APP_VISITS,
    "guides/observability.md#app.py": """
import httpx
async with app.router.lifespan_context(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as browser:
        assert (await browser.post("/orders")).json() == {"status": "ok"}
        await mp.flush()
        metrics = (await browser.get("/metrics/")).raise_for_status().text
assert "mixpanel_client_records_delivered_total" in metrics
""",
    "README.md#shop.py": SHOP,
    "README.md#site_of_shop.py": """
import httpx
async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://shop.example") as browser:
    assert (await browser.get("/")).text == "hello"
    # The client is opened by the server; without one, each request ends with a delivery.
assert [event["event"] for event in EMULATOR.events()] == ["Page viewed"]
""",
    "tutorial.md#shop.py": SHOP,
}

# Modules of a page, and the block whose program imports them. They are not run as programs.
IMPORTED: Final[dict[str, str]] = {
    "guides/django.md#settings.py": "guides/django.md#asgi.py",
    "guides/django.md#urls.py": "guides/django.md#asgi.py",
    "guides/django.md#wsgi.py": "guides/django.md#asgi.py",
    "guides/django.md#shop/models.py": "guides/django.md#asgi.py",
    "guides/django.md#shop/management/commands/report.py": "guides/django.md#asgi.py",
    "guides/django.md#tests.py": "guides/django.md#asgi.py",
    "guides/lambda.md#lambda_function.py": "guides/lambda.md#invoke.py",
    "guides/production.md#slots.py": "guides/production.md#app.py",
}

# Files that the programs of a page read.
FILES: Final[dict[str, dict[str, str]]] = {}

# Variables that the programs of a page read.
ENVIRONMENT: Final[dict[str, dict[str, str]]] = {
    "README.md": {"MIXPANEL_ID_MERGE": "simplified"},
    "tutorial.md": {"MIXPANEL_ID_MERGE": "simplified"},
    "guides/django.md": {"MIXPANEL_ID_MERGE": "simplified"},
    # The metrics get any free port. The directory exists, as systemd makes it.
    "guides/production.md": {"METRICS_PORT": "0", "STATE_DIRECTORY": "."},
}

# Programs that send nothing, such as one that validates settings; all others must reach the emulator or make a client.
SILENT: Final[frozenset[str]] = frozenset(
    {
        "cookbook.md#26",
        "guides/identity-tools.md#graph.py",
        "guides/importing.md#check.py",
        "guides/outbox.md#cluster_queue.py",
        "guides/outbox.md#drain.py",
        "guides/outbox.md#sentinel_queue.py",
        "guides/production.md#fsync.py",
        "guides/production.md#gunicorn_worker.py",
        "guides/production.md#instance.py",
        "guides/properties.md#3",
        "guides/properties.md#4",
    }
)

# Programs that lose records on purpose, and the reasons.
LOSSES: Final[dict[str, list[str]]] = {
    "cookbook.md#7": ["before_send"],
    "cookbook.md#9": ["rejected"],
    "cookbook.md#10": ["invalid"],
    "cookbook.md#21": ["before_send"],
    "cookbook.md#23": ["invalid"],
    "guides/testing.md#test_faults.py": ["exhausted"],
    "guides/configuration.md#3": ["invalid"],
    "guides/observability.md#1": ["invalid"],
    "guides/observability.md#2": ["invalid"],
    "guides/observability.md#3": ["invalid"],
}
