"""A tree as a TOML file: what ``rayvisor run`` runs.

    intensity = 3
    period = 900.0

    [run]
    local = true                      # what Supervisor(...) takes

    [[children]]
    kind = "engine_pool"              # the function of rayvisor that makes it
    id = "llm"                        # and its arguments
    engine = "sim"
    size = 2
    backoff = { initial = 0.5, maximum = 8.0 }

    [[children]]
    kind = "supervisor"
    id = "side"
    strategy = "one_for_all"

        [[children.children]]
        kind = "coroutine"
        id = "ticker"
        function = "ticking:tick"     # module:name, looked for beside the file as well

The keys of a child are the arguments of the function that its ``kind`` names, and are checked by that
function's own type hints. What is wrong is one [`SpecFileError`][rayvisor.SpecFileError] that names file, key
and value; nothing has been started then.
"""

from __future__ import annotations

import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from rayvisor import children
from rayvisor._config.convert import WrongValueError, convert, unknown_key
from rayvisor.engines import SETTLED
from rayvisor.errors import SpecError, SpecFileError
from rayvisor.specs import AutoShutdown, ChildSpec, SupervisorSpec

__all__ = ["KINDS", "TreeFile", "load_tree"]

KINDS: Mapping[str, Callable[..., ChildSpec]] = {
    "actor": children.actor,
    "adopt": children.adopt,
    "coroutine": children.coroutine,
    "engine_group": children.engine_group,
    "engine_pool": children.engine_pool,
    "server": children.server,
    "supervisor": children.subtree,
}
"""What makes a child of each kind."""

_SUPERVISOR: Mapping[str, Any] = {
    "strategy": str,
    "intensity": int,
    "period": float,
    "auto_shutdown": AutoShutdown,
    "start_limit": int,
}
_RUN: Mapping[str, Any] = {
    "local": bool,
    "address": str,
    "ray_options": Mapping[str, Any],
    "seed": int,
    "call_limit": int,
    "control": bool | str,
    "publish": bool | str,
}
_SPELT = {"class": "cls"}
"""Keys that Python has another word for."""
_WORDS: Mapping[str, str] = {means: word for word, means in _SPELT.items()}
_NOT_IN_FILES = frozenset({"spec", "args", "start_deadline"})
"""Arguments of a supervisor that is made by a function."""


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A tree that was read from a file.

    Parameters
    ----------
    path
        Of the file.
    spec
        The root supervisor.
    options
        What the file says for [`Supervisor`][rayvisor.Supervisor] itself, its table ``[run]``.
    """

    path: Path
    spec: SupervisorSpec
    options: Mapping[str, Any] = field(default_factory=dict)


def load_tree(path: str | os.PathLike[str]) -> TreeFile:
    """Read a tree from a TOML file.

    The file's folder is put on Python's path, for the modules that it names.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    SpecFileError
        It cannot be read, is not TOML, or has a key or a value that cannot work.

    Examples
    --------
    >>> tree = load_tree("examples/tree.toml")
    >>> [child.id for child in tree.spec.children]
    ['llm', 'side']
    """
    file = Path(path)
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecFileError(str(file), "", None, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecFileError(str(file), "", None, f"is not TOML: {error}") from error
    folder = str(file.absolute().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        options = _section(given.pop("run", {}), _RUN, "run")
        for key, value in given.items():
            if key not in {*_SUPERVISOR, "children"}:
                raise unknown_key(key, value, {*_SUPERVISOR, "children", "run"})
        return TreeFile(file, _supervisor(given, ""), options)
    except WrongValueError as error:
        raise SpecFileError(str(file), error.key, error.value, error.problem) from error.__cause__


def _section(given: Any, known: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The keys of a table, by their hints."""
    if not isinstance(given, Mapping):
        raise WrongValueError(key, given, "must be a table")
    found: dict[str, Any] = {}
    for name, value in given.items():
        where = f"{key}.{name}" if key else name
        if name not in known:
            raise unknown_key(where, value, known)
        found[_SPELT.get(name) or name] = convert(value, known[name], where)
    return found


def _supervisor(given: Mapping[str, Any], key: str) -> SupervisorSpec:
    """The supervisor whose flags and children stand in a table; other keys of it are not looked at."""
    above = f"{key}." if key else ""
    flags = _section({name: value for name, value in given.items() if name in _SUPERVISOR}, _SUPERVISOR, key)
    below = given.get("children", [])
    if not isinstance(below, list):
        raise WrongValueError(f"{above}children", below, "must be an array of tables: [[children]]")
    made = [_child(each, f"{above}children[{index}]") for index, each in enumerate(below)]
    try:
        return SupervisorSpec(children=made, **flags)
    except SpecError as error:
        raise WrongValueError(f"{above}{error.field}", error.value, error.problem) from None


def _child(given: Any, key: str) -> ChildSpec:
    if not isinstance(given, Mapping):
        raise WrongValueError(key, given, "must be a table")
    maker = KINDS[_kind(given.get("kind"), key)]
    rest = {name: value for name, value in given.items() if name != "kind"}
    arguments = _subtree(rest, key) if maker is children.subtree else _section(rest, _keys(maker), key)
    for name, each in inspect.signature(maker).parameters.items():
        needed = each.default is inspect.Parameter.empty and each.kind is not inspect.Parameter.VAR_KEYWORD
        if needed and name not in arguments:
            spelt = _WORDS.get(name, name)
            raise WrongValueError(
                f"{key}.{spelt}", None, f"is missing; a child of kind {given['kind']!r} needs it"
            )
    try:
        return maker(**arguments)
    except SpecError as error:
        field = _WORDS.get(error.field, error.field)
        raise WrongValueError(f"{key}.{field}", given.get(field, error.value), error.problem) from None


def _kind(kind: Any, key: str) -> str:
    if isinstance(kind, str) and kind in KINDS:
        return kind
    if kind is None:
        raise WrongValueError(f"{key}.kind", None, f"is missing; it must be one of {', '.join(KINDS)}")
    raise WrongValueError(f"{key}.kind", kind, unknown_key(str(kind), kind, KINDS).problem)


def _subtree(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arguments of a child that is a supervisor: its own keys, and its flags and children beside them."""
    known = {name: hint for name, hint in _keys(children.subtree).items() if name not in _NOT_IN_FILES}
    allowed = {*known, *_SUPERVISOR, "children"}
    for name, value in given.items():
        if name not in allowed:
            raise unknown_key(f"{key}.{name}", value, allowed)
    own = {name: value for name, value in given.items() if name in known}
    return {**_section(own, known, key), "spec": _supervisor(given, key)}


def _keys(maker: Callable[..., ChildSpec]) -> dict[str, Any]:
    """The keys of a child, and the hint of each."""
    hints = get_type_hints(maker)
    keys: dict[str, Any] = {}
    for name, each in inspect.signature(maker).parameters.items():
        if each.kind is inspect.Parameter.VAR_KEYWORD:  # a group's other options are a pool's
            pool = _keys(children.engine_pool)
            keys |= {key: hint for key, hint in pool.items() if key not in {*keys, *SETTLED}}
        else:
            keys[_WORDS.get(name, name)] = hints[name]
    return keys
