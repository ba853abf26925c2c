"""Griffe extension of the API reference, loaded by `zensical.toml`: shows signatures as callers read them."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

_EXAMPLE: Final = re.compile(r"^Example:$", re.MULTILINE)
_ARGS: Final = re.compile(r"^Args:$", re.MULTILINE)
_CONSTANT: Final = re.compile(r"_?[A-Z][A-Z_]+")


class PublicSignatures(griffe.Extension):
    """Removes private parameters, writes out constants that are defaults, and shows examples as code."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Change one object of a package that has been loaded.

        Args:
            obj: the object.
            loader: has the modules of the package.
            _: arguments of later versions of griffe.
        """
        if obj.docstring is not None:
            # Griffe knows a section "Examples"; "Example" would be an admonition with the code as prose.
            obj.docstring.value = _EXAMPLE.sub("Examples:", obj.docstring.value)
            if isinstance(obj, griffe.Class) and "NamedTuple" in map(str, obj.bases):
                # Griffe derives the signature of a dataclass from its fields, but not that of a named tuple.
                obj.docstring.value = _ARGS.sub("Attributes:", obj.docstring.value)
        if isinstance(obj, griffe.Function):
            # A catch-all of type `NoReturn` rejects arguments that other SDKs have.
            obj.parameters = griffe.Parameters(
                *(one for one in obj.parameters if not one.name.startswith("_") and str(one.annotation) != "NoReturn")
            )
            for parameter in obj.parameters:
                parameter.default = _written_out(parameter.default, loader)


def _written_out(default: str | griffe.Expr | None, loader: griffe.GriffeLoader) -> str | griffe.Expr | None:
    """Return the value of a default that is a constant of a module."""
    if isinstance(default, griffe.ExprName) and _CONSTANT.fullmatch(default.name):
        constant = loader.modules_collection[default.canonical_path]
        if isinstance(constant, griffe.Attribute) and constant.value is not None:
            return constant.value
    return default
