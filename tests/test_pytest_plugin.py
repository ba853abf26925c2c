"""Tests of the pytest plugin. Each test runs a small test suite that uses it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

# pytester removes modules that its suites import first. Importing these here keeps them.
import trio
from anyio import from_thread

import mixpanel_async.emulator
import mixpanel_async.testing

pytest_plugins = ["pytester"]

PACKAGE = Path(mixpanel_async.__file__).parent
MODES = ["asyncio strict", "asyncio auto", "anyio", "neither"]

# Runs one coroutine function as a test in each of the modes.
HEADER = {
    "asyncio strict": "import pytest\nfrom pytest_asyncio import fixture\npytestmark = pytest.mark.asyncio\n",
    "asyncio auto": "import pytest\nfixture = pytest.fixture\n",
    "anyio": "import pytest\npytestmark = pytest.mark.anyio\nfixture = pytest.fixture\n",
    "neither": "import pytest\n",
}
# Leaving the option unset causes a warning. So does setting it without pytest-asyncio, which makes it unknown.
SCOPE = ["-o", "asyncio_default_fixture_loop_scope=function"]
NEITHER = ["-p", "no:asyncio", "-p", "no:anyio"]
RUNS = {"asyncio strict": 1, "asyncio auto": 1, "anyio": 2, "neither": 1}


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Project that turns warnings into errors, with a fixture `arrives` that checks the events after the test."""
    # Unrelated plugins are disabled because they take seconds to import.
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider -p no:hypothesispytest -p no:respx"
    )
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def arrives(mixpanel_emulator):
            names = []
            yield names
            assert [event["event"] for event in mixpanel_emulator.events()] == names
        """
    )
    return pytester


def run(project: pytest.Pytester, mode: str, text: str) -> pytest.RunResult:
    project.makepyfile(HEADER[mode] + text)
    options = {
        "asyncio strict": [*SCOPE, "-o", "asyncio_mode=strict"],
        "asyncio auto": [*SCOPE, "-o", "asyncio_mode=auto"],
        "anyio": SCOPE,
        "neither": NEITHER,
    }
    return project.runpytest_inprocess(*options[mode])


@pytest.mark.parametrize("mode", MODES[:3])
def test_tracked_events_arrive(project: pytest.Pytester, mode: str) -> None:
    result = run(
        project,
        mode,
        """
async def test_sign_up(arrives, mixpanel_client, mixpanel_emulator):
    await mixpanel_client.track("user-1", "Signed up")
    assert mixpanel_emulator.events() == []
    await mixpanel_client.flush()
    assert mixpanel_emulator.events("Signed up")[0]["properties"]["distinct_id"] == "user-1"
    await mixpanel_client.track("user-1", "Left over")
    arrives += ["Signed up", "Left over"]

async def test_unused_client(mixpanel_client, mixpanel_emulator):
    assert mixpanel_emulator.requests() == []

class TestMethods:
    async def test_method(self, arrives, mixpanel_client):
        mixpanel_client.track_nowait("user-1", "Left over")
        arrives.append("Left over")
""",
    )
    result.assert_outcomes(passed=3 * RUNS[mode])


def test_client_can_be_disabled(project: pytest.Pytester) -> None:
    text = """
@pytest.fixture
def mixpanel_client_options():
    return {"enabled": False}

async def test_app(arrives, mixpanel_client):
    await mixpanel_client.track("user", "Event", {"a": object()})
    await mixpanel_client.alias("a", "b")
    assert mixpanel_client.stats().accepted == 0
"""
    run(project, "anyio", text).assert_outcomes(passed=2)


def test_plugin_works_without_async_plugin(project: pytest.Pytester) -> None:
    result = run(
        project,
        "neither",
        """
import asyncio

def test_own_loop(arrives, mixpanel_client):
    asyncio.run(mixpanel_client.track("user-1", "Left over"))
    arrives.append("Left over")

def test_no_loop(arrives, mixpanel_client):
    mixpanel_client.track_nowait("user-1", "Left over")
    arrives.append("Left over")

