"""Generated parts of the reference: the commands of ``rayvisor``, and the keys of a tree file.

On a page of the site, ``<!-- made here: commands -->`` is replaced by the commands and
``<!-- made here: keys -->`` by the keys.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from rayvisor.cli import main
from rayvisor.config import KINDS
from rayvisor.specs import Shutdown, SupervisorSpec
from rayvisor.specs.arguments import Argument, arguments_of
from rayvisor.specs.engines import SETTLED
from rayvisor.supervisor import Supervisor

__all__ = ["commands", "keys", "made"]

FLAGS = ("strategy", "intensity", "period", "auto_shutdown", "max_concurrent_starts")
RUN = ("local", "address", "ray_options", "seed", "call_limit", "control", "publish")
_KEYS = {"cls": "class"}
_NOT_IN_FILES = {"adopt": {"actor"}, "supervisor": {"spec", "args", "start_timeout"}}
_MADE = re.compile(r"<!-- made here: (commands|keys) -->")
_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type: '`"module:Class"`',
    Shutdown: '`"infinity"`, `"brutal_kill"`',
}


def made(text: str) -> str:
    """Return a page with its markers replaced by the generated parts."""
    return _MADE.sub(lambda found: {"commands": commands, "keys": keys}[found[1]](), text)


def commands() -> str:
    """Return every command of ``rayvisor`` with its options, as Markdown."""
    return "\n".join(_command(name, command) for name, command in _commands())


def _commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main, info_name="rayvisor")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is not None and not command.hidden:
            yield name, command


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"rayvisor {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## rayvisor {name}", "", f"    {usage}", "", inspect.cleandoc(command.help or ""), ""]
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    lines += ["| option | | default |", "|---|---|---|"] if options else []
    lines += [_option(option) for option in options]
    return "\n".join([*lines, ""])


def _option(option: click.Option) -> str:
    shown = ", ".join(f"`{spelling}`" for spelling in [*option.opts, *option.secondary_opts])
    value = ""
    if not option.is_flag:
        kind = option.type
        choices = list(kind.choices) if isinstance(kind, click.Choice) else []
        value = ", ".join(f"`{choice}`" for choice in choices) or f"`{option.metavar or _kind_of(kind)}`"
    default = f"`{option.default}`" if option.show_default and option.default is not None else ""
    return f"| {shown} {value} | {_cell(option.help or '')} | {default} |"


def _kind_of(kind: click.ParamType[Any]) -> str:
    """Return a placeholder for a value: ``N``, with its bounds if it has any."""
    if not isinstance(kind, (click.IntRange, click.FloatRange)):
        return kind.name.upper()
    if kind.max is None:
        return f"N, at least {kind.min:g}" if kind.min is not None else "N"
    return f"N, {kind.min:g} to {kind.max:g}" if kind.min is not None else f"N, at most {kind.max:g}"


def keys() -> str:
    """Return every key of a tree file, grouped by table, as Markdown."""
    parts = [
        _table("The root supervisor", _rows(SupervisorSpec, only=FLAGS)),
        _table("`[run]`", _rows(Supervisor, only=RUN)),
    ]
    for kind, maker in sorted(KINDS.items()):
        rows = list(_rows(maker, without=_NOT_IN_FILES.get(kind, set())))
        parts.append(_table(f'`kind = "{kind}"`', rows, after=_AFTER.get(kind, "")))
    return "\n".join(parts)


_AFTER = {
    "engine_group": "A group sets these keys of an engine pool itself: "
    f"{', '.join(f'`{name}`' for name in sorted(SETTLED))}.\n",
    "supervisor": "The flags of the root supervisor, and `[[children.children]]`.\n",
}


def _table(title: str, rows: Any, after: str = "") -> str:
    head = [f"### {title}", "", "| key | type | default | |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, "", after])


def _rows(
    maker: Callable[..., Any], *, only: Sequence[str] = (), without: Sequence[str] | set[str] = ()
) -> Iterator[str]:
    above = ""
    for each in _arguments(maker):
        if each.name in without or (only and each.name not in only):
            continue
        found = parameters(each.described_in).get(each.name)
        if not found:
            raise LookupError(f"the docstring of {each.described_in.__qualname__} omits {each.name!r}")
        meaning = "as above" if found == above else _cell(found)
        above = found
        key = _KEYS.get(each.name, each.name)
        yield f"| `{key}` | {_kind(each.hint)} | {_default(each.default)} | {meaning} |"


def _arguments(maker: Callable[..., Any]) -> list[Argument]:
    if not inspect.isclass(maker):
        return arguments_of(maker)
    hints = get_type_hints(maker.__init__)
    parameters = inspect.signature(maker).parameters.values()
    return [Argument(each.name, hints[each.name], each.default, maker) for each in parameters]


def parameters(maker: Callable[..., Any]) -> dict[str, str]:
    """Return the description of each parameter in a docstring of numpy style."""
    found: dict[str, str] = {}
    names: list[str] = []
    section = re.search(
        r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+$|\Z)", inspect.getdoc(maker) or "", re.DOTALL | re.MULTILINE
    )
    for line in section[1].splitlines() if section else ():
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
        else:
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _kind(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        kinds = [_kind(each) for each in get_args(hint) if each is not types.NoneType]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in get_args(hint))
    base = origin or hint
    if base is Callable or str(base).endswith("Callable"):
        return '`"module:function"`'
    return _of_class(base)


def _of_class(base: Any) -> str:
    """Return the name of a type in the reference; empty if a file cannot hold such a value."""
    if not isinstance(base, type):
        return ""
    if base in _WORDS:
        return _WORDS[base]
    if issubclass(base, Enum):
        return ", ".join(f'`"{member.value}"`' for member in base)
    if is_dataclass(base):
        return f"table: {', '.join(f'`{each.name}`' for each in fields(base) if each.init)}"
    if issubclass(base, Mapping):
        return "table"
    return "array" if issubclass(base, Sequence) else ""


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value in ({}, ()) or callable(value):
        return ""
    shown = value.value if isinstance(value, Enum) else value
    if isinstance(shown, tuple):
        shown = list(shown)
    text = (
        str(shown).lower()
        if isinstance(shown, bool)
        else f'"{shown}"'
        if isinstance(shown, str)
        else str(shown)
    )
    return f"`{text}`"


def _cell(text: str) -> str:
    """Return a text as a table cell; references in docstring form become links into the reference."""
    text = re.sub(r"\[(`{0,2})([^\]`]+)\1\]\[(rayvisor[\w.]*)\]", r"[`\2`](#\3)", text)
    return text.replace("``", "`").replace("|", "\\|")
