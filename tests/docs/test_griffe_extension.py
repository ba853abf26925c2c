"""The API pages show signatures as callers read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import griffe
import pytest

import tools.reference.griffe_extension
from mixpanel_async import AsyncMixpanel, BlockingMixpanel
from tools.reference.api import names_on_pages

ROOT = Path(__file__).parents[2]
EXTENSION = Path(tools.reference.griffe_extension.__file__)


@pytest.fixture(scope="module")
def package() -> Any:
    extensions = griffe.load_extensions(str(EXTENSION))
    return griffe.load("mixpanel_async", search_paths=[ROOT], extensions=extensions)


def test_constructor_has_only_public_parameters(package: Any) -> None:
    parameters = package["_client.client.AsyncMixpanel.__init__"].parameters
    assert {"token", "credentials", "enabled"} <= {one.name for one in parameters}
    assert not [one.name for one in parameters if one.name.startswith("_") or "NoReturn" in str(one.annotation)]


def test_defaults_are_values_not_constants(package: Any) -> None:
    parameters = package["_client.client.AsyncMixpanel.__init__"].parameters
    assert str(parameters["batching"].default) == "BatchPolicy()"
    assert str(parameters["identity_retry"].default).startswith("RetryPolicy(attempts=3")


def test_constructor_that_users_do_not_call_is_hidden(package: Any) -> None:
    assert "__init__" not in package["_client.bound.BoundMixpanel"].members
    assert "__init__" in package["_spool.spool.SqliteSpool"].members


def test_blocking_methods_have_the_signature_of_the_coroutine_methods(package: Any) -> None:
    blocking = package["_client.blocking.BlockingMixpanel"].members
    names = {name for name in vars(BlockingMixpanel) if not name.startswith("_") and hasattr(AsyncMixpanel, name)}
    assert len(names) > 20
    for name in names - {"enabled", "id_merge"}:
        assert blocking[name].is_function, name
        assert blocking[name].docstring is not None, name


def test_public_names_in_docstrings_are_links(package: Any) -> None:
    text = package["_client.blocking.BlockingMixpanel.flush"].docstring.value
    assert "[`AsyncMixpanel.flush`][mixpanel_async.AsyncMixpanel.flush]" in text


def test_docstrings_of_public_names_are_understood(package: Any, caplog: pytest.LogCaptureFixture) -> None:
    for module, name in names_on_pages():
        found = package[f"{module}.{name}".removeprefix("mixpanel_async.")]
        for one in (found, *(found.all_members.values() if found.is_class else ())):
            if one.docstring is not None and not one.name.startswith("_"):
                one.docstring.parse("google")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("griffe")] == []