def test_loop_of_another_thread(arrives, mixpanel_client, mixpanel_emulator):
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        portal.call(mixpanel_client.track, "user-1", "Viewed")
        portal.call(mixpanel_client.flush)
        assert len(mixpanel_emulator.events()) == 1
        portal.call(mixpanel_client.track, "user-1", "Left over")
    arrives += ["Viewed", "Left over"]

@pytest.fixture
def current_loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    assert asyncio.get_event_loop() is loop
    asyncio.set_event_loop(None)
    loop.close()

def test_current_loop_stays_set(current_loop, mixpanel_client):
    mixpanel_client.track_nowait("user-1", "Left over")
""",
    )
    assert from_thread is not None
    result.assert_outcomes(passed=4)


@pytest.mark.parametrize("mode", MODES[:3])
def test_fixtures_can_use_client_in_teardown(project: pytest.Pytester, mode: str) -> None:
    result = run(
        project,
        mode,
        """
@fixture
async def app(arrives, mixpanel_client):
    await mixpanel_client.track("app", "Started")
    yield
    await mixpanel_client.track("app", "Stopped")
    arrives += ["Started", "Served", "Stopped"]

@fixture
async def app_that_closes(arrives, mixpanel_client):
    async with mixpanel_client:
        yield
    arrives.append("Served")

async def test_app(app, mixpanel_client):
    await mixpanel_client.track("user-1", "Served")

async def test_app_that_closes(app_that_closes, mixpanel_client):
    await mixpanel_client.track("user-1", "Served")
""",
    )
    result.assert_outcomes(passed=2 * RUNS[mode])


def test_event_loop_is_shared_by_several_tests(project: pytest.Pytester) -> None:
    result = run(
        project,
        "asyncio strict",
        """
pytestmark = pytest.mark.asyncio(loop_scope="module")

async def test_first(arrives, mixpanel_client):
    await mixpanel_client.track("user-1", "Left over")
    arrives.append("Left over")

async def test_second(arrives, mixpanel_client):
    import asyncio

    assert [task for task in asyncio.all_tasks() if "mixpanel" in task.get_name()] == []
    await mixpanel_client.track("user-1", "Left over")
    arrives.append("Left over")
""",
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_runner_is_shared_by_several_tests(project: pytest.Pytester, backend: str) -> None:
    result = run(
        project,
        "anyio",
        f"""
@pytest.fixture(scope="module")
def anyio_backend():
    return {backend!r}

@pytest.fixture(scope="module")
async def database(anyio_backend):
    yield

async def test_first(arrives, database, mixpanel_client):
    await mixpanel_client.track("user-1", "Left over")
    arrives.append("Left over")

async def test_second(arrives, database, mixpanel_client):
    await mixpanel_client.track("user-1", "Left over")
    arrives.append("Left over")
""",
    )
    assert trio is not None
    result.assert_outcomes(passed=2)


def test_each_test_has_separate_project(project: pytest.Pytester) -> None:
    result = run(
        project,
        "asyncio auto",
        """
@pytest.mark.parametrize("number", [1, 2])
async def test_alone(number, mixpanel_client, mixpanel_emulator):
    await mixpanel_client.track("user-1", "Viewed")
    await mixpanel_client.flush()
    assert len(mixpanel_emulator.events()) == 1
    mixpanel_emulator.fail_next(500, times=1)
""",
    )
    result.assert_outcomes(passed=2)


def test_ini_option_and_marker_configure_project(project: pytest.Pytester) -> None:
    project.makefile(".ini", pytest=f"{(project.path / 'tox.ini').read_text()}\nmixpanel_id_merge = legacy\n")
    result = run(
        project,
        "asyncio auto",
        """
from mixpanel_async import IdMerge

pytestmark = pytest.mark.mixpanel(token="module")

def test_ini(mixpanel_emulator):
    assert (mixpanel_emulator.id_merge, mixpanel_emulator.token) == (IdMerge.LEGACY, "module")

@pytest.mark.mixpanel(id_merge="original", cluster_limit=2)
class TestMarker:
    async def test_class(self, mixpanel_client, mixpanel_emulator):
        assert (mixpanel_emulator.id_merge, mixpanel_emulator.token) == (IdMerge.ORIGINAL, "module")
        await mixpanel_client.alias("b", "a")
        await mixpanel_client.alias("c", "a")
        assert mixpanel_emulator.cluster("a") == {"a", "b"}

    @pytest.mark.mixpanel(id_merge=IdMerge.SIMPLIFIED)
    def test_closest(self, mixpanel_emulator):
        assert mixpanel_emulator.id_merge is IdMerge.SIMPLIFIED

