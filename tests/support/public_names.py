"""Public names of the package, read from `__all__` of its public modules."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import mixpanel_async.integrations

INTEGRATIONS: Final = tuple(
    f"mixpanel_async.integrations.{one.name}"
    for one in pkgutil.iter_modules(mixpanel_async.integrations.__path__)
    if not one.name.startswith("_")
)
MODULES: Final = (
    "mixpanel_async",
    "mixpanel_async.emulator",
    "mixpanel_async.flags",
    "mixpanel_async.identity",
    "mixpanel_async.outbox",
    "mixpanel_async.testing",
    "mixpanel_async.types",
    "mixpanel_async.worker",
    *INTEGRATIONS,
)


@dataclass(frozen=True)
class PublicCallable:
    """Function, class or method that programs call, and where its docstring is."""

    name: str
    signature: inspect.Signature
    docstring: str


def public_objects() -> dict[str, Any]:
    """Return each public name, with its module, and its value. A value with two names is given once."""
    found: dict[int, tuple[str, Any]] = {}
    for module_name in MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            found.setdefault(id(value), (f"{module_name}.{name}", value))
    return dict(found.values())


def public_callables() -> dict[str, PublicCallable]:
    """Return every public class, function and public method by its full name."""
    found = {}
    for name, value in public_objects().items():
        if inspect.isclass(value):
            for one in _of_class(name, value):
                found[one.name] = one
        elif inspect.isroutine(value):
            found[name] = PublicCallable(name, inspect.signature(value), inspect.getdoc(value) or "")
    return found


def _of_class(name: str, cls: type) -> Iterator[PublicCallable]:
    """Yield the constructor and the methods of a class that the package defines."""
    is_protocol = getattr(cls, "_is_protocol", False)
    if _is_ours(cls) and not is_protocol and any(_is_ours(base) and "__init__" in vars(base) for base in cls.__mro__):
        yield PublicCallable(name, inspect.signature(cls), inspect.getdoc(cls) or "")
    for base in cls.__mro__:
        if not _is_ours(base):
            continue
        for method_name, raw in vars(base).items():
            if method_name.startswith("_") or not (
                inspect.isroutine(raw) or isinstance(raw, (classmethod, staticmethod))
            ):
                continue
            method = getattr(cls, method_name)
            yield PublicCallable(f"{name}.{method_name}", inspect.signature(method), inspect.getdoc(method) or "")


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("mixpanel_async")
