"""Griffe extension of the API reference, loaded by `zensical.toml`: shows signatures as callers read them."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

_EXAMPLE: Final = re.compile(r"^Example:$", re.MULTILINE)
_ARGS: Final = re.compile(r"^Args:$", re.MULTILINE)
_SPAN: Final = re.compile(r"(?<![`\[])`([A-Z]\w+(?:\.\w+)?)`(?![`\]])")
_PAGE: Final = re.compile(r"`docs/([\w/-]+\.md)`")
_CONSTANT: Final = re.compile(r"_?[A-Z][A-Z_]+")
# Functions that return the blocking form of a method.
_BLOCKING: Final = frozenset({"_awaited", "_queueing"})


class PublicSignatures(griffe.Extension):
    """Removes private parameters, writes out constants that are defaults, and shows examples as code."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Change the objects of a package that has been loaded.

        Args:
            pkg: the package.
            loader: has the modules of the package.
            _: arguments of later versions of griffe.
        """
        public = _public_names(pkg)
        for one in _objects(pkg):
            if one.docstring is not None:
                # Griffe knows a section "Examples"; "Example" would be an admonition with the code as prose.
                one.docstring.value = _EXAMPLE.sub("Examples:", _with_links(one.docstring.value, public))
            if isinstance(one, griffe.Function):
                _show_parameters(one, loader)
        for one in _objects(pkg):
            if isinstance(one, griffe.Class):
                _show_constructor(one)
                _show_blocking_methods(one, loader)


def _objects(parent: griffe.Object) -> list[griffe.Object]:
    """Return all objects below another one, without those that are imported."""
    own = [one for one in parent.members.values() if isinstance(one, griffe.Object)]
    return [*own, *(each for one in own for each in _objects(one))]


def _public_names(package: griffe.Module) -> dict[str, str]:
    """Return the paths of the public names, and of the members of public classes, that only one module has."""
    found: dict[str, list[str]] = {}
    for module in (package, *package.modules.values()):
        for name in () if module.name.startswith("_") else module.exports or ():
            path = f"{module.path}.{name}"
            found.setdefault(str(name), []).append(path)
            value = module.members[str(name)]
            members = value.all_members if value.is_class else {}
            for member, described in members.items():
                # Fields of a dataclass are described by the class.
                if not member.startswith("_") and described.docstring is not None:
                    found.setdefault(f"{name}.{member}", []).append(f"{path}.{member}")
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _with_links(text: str, public: dict[str, str]) -> str:
    """Return a docstring in which code spans link to the pages and the entries of public names that they name."""
    text = _PAGE.sub(r"[\g<0>](../\1)", text)
    return _SPAN.sub(lambda span: f"[{span[0]}][{public[span[1]]}]" if span[1] in public else span[0], text)


def _show_parameters(function: griffe.Function, loader: griffe.GriffeLoader) -> None:
    # A catch-all of type `NoReturn` rejects arguments that other SDKs have.
    function.parameters = griffe.Parameters(
        *(one for one in function.parameters if not one.name.startswith("_") and str(one.annotation) != "NoReturn")
    )
    for parameter in function.parameters:
        parameter.default = _written_out(parameter.default, loader)


def _written_out(default: str | griffe.Expr | None, loader: griffe.GriffeLoader) -> str | griffe.Expr | None:
    """Return the value of a default that is a constant of a module."""
    if isinstance(default, griffe.ExprName) and _CONSTANT.fullmatch(default.name):
        constant = loader.modules_collection[default.canonical_path]
        if isinstance(constant, griffe.Attribute) and constant.value is not None:
            return constant.value
    return default


def _show_constructor(one: griffe.Class) -> None:
    """Hide constructors that only this package calls: their arguments are not documented."""
    text = "" if one.docstring is None else one.docstring.value
    constructor = one.members.get("__init__")
    if isinstance(constructor, griffe.Function) and len([*constructor.parameters]) > 1 and not _ARGS.search(text):
        one.del_member("__init__")
    if one.docstring is not None and "NamedTuple" in map(str, one.bases):
        # Griffe derives the signature of a dataclass from its fields, but not that of a named tuple.
        one.docstring.value = _ARGS.sub("Attributes:", text)


def _show_blocking_methods(one: griffe.Class, loader: griffe.GriffeLoader) -> None:
    """Replace attributes that are the blocking form of a method by functions with its signature and docstring."""
    for name, attribute in [*one.members.items()]:
        call = attribute.value if isinstance(attribute, griffe.Attribute) else None
        if isinstance(call, griffe.ExprCall) and str(call.function) in _BLOCKING:
            (argument,) = call.arguments
            assert isinstance(argument, griffe.Expr)
            method = loader.modules_collection[argument.canonical_path]
            assert isinstance(method, griffe.Function)
            one.set_member(
                name,
                griffe.Function(
                    name,
                    lineno=method.lineno,
                    parameters=method.parameters,
                    returns=method.returns,
                    docstring=method.docstring,
                ),
            )
