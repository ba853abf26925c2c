"""Run every snippet of the README against the emulator on both event loops."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

import mixpanel_async
from mixpanel_async import AsyncMixpanel, BatchPolicy, ConfigurationError, IdMerge, RetryPolicy, SqliteSpool
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import LocalFlags
from mixpanel_async.outbox import RedisOutbox

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Requests of a browser to the web apps.
ASGI_VISIT = """
import httpx
async with app.router.lifespan_context(app):
    client = mixpanel.client
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as browser:
        for method, path in (("GET", "/"), ("POST", "/signup"), ("POST", "/logout")):
            assert (await browser.request(method, path)).status_code == 200
assert EMULATOR.cluster("user-1") == {"user-1", EMULATOR.events("Signed up")[0]["properties"]["$device_id"]}
"""
FRONTEND_VISIT = """
import httpx
async with app.router.lifespan_context(app):
    client = mixpanel.client
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as browser:
        page = await browser.get("/")
        assert 'mixpanel.init("PROJECT_TOKEN", {api_host: "/mp"});' in page.text
        assert browser.cookies["mp_visitor"] in browser.cookies["mp_PROJECT_TOKEN_mixpanel"]
        assert (await browser.get("/mp/unknown")).status_code == 404
"""
AIOHTTP_VISIT = """
import anyio.to_thread, asyncio
from aiohttp.test_utils import TestClient, TestServer
async def visit():
    global client
    async with TestClient(TestServer(app)) as browser:
        client = mixpanel.client
        assert (await browser.get("/")).status == 200
# aiohttp supports only asyncio.
await anyio.to_thread.run_sync(asyncio.run, visit())
assert len(EMULATOR.events("Page viewed")) == 1
"""
WRAPPED_VISIT = """
import httpx
from lifespans import lifespan_of
async with lifespan_of(app):
    client = mixpanel.client
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as browser:
        assert (await browser.get("/")).status_code == 200
assert len(EMULATOR.events("Page viewed")) == 1
"""
# Parts of a Django project around the snippet of the README.
DJANGO_SETTINGS = """
SECRET_KEY = "secret"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
"""
DJANGO_URLS = """
from django.http import HttpResponse
from django.urls import path

def sync_view(request):
    home(request)
    return HttpResponse()

async def async_view(request):
    await search(request)
    return HttpResponse()

urlpatterns = [path("home", sync_view), path("search", async_view)]
"""
DJANGO_PROGRAM = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
"""
DJANGO_VISITS = """
from django.test import Client
for url in ("/home", "/search"):
    assert Client().get(url).status_code == 200
"""
CELERY_VISIT = """
charge("user-1", 9.5)
client = mixpanel.client
mixpanel.blocking.close()
"""
TASKIQ_VISIT = """
import anyio.to_thread, asyncio
async def visit():
    global client
    await broker.startup()
    task = await charge.kiq("user-1")
    assert not (await task.wait_result()).is_err
    client = broker.middlewares[0].client
    await broker.shutdown()
# taskiq supports only asyncio.
await anyio.to_thread.run_sync(asyncio.run, visit())
"""
ARQ_VISIT = """
context = {}
await WorkerSettings.on_startup(context)
await WorkerSettings.functions[0](context, "user-1")
await WorkerSettings.on_shutdown(context)
client = context["mixpanel"]
"""
LAMBDA_VISIT = """
for one in (handler, async_handler):
    assert one({"user": "user-1"}, None) == {"statusCode": 200}
client = mixpanel.client
assert client.stats().delivered == 2
mixpanel.blocking.close()
"""
# Words of a snippet, and the code that uses it.
VISITS = {
    "TrackingProxy": FRONTEND_VISIT,
    "FastAPI(": ASGI_VISIT,
    "web.Application(": AIOHTTP_VISIT,
    "mixpanel.wrap(": WRAPPED_VISIT,
    "integrations.celery": CELERY_VISIT,
    "integrations.taskiq": TASKIQ_VISIT,
    "class WorkerSettings": ARQ_VISIT,
    "integrations.aws_lambda": LAMBDA_VISIT,
}
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
DJANGO_SNIPPET = next(snippet for snippet in SNIPPETS if "INSTALLED_APPS" in snippet)
SNIPPETS.remove(DJANGO_SNIPPET)
# URL of the snippets with a queue in Redis.
QUEUE = "redis://queue:6379/0"


