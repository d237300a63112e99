"""Every type that a user meets is public: it can be imported from a public module, and says so itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import rayvisor

COMMANDS = {"cli", "demo"}
"""Modules for the command line, not for programs."""
MODULES = (
    "rayvisor",
    *(
        f"rayvisor.{module.name}"
        for module in iter_modules(rayvisor.__path__)
        if not module.name.startswith("_") and module.name not in COMMANDS
    ),
)
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
SPECIAL = {"__getitem__", "__aenter__", "__anext__", "__enter__", "__next__"}
FOUND: dict[str, Any] = {
    f"{module}.{name}": getattr(import_module(module), name)
    for module in MODULES
    for name in import_module(module).__all__
}
"""Every public object, by its public paths."""
FOR_USERS = {
    path: set(re.findall(r"\w+", members))
    for page in REFERENCE.glob("*.md")
    for path, members in re.findall(
        r"^\.\. autoclass:: ([\w.]+)\n   :members: (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
}
"""Members of classes of which some are for the package itself; all are for users in other classes."""


def functions_of(path: str) -> Iterator[Any]:
    """The functions that a user calls: a function, or the methods and properties of a class."""
    thing = FOUND[path]
    if inspect.isfunction(thing):
        yield thing
    if not isinstance(thing, type):
        return
    chosen = next((members for name, members in FOR_USERS.items() if FOUND.get(name) is thing), None)
    for name, member in inspect.getmembers_static(thing):
        if (name.startswith("_") and name not in SPECIAL) or (chosen is not None and name not in chosen):
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and function.__module__.startswith("rayvisor"):
            yield function


def hints_of(thing: Any) -> dict[str, Any]:
    """Type hints of a function or a class; imports for type checkers only are carried out for it."""
    names: dict[str, Any] = {}
    if inspect.isfunction(thing):
        for node in ast.parse(inspect.getsource(sys.modules[thing.__globals__["__name__"]])).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for line in node.body:
                    exec(ast.unparse(line), names)  # noqa: S102 - imports of our own
    return get_type_hints(thing, localns=names or None)


def ours_in(hint: Any) -> Iterator[Any]:
    """The classes of ours that a hint names."""
    arguments = hint if isinstance(hint, list) else get_args(hint)
    for argument in arguments:
        yield from ours_in(argument)
    named = get_origin(hint) or hint
    if isinstance(named, type) and named.__module__.partition(".")[0] == "rayvisor":
        yield named


def is_public(thing: Any) -> bool:
    private = any(part.startswith("_") for part in thing.__module__.split("."))
    return not private and getattr(import_module(thing.__module__), thing.__qualname__, None) is thing


def has_fields(thing: Any) -> bool:
    return isinstance(thing, type) and (
        dataclasses.is_dataclass(thing) or typing.is_typeddict(thing) or hasattr(thing, "_fields")
    )


@pytest.mark.parametrize("path", FOUND)
def test_the_types_that_it_takes_and_returns_are_public(path: str) -> None:
    hints = [(each.__qualname__, hint) for each in functions_of(path) for hint in hints_of(each).values()]
    if has_fields(FOUND[path]):
        hints += [item for item in hints_of(FOUND[path]).items() if not item[0].startswith("_")]
    private = {f"{where}: {each}" for where, hint in hints for each in ours_in(hint) if not is_public(each)}
    assert private == set()


@pytest.mark.parametrize("path", FOUND)
def test_it_shows_a_public_path(path: str) -> None:
    thing = FOUND[path]
    if isinstance(thing, type) or inspect.isfunction(thing):
        assert is_public(thing), thing.__module__


def test_hints_of_public_classes_can_be_resolved() -> None:
    for thing in FOUND.values():
        if has_fields(thing):
            get_type_hints(thing)


def run(program: str, given: bytes = b"") -> bytes:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=60).stdout


def test_public_classes_cross_to_a_process_that_has_imported_nothing_and_come_back() -> None:
    classes = [each for each in FOUND.values() if isinstance(each, type)]
    program = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps(pickle.load(sys.stdin.buffer)))"
    assert pickle.loads(run(program, pickle.dumps(classes))) == classes


def test_what_a_host_sends_is_light_to_pickle() -> None:
    program = (
        "import pickle, sys\n"
        "from rayvisor._core.protocol.wire import ProcessId\n"
        "sys.stdout.buffer.write(pickle.dumps((ProcessId(1, 2, 'boot', 'x'), sorted(sys.modules))))\n"
    )
    process, modules = pickle.loads(run(program))
    assert process == rayvisor.ProcessId(1, 2, "boot", "x")
    assert not {"rayvisor.pool", "rayvisor.supervisor", "anyio", "ray"} & set(modules)