class TestClient:
    @pytest.fixture
    def mixpanel_client_options(self):
        return {"super_properties": {"plan": "free"}, "shutdown_timeout": 0.0}

    async def test_client_options(self, mixpanel_client, mixpanel_emulator):
        await mixpanel_client.track_immediate("user-1", "Viewed")
        assert mixpanel_emulator.events()[0]["properties"]["plan"] == "free"

    async def test_permanent_failure_does_not_delay_closing(self, mixpanel_client, mixpanel_emulator):
        mixpanel_emulator.fail_next(503, times=1_000_000)
        await mixpanel_client.track("user-1", "Viewed")
""",
    )
    result.assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("id_merge='simple'", "*id_merge must be 'simplified', 'original' or 'legacy', not 'simple'"),
        ("cluster=2", "*@pytest.mark.mixpanel has no argument cluster; it has *choose_canonical, cluster_limit, *"),
        ("'original'", "*@pytest.mark.mixpanel takes only keyword arguments, such as id_merge='original'"),
        ("cluster_limit=1", "*cannot be created with {'cluster_limit': 1}: cluster_limit must be at least 2, not 1"),
        ("service_account=('user',)", "*service_account must be user name, secret and project id: *"),
    ],
)
def test_invalid_option_is_named_in_error(project: pytest.Pytester, option: str, words: str) -> None:
    text = f"@pytest.mark.mixpanel({option})\ndef test_it(mixpanel_emulator): pass\n"
    result = run(project, "neither", text)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])
    result.stdout.no_fnmatch_line("*Traceback*")


PLAIN = """
import pytest

@pytest.mark.mixpanel(id_merge="legacy")
def test_plain(mixpanel_client, mixpanel_emulator):
    assert mixpanel_client.id_merge is mixpanel_emulator.id_merge
    assert mixpanel_client.id_merge.value == "legacy"
"""


MARKED = """
from mixpanel_async import IdMerge, IdentityError
from mixpanel_async.testing import assert_same_person

VISITOR = "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"

@pytest.mark.mixpanel(id_merge="original")
async def test_original(mixpanel_client, mixpanel_emulator):
    assert mixpanel_client.id_merge is mixpanel_emulator.id_merge is IdMerge.ORIGINAL
    await mixpanel_client.bind(device_id=VISITOR).sign_in("user-1")
    assert_same_person(mixpanel_emulator, VISITOR, "user-1")

@pytest.mark.mixpanel(id_merge="simplified")
async def test_simplified(mixpanel_client, mixpanel_emulator):
    with pytest.raises(IdentityError):
        await mixpanel_client.alias("user-1", VISITOR)
    await mixpanel_client.bind(device_id=VISITOR).sign_in("user-1")
    await mixpanel_client.flush()
    assert_same_person(mixpanel_emulator, "$device:" + VISITOR, "user-1")

async def test_without(mixpanel_client, mixpanel_emulator):
    assert (mixpanel_client.id_merge, mixpanel_emulator.id_merge) == (None, IdMerge.SIMPLIFIED)

@pytest.mark.mixpanel(service_account=("user", "secret", "1"), token="project")
async def test_credentials(mixpanel_client, mixpanel_emulator):
    await mixpanel_client.track("user-1", "Paid")
    await mixpanel_client.flush()
    assert [request.path for request in mixpanel_emulator.requests()] == ["/import"]
    assert len(mixpanel_emulator.events("Paid")) == 1

@pytest.mark.mixpanel(enabled=False)
async def test_disabled(mixpanel_client):
    assert not mixpanel_client.enabled

@pytest.mark.mixpanel(invalid="drop")
async def test_invalid(mixpanel_client):
    await mixpanel_client.track("user-1", "Paid", {"a": object()})
    assert mixpanel_client.stats().losses == {"invalid": 1}
