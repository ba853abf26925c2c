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
        '    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as browser:\n'
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
# The page runs in the browser SDK: its events come through the proxy, with the device id of the cookie.
SHARED_VISITOR: Final = """
    import json
    from urllib.parse import unquote
    async def view_page():
        assert 'mixpanel.init("0123456789abcdef0123456789abcdef", {api_host: "/mp"});' in (await browser.get("/")).text
        (cookie,) = [unquote(text) for name, text in browser.cookies.items() if name.endswith("_mixpanel")]
        device = json.loads(cookie)["$device_id"]
        properties = {"token": mixpanel.client.token, "distinct_id": "$device:" + device, "$device_id": device}
        sent = {"event": "Page viewed", "properties": properties}
        assert (await browser.post("/mp/track/", json=[sent])).status_code == 200
        return device
    first = await view_page()
    await browser.post("/login")
    await browser.post("/logout")
    second = await view_page()
"""
ONE_VISITOR: Final = """
    assert first != second
    assert EMULATOR.cluster("user-1") == {"user-1", "$device:" + first}
    assert [len(EMULATOR.events(name)) for name in ("Page served", "Page viewed", "Signed in")] == [2, 2, 1]
    served, viewed = ([one["properties"]["distinct_id"] for one in EMULATOR.events(name)]
                      for name in ("Page served", "Page viewed"))
    assert served == viewed == ["user-1", "$device:" + second]
"""
JOINED: Final = """
    assert EMULATOR.resolve("maya@example.com") == EMULATOR.resolve("$device:" + visitor)
    assert len(EMULATOR.events("Page viewed")) == 2
    for name in ("Signed up", "Signed out", "Signed in"):
        assert len(EMULATOR.events(name)) == 1
    assert EMULATOR.profile("maya@example.com")["$email"] == "maya@example.com"
"""

LIFESPAN: Final = "__import__('lifespans').lifespan_of(app)"
AIOHTTP: Final = """
import asyncio
from aiohttp.test_utils import TestClient, TestServer
async with TestClient(TestServer(create_app())) as browser:
"""
DJANGO: Final = """
import unittest
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.conf import settings
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
command = sync_to_async(call_command)
await command("migrate", verbosity=0)
await command("check", fail_level="WARNING")
# The command `test` needs the main thread. A `TestCase` rolls back what it has changed.
run_tests = unittest.TextTestRunner(verbosity=0, failfast=True).run
result = await sync_to_async(lambda: run_tests(unittest.defaultTestLoader.loadTestsFromName("tests")))()
assert result.testsRun == 1 and result.wasSuccessful()
app = application
""" + asgi_visit(
    """
    assert (await browser.get("/")).json() == {"hello": "visitor"}
    account = {"name": "maya", "password": "secret"}
    assert (await browser.post("/signup", data=account)).status_code == 200
    assert (await browser.get("/search")).json() == {"hello": "maya"}
    assert (await browser.post("/logout")).status_code == 200
    assert (await browser.post("/login", data=account)).status_code == 200
    """,
    """
    import wsgi
    from mixpanel_async.integrations.django import mixpanel
    assert callable(wsgi.application)
    await command("report")
    await mixpanel.flush()
    person = EMULATOR.resolve("maya")
    assert {event["event"] for event in EMULATOR.events() if event["properties"]["distinct_id"] == person} == {
        "Page viewed", "Searched", "Signed up", "Signed out", "Signed in", "Report sent"
    }
    assert {"$name", "Joined", "plan"} <= {*EMULATOR.profile("maya")}
    """,
    LIFESPAN,
)
FLASK: Final = """
browser = app.test_client()
assert browser.get("/").json == {"hello": "visitor"}
assert browser.post("/login", data={"email": "maya@example.com"}).status_code == 200
assert browser.get("/").json == {"hello": "maya@example.com"}
assert browser.post("/logout").status_code == 204
mixpanel.close()
assert len({event["properties"]["distinct_id"] for event in EMULATOR.events()}) == 1
"""

