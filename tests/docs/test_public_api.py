"""Signatures and docstrings of every public name. The reference is generated from them."""

from __future__ import annotations

import json
import logging
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import griffe
import pytest
from fork_server import fork_server
from public_names import PublicCallable, public_callables, public_objects

import mixpanel_async
from mixpanel_async import AsyncMixpanel
from tools.reference.griffe_extension import PublicSignatures

CALLABLES: Final = public_callables()
PROGRAM: Final = Path(__file__).with_name("docstring_program.py")
QUEUE: Final = "redis://queue:6379/0"
# Another name in a docstring that describes the same parameters.
REFERENCE: Final = re.compile(r"(?:[Ss]ee|as in) `([\w.]+)`")
# Classes that programs do not create themselves.
RESULT: Final = re.compile(r"the result of `|: the result of|which `[\w.]+` (?:makes|returns)|^`AsyncMixpanel\.")
# Sections of methods that must say how they are used, and which errors they raise.
MAIN: Final = (
    "AsyncMixpanel.track", "AsyncMixpanel.track_nowait", "AsyncMixpanel.track_immediate", "AsyncMixpanel.import_data",
    "AsyncMixpanel.alias", "AsyncMixpanel.identify", "AsyncMixpanel.merge", "AsyncMixpanel.from_env",
    "AsyncMixpanel.bind", "AsyncMixpanel.flush", "AsyncMixpanel.start", "BoundMixpanel.sign_in",
    *(name.removeprefix("mixpanel_async.") for name in CALLABLES if re.search(r"AsyncMixpanel\.(people|group)_", name)),
)  # fmt: skip
# Further names whose use an example shows.
SHOWN: Final = (
    "AsyncMixpanel", "AsyncMixpanel.aclose", "AsyncMixpanel.in_thread", "AsyncMixpanel.stats", "BoundMixpanel.sign_out",
    "Checker", "SqliteSpool", "emulator.Emulator", "emulator.Emulator.client", "emulator.Emulator.events",
    "emulator.Emulator.fail_next", "emulator.Emulator.serve", "emulator.Emulator.set_flag", "flags.LocalFlags",
    "flags.RemoteFlags", "identity.Audit", "identity.History", "identity.IdentityGraph", "outbox.MemoryOutbox",
    "outbox.RedisOutbox", "worker.Worker",
    *(f"integrations.{name}.MixpanelIntegration"
      for name in ("aiohttp", "asgi", "aws_lambda", "celery", "fastapi", "starlette")),
    "integrations.openfeature.MixpanelProvider", "integrations.otel.MixpanelMetrics",
    "integrations.taskiq.MixpanelMiddleware",
)  # fmt: skip


@pytest.mark.parametrize("name", CALLABLES)
def test_signature_is_public_and_short(name: str) -> None:
    """An editor shows the whole signature: a union of many types has a name, as those of `mixpanel_async.types`."""
    signature = CALLABLES[name].signature
    assert [one for one in signature.parameters if one.startswith("_")] == []
    for annotation in (*(one.annotation for one in signature.parameters.values()), signature.return_annotation):
        text = annotation if isinstance(annotation, str) else ""
        assert text.count("|") <= 3, text
        assert len(text) <= 70, text


def test_help_shows_no_private_name() -> None:
    shown = pydoc.plain(pydoc.render_doc(AsyncMixpanel))
    assert "_environment" not in shown
    assert "track(" in shown


def sections_of(docstring: str) -> list[Any]:
    return griffe.Docstring(docstring.replace("Example:\n", "Examples:\n")).parse("google", warnings=False)


def described(one: PublicCallable, seen: frozenset[str] = frozenset()) -> set[str]:
    """Return the parameters that a docstring describes, there or in another docstring that it names."""
    found = set()
    for section in sections_of(one.docstring):
        if section.kind is griffe.DocstringSectionKind.parameters:
            found |= {parameter.name.lstrip("*") for parameter in section.value}
    owner = one.name.rpartition(".")[0]
    for reference in REFERENCE.findall(one.docstring):
        for name in (f"{owner}.{reference}", *(name for name in CALLABLES if name.endswith(f".{reference}"))):
            if name in CALLABLES and name not in seen:
                found |= described(CALLABLES[name], seen | {one.name})
                break
    return found


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_describes_each_parameter(name: str) -> None:
    one = CALLABLES[name]
    assert one.docstring.strip()
    is_class = name in CLASSES
    if is_class and RESULT.search(one.docstring):
        return
    wanted = {
        parameter.name
        for parameter in one.signature.parameters.values()
        if parameter.name != "self" and parameter.annotation != "NoReturn"
    }
    assert wanted - described(one) == set()


CLASSES: Final = {name for name, value in public_objects().items() if isinstance(value, type)}


@pytest.mark.parametrize("name", MAIN)
def test_main_method_has_an_example_and_its_errors(name: str) -> None:
    kinds = {section.kind.value for section in sections_of(CALLABLES[f"mixpanel_async.{name}"].docstring)}
    assert {"examples", "raises"} <= kinds
    assert "    ```python\n" in CALLABLES[f"mixpanel_async.{name}"].docstring


@pytest.mark.parametrize("name", SHOWN)
def test_main_class_has_an_example(name: str) -> None:
    assert "    ```python\n" in CALLABLES[f"mixpanel_async.{name}"].docstring


def examples() -> Iterator[tuple[str, str]]:
    """Yield each example once, with the first name that has it."""
    seen = set()
    docstrings = {name: one.docstring for name, one in CALLABLES.items()}
    for name, value in public_objects().items():
        if getattr(value, "__module__", "").startswith("mixpanel_async"):
            docstrings.setdefault(name, pydoc.getdoc(value))
    for name, docstring in docstrings.items():
        for block in re.findall(r"^ *```python\n(.*?)^ *```", docstring, re.DOTALL | re.MULTILINE):
            code = dedent(block)
            if code not in seen:
                seen.add(code)
                yield name.removeprefix("mixpanel_async."), code


# All examples run in one process, which imports the frameworks of the integrations.
@pytest.mark.timeout(120)
def test_examples_run(tmp_path: Path, redis_server: Any) -> None:
    for name, code in examples():
        system = next((one for one in ("simplified", "legacy") if f'"{one}"' in code), "original")
        (tmp_path / f"{system}-{name}.py").write_text(code.replace(QUEUE, redis_server.url), "utf-8")
    with fork_server("-W", "error", modules=("mixpanel_async.emulator", "uvicorn")) as server:
        status, printed, errors = server.run(PROGRAM, tmp_path, timeout=100.0)
    assert status == 0, errors
    failures = json.loads(printed)
    assert not failures, "\n".join(failures.values())


def test_no_docstring_shows_code_of_another_form() -> None:
    """An example is a complete program in a fence."""
    assert [name for name, one in CALLABLES.items() if ">>> " in one.docstring] == []


def test_griffe_reads_all_docstrings_without_warning(caplog: pytest.LogCaptureFixture) -> None:
    extensions = griffe.load_extensions(PublicSignatures)
    root = Path(mixpanel_async.__file__).parents[1]
    with caplog.at_level(logging.WARNING):
        package = griffe.load(
            "mixpanel_async",
            search_paths=[root],
            docstring_parser="google",
            extensions=extensions,
            allow_inspection=False,
        )
        waiting: list[Any] = [package]
        while waiting:
            one = waiting.pop()
            if one.docstring is not None:
                _ = one.docstring.parsed
            waiting += [member for member in one.members.values() if not member.is_alias]
    assert [record.getMessage() for record in caplog.records] == []
