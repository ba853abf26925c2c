"""Page of the commands, from the Typer application."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer.main

from mixpanel_async import DropReason
from mixpanel_async.cli.app import app

from .markdown import code, page, section, table

PROGRAM: Final = "mixpanel-async"
_VALUES: Final = {str: "text", int: "integer", float: "number", Path: "path"}


class Command(NamedTuple):
    """Command of the application.

    Args:
        path: words of the command line, such as `mixpanel-async queue status`.
        command: the command, as Typer builds it for Click.
    """

    path: str
    command: Any


def commands() -> Iterator[Command]:
    """Yield the program, its groups and its commands."""
    yield from _with_children(Command(PROGRAM, typer.main.get_command(app)))


def _with_children(parent: Command) -> Iterator[Command]:
    yield parent
    for name, child in getattr(parent.command, "commands", {}).items():
        if not child.hidden:
            yield from _with_children(Command(f"{parent.path} {name}", child))


def options_of(command: Command) -> list[Any]:
    """Return the options of a command, without `--help`, which all have."""
    return [one for one in command.command.params if one.param_type_name == "option" and one.name != "help"]


def arguments_of(command: Command) -> list[Any]:
    """Return the arguments of a command."""
    return [one for one in command.command.params if one.param_type_name == "argument"]


def commands_page() -> str:
    """Return the page of the commands."""
    found = list(commands())
    rows = (
        (f"[`{one.path}`](#{one.path.replace(' ', '-')})", _help_of(one).partition("\n\n")[0])
        for one in found
        if not getattr(one.command, "commands", {})
    )
    return page(
        "Commands",
        "The command `mixpanel-async` needs the extra `cli`; `demo` and `emulator` need the extra `demo`. "
        "`--help` after any command prints the same text.",
        table(("Command", "Purpose"), rows),
        *(_section(one) for one in found),
    )


def _section(command: Command) -> str:
    arguments, options = arguments_of(command), options_of(command)
    callback = command.command.callback
    hints = {} if callback is None else get_type_hints(inspect.unwrap(callback), include_extras=True)
    words = [command.path, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)]
    is_group = bool(getattr(command.command, "commands", {}))
    usage = "" if is_group else f"```text\n{' '.join(words)}\n```"
    parts = [usage, _help_of(command)]
    if arguments:
        rows = ((code(_metavar(one).removesuffix("...")), one.help or "", _variables(one)) for one in arguments)
        parts.append(table(("Argument", "Meaning", "Variable"), rows))
    if options:
        parts.append(
            table(("Option", "Value", "Default", "Meaning", "Variable"), (_option_row(one, hints) for one in options))
        )
    return section(command.path, *parts, _examples_of(command))


def _examples_of(command: Command) -> str:
    """Return the examples at the end of the help as a block."""
    lines = (command.command.epilog or "").splitlines()[2:]
    return "" if not lines else "```console\n" + "\n".join(line.removeprefix("  ") for line in lines) + "\n```"


def _option_row(option: Any, hints: Mapping[str, Any]) -> tuple[str, ...]:
    value = _value(hints.get(option.name, bool), option)
    return _names(option), value, _default(option), option.help or "", _variables(option)


def _help_of(command: Command) -> str:
    text = inspect.cleandoc(command.command.help or "")
    # What follows a form feed is for the readers of the code.
    return text.partition("\f")[0].replace("\b\n", "")


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _usage(argument: Any) -> str:
    shown = _metavar(argument).removesuffix("...") + ("..." if argument.nargs == -1 else "")
    return shown if argument.required else f"[{shown}]"


def _names(option: Any) -> str:
    return ", ".join(map(code, [*option.opts, *option.secondary_opts]))


def _value(hint: Any, option: Any) -> str:
    """Return what the value of an option can be."""
    metadata = getattr(hint, "__metadata__", ())
    bounds = next((one for one in metadata if hasattr(one, "min")), None)
    text = "" if getattr(option, "is_flag", False) else _kind(hint)
    if option.metavar:
        text = code(option.metavar)
    if bounds is not None and bounds.min is not None:
        text += f", {bounds.min} to {bounds.max}" if bounds.max is not None else f", {bounds.min} or more"
    return text + (", can be repeated" if option.multiple else "")


def _kind(hint: Any) -> str:
    """Return the name of a type for users of the command line."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(inner[0])
    if origin in (UnionType, Union):
        return _kind(next(one for one in inner if one is not NoneType))
    if origin is Literal:
        return ", ".join(map(code, inner))
    if origin in (list, tuple):
        return _kind(inner[0])
    if hint is DropReason:
        return "[reason](reasons.md)"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(code(one.value) for one in hint)
    if hint is bool:
        return ""
    return _VALUES[hint]


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.default
    if default is None or default is False or default in ([], ()) or not option.show_default:
        return ""
    if default is True:
        return code(option.opts[0]) if option.secondary_opts else ""
    shown = default if isinstance(default, (list, tuple)) else [default]
    return ", ".join(code(one.value if isinstance(one, Enum) else one) for one in shown)


def _variables(parameter: Any) -> str:
    names = parameter.envvar or ()
    return ", ".join(map(code, [names] if isinstance(names, str) else names))
