"""The reference is what the code declares, and names everything that users can use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

import mixpanel_async
from mixpanel_async import AsyncMixpanel, DropReason
from mixpanel_async._http.certificates import CERTIFICATE_VARIABLES
from mixpanel_async._spool import schema
from mixpanel_async.cli.identity.repair import journal, plan_file
from mixpanel_async.cli.importing import checkpoint
from mixpanel_async.emulator.http.control_api import CONTROLS, VIEWS
from mixpanel_async.emulator.storage import store
from mixpanel_async.integrations.otel import WorkerMetrics
from mixpanel_async.outbox import MemoryOutbox, redis_scripts
from mixpanel_async.worker import Worker
from tools.reference.api import API_PAGES, names_on_pages
from tools.reference.commands import arguments_of, commands, options_of
from tools.reference.emulator_http import CONTROL_TEXTS, ENDPOINT_TEXTS, VIEW_TEXTS, endpoints
from tools.reference.environment import NETWORK, VARIABLES
from tools.reference.log_events import log_calls
from tools.reference.metrics import client_instruments, worker_instruments
from tools.reference.pages import FOLDER, PAGES, outdated

PACKAGE = Path(mixpanel_async.__file__).parent


@cache
def text_of(name: str) -> str:
    """Return a page of the reference."""
    return (FOLDER / name).read_text(encoding="utf-8")


def test_generated_pages_are_up_to_date() -> None:
    assert outdated() == [], "run: python -m tools.reference"


def test_every_page_of_the_folder_is_generated_and_in_the_navigation() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)
    configuration = (FOLDER.parents[1] / "zensical.toml").read_text(encoding="utf-8")
    assert set(re.findall(r'"reference/([\w-]+\.md)"', configuration)) == set(PAGES)


def public_names() -> Iterator[tuple[str, str]]:
    """Yield module and name of everything that `__all__` of a public module lists."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("mixpanel_async", *path.relative_to(PACKAGE).with_suffix("").parts)
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        if "\n__all__" in path.read_text(encoding="utf-8"):
            module = ".".join(part for part in parts if part != "__init__")
            for name in import_module(module).__all__:
                yield module, name


def test_every_public_name_has_an_entry() -> None:
    directives = {found for name in PAGES for found in re.findall(r"^::: (\S+)$", text_of(name), re.MULTILINE)}
    names = {f"{module}.{name}" for module, name in public_names()}
    assert len(names) > 100
    assert names == directives


def test_names_are_on_one_page_each() -> None:
    found = [*names_on_pages()]
    assert len(found) == len(set(found))
    assert set(API_PAGES) <= set(PAGES)


def test_every_public_method_of_the_client_has_an_entry() -> None:
    (members,) = re.findall(r"members: \[(.*)\]", text_of("client.md"))
    public = {name for name in dir(AsyncMixpanel) if not name.startswith("_")}
    # `token` and the like are set by the constructor.
    assert public <= set(members.split(", "))


def test_every_command_with_its_options_and_arguments_is_listed() -> None:
    page = text_of("commands.md")
    found = [*commands()]
    assert len(found) > 20
    for command in found:
        start = page.index(f"\n## {command.path}\n")
        end = page.find("\n## ", start + 1)
        section = page[start : end if end > 0 else len(page)]
        for option in options_of(command):
            for name in (*option.opts, *option.secondary_opts):
                assert f"`{name}`" in section, (command.path, name)
            assert option.help, (command.path, option.name)
        for argument in arguments_of(command):
            assert argument.help, (command.path, argument.name)