"""


@pytest.mark.parametrize("mode", MODES[:3])
def test_marker_sets_emulator_and_client_alike(project: pytest.Pytester, mode: str) -> None:
    project.makepyfile(HEADER[mode] + MARKED, test_plain=PLAIN)
    result = project.runpytest_inprocess(*SCOPE, "-o", f"asyncio_mode={'auto' if mode == 'asyncio auto' else 'strict'}")
    result.assert_outcomes(passed=6 * RUNS[mode] + 1)


# Workers take a second to start, so modes that can share a run do.
@pytest.mark.parametrize("modes", [("asyncio strict", "anyio"), ("asyncio auto",)], ids=" and ".join)
def test_marker_sets_emulator_and_client_alike_in_workers(project: pytest.Pytester, modes: tuple[str, ...]) -> None:
    files = {f"test_{mode.replace(' ', '_')}": HEADER[mode] + MARKED for mode in modes}
    project.makepyfile(**files, test_plain=PLAIN)
    option = f"asyncio_mode={'auto' if 'asyncio auto' in modes else 'strict'}"
    result = project.runpytest_inprocess(*SCOPE, "-o", option, "-n", "2")
    result.assert_outcomes(passed=sum(6 * RUNS[mode] for mode in modes) + 1)


def test_ini_option_sets_the_client_too(project: pytest.Pytester) -> None:
    project.makefile(".ini", pytest=f"{(project.path / 'tox.ini').read_text()}\nmixpanel_id_merge = legacy\n")
    text = "def test_it(mixpanel_client): assert mixpanel_client.id_merge.value == 'legacy'"
    run(project, "neither", text).assert_outcomes(passed=1)


def test_invalid_option_of_the_client_is_named_in_error(project: pytest.Pytester) -> None:
    text = "@pytest.mark.mixpanel(invalid='ignore')\ndef test_it(mixpanel_client): pass\n"
    result = run(project, "neither", text)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*mixpanel_client cannot be created: *'ignore'*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_failed_assertion_explains_difference(project: pytest.Pytester) -> None:
    result = run(
        project,
        "asyncio strict",
        """
from mixpanel_async.testing import assert_tracked

async def test_sign_up(mixpanel_client, mixpanel_emulator):
    await mixpanel_client.track("user-1", "Signed up", {"plan": "pro"})
    await mixpanel_client.flush()
    assert_tracked(mixpanel_emulator, "Signed up", distinct_id="user-1", properties={"plan": "free"})
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       assert_tracked(*",
            "E       AssertionError: expected one 'Signed up' for 'user-1' with {'plan': 'free'}; got:",
            "E         - 'Signed up' for 'user-1', but plan is 'pro' instead of 'free'",
        ]
    )
    result.stdout.no_fnmatch_line("*testing.py:*")


def test_plugin_without_emulator_extra_fails_only_its_fixtures(project: pytest.Pytester) -> None:
    project.makeconftest("import sys\nsys.modules.update(starlette=None, uvicorn=None)")
    project.makepyfile("def test_nothing(): pass\n\ndef test_emulator(mixpanel_emulator): pass\n")
    result = project.runpytest_subprocess(*NEITHER)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(['E *ImportError: the emulator needs an extra: run pip install ".[[]emulator[]]"*'])


def test_plugin_import_loads_no_other_module() -> None:
    probe = (
        "import pytest, sys; before = set(sys.modules); import mixpanel_async_pytest; print(*set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["mixpanel_async_pytest"]


def test_installed_plugin_matches_source() -> None:
    """Check that the editable installation is up to date: it holds a copy of the plugin."""
    source = PACKAGE / "_pytest_plugin.py"
    if not source.exists():
        pytest.skip("the package is installed without its source")
    installed = importlib.util.find_spec("mixpanel_async_pytest")
    assert installed is not None
    assert installed.origin is not None
    assert Path(installed.origin).read_text() == source.read_text()


def test_plain_test_delivers_with_blocking_methods(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
from mixpanel_async.testing import assert_tracked

def test_plain(mixpanel_client, mixpanel_emulator):
    with mixpanel_client.in_thread() as mp:
        mp.track("user-1", "Paid")
        mp.flush()
        assert_tracked(mixpanel_emulator, "Paid", distinct_id="user-1")
"""
    )
    project.runpytest_subprocess(*NEITHER).assert_outcomes(passed=1)