CELERY: Final = """
import time
assert charge.apply(args=["user-1", 9.5, time.time()]).successful()
mixpanel.blocking.close()
assert EMULATOR.events("Charged")[0]["properties"]["amount"] == 9.5
assert EMULATOR.profile("user-1") == {"charges": 1}
"""
ARQ: Final = """
from datetime import datetime, timezone
context = {"job_id": "c0ffee0000004000", "enqueue_time": datetime.now(timezone.utc)}
await WorkerSettings.on_startup(context)
await WorkerSettings.functions[0](context, "user-1")
await WorkerSettings.on_shutdown(context)
assert len(EMULATOR.events("Charged")) == 1
"""
LAMBDA: Final = """
import time
from types import SimpleNamespace
context = SimpleNamespace(aws_request_id="c0ffee00", get_remaining_time_in_millis=lambda: 3_000)
now = time.time()
handler({"user": "user-1", "item": "tea", "ordered_at": now, "paid_at": now}, context)
mixpanel.blocking.close()
assert len(EMULATOR.events()) == 1
"""

# Another process gets the next slot.
SLOTS: Final = """
import subprocess, sys
from prometheus_client import generate_latest
async with app.router.lifespan_context(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as browser:
        assert (await browser.post("/orders/7")).json() == {"status": "ok"}
        await app.state.mixpanel.flush()
    lines = generate_latest().decode().splitlines()
    assert [x[-4:] for x in lines if x.startswith("mixpanel_client_records_delivered_total")] == [" 1.0"]
    other = "from pathlib import Path; from slots import take_slot; print(take_slot(Path('.'), 16))"
    assert subprocess.run([sys.executable, "-c", other], capture_output=True, check=True).stdout == b"1\\n"
assert [one["properties"]["number"] for one in EMULATOR.events("Order placed")] == [7]
"""
# A process that ended has left a record in its file.
REST: Final = """
import io
from contextlib import redirect_stdout
main.__globals__["FOLDER"] = Path("missing")
try:
    await main()
except SystemExit as error:
    assert "STATE_DIRECTORY" in str(error)
else:
    raise AssertionError("a missing directory is an error")
main.__globals__["FOLDER"] = FOLDER
left = AsyncMixpanel.from_env(spool=SqliteSpool(FOLDER / "3.db"), api_host="http://127.0.0.1:9", shutdown_timeout=0)
async with left:
    await left.track("user-1", "Order placed")
CLIENTS.remove(left)
with redirect_stdout(io.StringIO()) as printed:
    await main()
assert printed.getvalue() == "3.db 1 delivered, 0 left\\n"
assert len(EMULATOR.events("Order placed")) == 1
"""
SAFE_ORDERS: Final = """
from datetime import datetime, timezone
body = {"placed_at": datetime.now(timezone.utc).isoformat()}
transport = httpx.ASGITransport(app)
async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as browser:
    async with app.router.lifespan_context(app):
        for _ in range(2):
            assert (await browser.post("/orders/o-1", json=body)).json() == {"status": "stored"}
        assert (await browser.post("/orders/not_allowed", json=body)).status_code == 422
    assert (await browser.post("/orders/o-2", json=body)).status_code == 503
assert (len(EMULATOR.raw_events("Order placed")), len(EMULATOR.events("Order placed"))) == (2, 1)
"""
APP_VISITS: Final[dict[str, str]] = {
    "guides/production.md#app.py": "import httpx\n" + SLOTS,
    "guides/production.md#deliver_rest.py": REST,
    "guides/production.md#orders.py": "import httpx\n" + SAFE_ORDERS,
    "guides/frontend.md#shop.py": asgi_visit(SHARED_VISITOR, ONE_VISITOR),
    "guides/frontend.md#api.py": asgi_visit(
        """
        device = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
        assert (await browser.post("/search", headers={"X-Device-Id": device})).status_code == 200
        assert (await browser.post("/search", headers={"X-Device-Id": "user-1"})).status_code == 422
        """,
        "assert EMULATOR.clusters() == [{'$device:' + device}]",
    ),
    "guides/migration.md#shop.py": asgi_visit(
        """
        old = "eaba85c5d68549a1b1cdaa6c42556615"
        await mixpanel.client.track(old, "Page viewed")
        browser.cookies.set("visitor", old, domain="localhost.local")
        assert (await browser.post("/login", params={"user": "user-1"})).status_code == 200
        assert "visitor" not in browser.cookies
        visitor = browser.cookies["mp_visitor"]
        for path in ("/logout", "/login"):
            assert (await browser.post(path, params={"user": "user-2"})).status_code == 200
        """,
        """
        assert EMULATOR.cluster("user-1") == {"user-1", old, visitor}
        assert old not in EMULATOR.cluster("user-2")
        """,
    ),
    "guides/fastapi.md#app.py": asgi_visit(
        SIGN_UP.replace('{"hello": "maya@example.com"}', '{"hello": "user-1"}'),
        JOINED.replace('("maya@example.com")', '("user-1")'),
    ),
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
    "guides/fastapi.md#production_app.py": asgi_visit(
        """
        assert (await browser.get("/")).status_code == 200
        """,
        'assert [event["event"] for event in EMULATOR.events()] == ["Page viewed"]',
    ),
    "guides/fastapi.md#plain_views.py": asgi_visit(
        'assert (await browser.post("/login", params={"user": "user-1"})).status_code == 200',
        """
        assert EMULATOR.profile("user-1")["logins"] == 1
        assert [event["properties"]["distinct_id"] for event in EMULATOR.events("Greeted")] == ["user-1"]
        """,
    ),
    "guides/fastapi.md#purchases.py": asgi_visit(
        """
        assert (await browser.post("/buy")).status_code == 401
        assert (await browser.post("/buy", params={"user": "user-1"})).status_code == 200
        """,
        """
        assert len(EMULATOR.profile("user-1")["$transactions"]) == 1
        assert {event["event"] for event in EMULATOR.events()} == {"Order placed", "Receipt sent"}
        """,
    ),
    "guides/aiohttp.md#app.py": AIOHTTP
    + """
    response = await browser.get("/")
    visitor = response.cookies["mp_visitor"].value
    assert await response.json() == {"hello": "visitor"}
    for path in ("/signup", "/", "/logout", "/login"):
        call = browser.get if path == "/" else browser.post
        response = await call(path, data={"email": "maya@example.com"})
        assert response.status == 200
"""
    + dedent(JOINED),
    "guides/aiohttp.md#app_with_options.py": AIOHTTP
    + """
    assert (await browser.post("/cart/tea")).status == 200
    assert not browser.session.cookie_jar.filter_cookies(browser.make_url("/"))
    response = await browser.post("/cart/cup", cookies={"consent": "yes"})
    assert response.cookies["mp_visitor"]["max-age"] == "2592000"
assert [event["properties"]["item"] for event in EMULATOR.events("Added to cart")] == ["cup"]
assert [event["properties"]["path"] for event in EMULATOR.events("Request")] == ["/cart/{item}"]
""",
    "guides/asgi.md#app.py": asgi_visit(
        """
        assert (await browser.get("/")).json() == {"hello": "visitor"}
        assert (await browser.post("/login")).status_code == 200
        assert (await browser.get("/")).json() == {"hello": "maya@example.com"}
        assert (await browser.post("/logout")).status_code == 200
        """,
        'assert len({event["properties"]["distinct_id"] for event in EMULATOR.events()}) == 1',
    ),
    "guides/asgi.md#litestar_app.py": asgi_visit(
        'assert (await browser.get("/items")).json() == ["tea", "cup"]',
        """
        assert len(EMULATOR.events("Items viewed")) == 1
        assert [event["properties"]["path"] for event in EMULATOR.events("Request")] == ["/items"]
        """,
        LIFESPAN,
    ),
    "guides/asgi.md#plain_app.py": asgi_visit(
        'assert (await browser.get("/")).text == "hello\\n"',
        'assert {event["event"] for event in EMULATOR.events()} == {"Page viewed", "Request"}',
        LIFESPAN,
    ),
    "guides/asgi.md#flask_app.py": FLASK,
    "guides/django.md#asgi.py": DJANGO,
    "guides/workers.md#tasks.py": CELERY,
    "guides/workers.md#taskiq_tasks.py": 'assert len(EMULATOR.events("Charged")) == 1',
    "guides/workers.md#arq_tasks.py": ARQ,
    "guides/workers.md#pool.py": 'assert {len(EMULATOR.events("Row converted")), len(EMULATOR.events())} == {10, 11}',
    "guides/lambda.md#async_function.py": LAMBDA,
    "guides/lambda.md#immediate_function.py": LAMBDA,
    "guides/notebooks.md#callbacks.py": 'assert len(EMULATOR.events("Row read")) == 2',
}