def strings_of_the_package() -> Iterator[str]:
    """Yield the string constants of the modules that name a variable, docstrings included."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "MIXPANEL_" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


class _Variables(dict[str, str]):
    """Variables that remember what was read."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def test_every_environment_variable_is_listed() -> None:
    account = ("SERVICE_ACCOUNT_USERNAME", "SERVICE_ACCOUNT_SECRET", "PROJECT_ID")
    variables = _Variables({"MIXPANEL_TOKEN": "token", **{f"MIXPANEL_{name}": "1" for name in account}})
    AsyncMixpanel.from_env(variables)
    named = {name for text in strings_of_the_package() for name in re.findall(r"\bMIXPANEL_[A-Z_]*[A-Z]\b", text)}
    of_commands = {
        parameter.envvar
        for command in commands()
        for parameter in (*options_of(command), *arguments_of(command))
        if parameter.envvar
    }
    assert {one.name for one in VARIABLES} == variables.read | named | of_commands
    network = [name for one in NETWORK for name in one.name.split(", ")]
    assert [name for name in network if name in CERTIFICATE_VARIABLES] == [*CERTIFICATE_VARIABLES]
    page = text_of("environment.md")
    for name in (*(one.name for one in VARIABLES), *network):
        assert f"`{name}`" in page


def test_variables_set_options_that_exist() -> None:
    options = {one.option for one in VARIABLES if one.option}
    assert options <= set(AsyncMixpanel.__init__.__annotations__)


def test_names_of_worker_metrics_are_those_of_the_exporter() -> None:
    """Those of the client are compared in `tests/integrations/test_prometheus.py`."""
    provider = MeterProvider([PrometheusMetricReader()])
    worker = Worker(MemoryOutbox(), "token")
    WorkerMetrics(provider).watch(worker)
    scraped = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    provider.shutdown()
    assert {name for name in scraped if name.startswith("mixpanel_")} == {
        one.prometheus for one in worker_instruments()
    }


def test_every_metric_is_listed() -> None:
    instruments = [*client_instruments(), *worker_instruments()]
    assert len(instruments) > 30
    for one in instruments:
        assert f"| `{one.name}`<br>`{one.prometheus}` |" in text_of("metrics.md")


def test_every_log_event_is_listed() -> None:
    for name in {call.name for call in log_calls()}:
        assert f"\n| `{name}` | " in text_of("log-events.md")


def test_every_exception_is_listed() -> None:
    table = text_of("errors.md").partition("## Attributes")[0]
    for name in mixpanel_async.__all__:
        if name.endswith(("Error", "Exception")):
            assert f"\n| [`{name}`](#mixpanel_async.{name}) |" in table


def test_every_reason_is_listed() -> None:
    assert {f"`{reason.value}`" for reason in DropReason} <= set(
        re.findall(r"^\| (`\w+`)", text_of("reasons.md"), re.MULTILINE)
    )


def test_every_route_of_the_emulator_has_a_text() -> None:
    prefix = "/_emulator/"
    found = {endpoint.path for endpoint in endpoints()}
    own = {path.removeprefix(prefix) for path in found if path.startswith(prefix)}
    assert own == {*VIEW_TEXTS, *CONTROL_TEXTS, "stream"} == {*VIEWS, *CONTROLS, "stream"}
    assert {path for path in found if not path.startswith("/_emulator")} == set(ENDPOINT_TEXTS)


def test_format_numbers_are_those_of_the_page_of_versions() -> None:
    page = (FOLDER.parent / "explanation" / "versions.md").read_text(encoding="utf-8")
    assert f"has a format number. It is {schema.VERSION}, and there is no other so far." in page
    assert f"format number, and so has each entry. Both are {redis_scripts.VERSION} so far." in page
    assert f"| checkpoint of `import` (`FILE.import-state`) | {checkpoint._VERSION} |" in page
    assert f"| plan and journal of `identity plan` and `apply` | {journal._VERSION} |" in page
    assert plan_file._HEAD.endswith(f"format {journal._VERSION}")
    assert f"| data directory of the emulator | {store._VERSION} |" in page


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_has_no_private_name(name: str) -> None:
    assert not re.search(r"mixpanel_async\._[a-z]|`_[a-z]", text_of(name))