@pytest.mark.anyio
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
async def test_readme_snippet_runs(
    snippet: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, anyio_backend_name: str
) -> None:
    if QUEUE in snippet:
        snippet = snippet.replace(QUEUE, request.getfixturevalue("redis_server").url)
        if anyio_backend_name == "trio":
            code = compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with pytest.raises(ConfigurationError, match="asyncio"):
                await eval(code, {"__name__": "__main__"})
            return
    emulator = Emulator(IdMerge.SIMPLIFIED if "SIMPLIFIED" in snippet else IdMerge.ORIGINAL)
    init = AsyncMixpanel.__init__

    def offline(self: AsyncMixpanel, token: str, **options: Any) -> None:
        """Connect clients of the real Mixpanel to the emulator, so that nothing leaves the machine."""
        if "http_client" not in options and "api_host" not in options:
            options["http_client"] = asgi_client(emulator.app)
        init(self, token, **options)

    monkeypatch.setattr(AsyncMixpanel, "__init__", offline)
    if "def test_" in snippet:
        # The snippet is a test: pass values in place of its fixtures.
        snippet += "\nasync with EMULATOR.client() as client:\n    await test_sign_up(client, EMULATOR)\n"
    snippet += next((visit for words, visit in VISITS.items() if words in snippet), "")
    code = compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    namespace: dict[str, Any] = {"EMULATOR": emulator, "__name__": "__main__"}
    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, namespace)
    else:
        # A program without a running event loop.
        await anyio.to_thread.run_sync(eval, code, namespace)
    made = [value for value in namespace.values() if isinstance(value, AsyncMixpanel)]
    assert made
    for client in made:
        stats = client.stats()
        dropped = stats.dropped - stats.losses.get("invalid", 0)
        assert (stats.failed, dropped, stats.uncertain, stats.pending) == (0, 0, 0, 0)


def test_django_snippet_runs(tmp_path: Path) -> None:
    """The settings become a module; the rest runs as the root of the URLs."""
    settings, rest = DJANGO_SNIPPET.split("# views.py")
    views, commands = rest.split("# asgi.py, for ASGI servers")
    (tmp_path / "settings.py").write_text(settings.replace("..., ", "") + DJANGO_SETTINGS)
    (tmp_path / "urls.py").write_text(views + DJANGO_URLS)
    (tmp_path / "program.py").write_text(DJANGO_PROGRAM + commands + DJANGO_VISITS)
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as mixpanel:
        environment = {**os.environ, "MIXPANEL_API_HOST": mixpanel.url}
        subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, check=True, timeout=20)
    for name in ("Page viewed", "Searched", "Report sent"):
        assert len(emulator.events(name)) == 1


def test_console_commands_are_in_the_readme() -> None:
    assert 'pip install -e ".[demo]" && mixpanel-async demo\n' in README
    assert 'pip install -e ".[dev]" && pytest\n' in README


@pytest.mark.parametrize("options", [BatchPolicy, RetryPolicy, SqliteSpool, LocalFlags])
def test_every_policy_option_is_in_the_readme(options: type) -> None:
    heading = README.index(f"\n`{options.__name__}(")
    table = README[heading : README.index("\n\n", README.index("\n\n", heading) + 2)]
    for name in inspect.signature(options).parameters:
        assert f"\n| `{name}` |" in table


def test_every_option_of_the_queue_is_in_the_readme() -> None:
    heading = README.index("\n`RedisOutbox(")
    table = README[heading : README.index("\n\n", README.index("\n\n", heading) + 2)]
    for name in inspect.signature(RedisOutbox).parameters:
        assert f"`{name}`" in table


def test_every_client_option_is_in_the_readme() -> None:
    options = inspect.signature(AsyncMixpanel).parameters.values()
    names = {one.name for one in options if one.kind is one.KEYWORD_ONLY} - {"_environment"}
    for name in names:
        assert f"| `{name}` |" in README


def test_version_is_in_the_changelog_and_dependencies_are_as_documented() -> None:
    assert f"## [{mixpanel_async.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    # Read the project file, because the metadata of an editable installation may be out of date.
    found = re.search(
        r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    needed = set(re.findall(r'^    "([a-z0-9-]+)', found[1], re.MULTILINE))
    assert needed == {"anyio", "certifi", "httpcore", "httpx", "orjson", "tenacity"}


def test_imports_in_the_text_of_the_readme_work() -> None:
    imports = sorted(set(re.findall(r"`(from mixpanel_async[\w.]* import \w+)`", README)))
    assert len(imports) >= 4
    for line in imports:
        exec(line, {})
    for name in ("starlette", "aiohttp", "asgi"):
        exec(f"from mixpanel_async.integrations.{name} import current_mixpanel", {})
