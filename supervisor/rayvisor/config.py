"""A tree as a TOML file: what ``rayvisor run`` runs.

    intensity = 3
    period = 900.0

    [run]
    local = true                      # arguments of Supervisor(...)

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

The keys of a child are the arguments of the function that its ``kind`` names, and are checked against its
type hints. A mistake is one [`SpecFileError`][rayvisor.SpecFileError] that names file, key and value; nothing
has been started then.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
import tomllib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rayvisor import specs
from rayvisor._redaction import masked_repr, masked_text
from rayvisor.errors import SpecError, SpecFileError
from rayvisor.specs import AutoShutdown, ChildSpec, Shutdown, SupervisorSpec
from rayvisor.specs.arguments import arguments_of
from rayvisor.specs.tree import LEVELS_MAX

__all__ = ["KINDS", "TreeFile", "load_tree"]

KINDS: Mapping[str, Callable[..., ChildSpec]] = {
    "actor": specs.actor,
    "adopt": specs.adopt,
    "coroutine": specs.coroutine,
    "engine_group": specs.engine_group,
    "engine_pool": specs.engine_pool,
    "server": specs.server,
    "supervisor": specs.subtree,
}
"""The function that makes a child of each kind."""

_SUPERVISOR: Mapping[str, Any] = {
    "strategy": str,
    "intensity": int,
    "period": float,
    "auto_shutdown": AutoShutdown,
    "max_concurrent_starts": int,
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
_ARGUMENTS = {"class": "cls"}
"""Arguments whose keys are keywords of Python."""
_KEYS: Mapping[str, str] = {argument: key for key, argument in _ARGUMENTS.items()}
_NOT_IN_FILES = frozenset({"spec", "args", "start_timeout"})
"""Arguments for a supervisor whose spec a function makes."""


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A tree that was read from a file.

    Parameters
    ----------
    path
        Path of the file.
    spec
        The root supervisor.
    options
        Arguments of [`Supervisor`][rayvisor.Supervisor] itself, from the table ``[run]``.
    """

    path: Path
    spec: SupervisorSpec
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return masked_repr(self)


def load_tree(path: str | os.PathLike[str]) -> TreeFile:
    """Read a tree from a TOML file.

    The file's folder is put on Python's path, for the modules that it names.

    Parameters
    ----------
    path
        Path of the file.

    Raises
    ------
    SpecFileError
        The file cannot be read, is not TOML, or has a key or a value that cannot work.

    Examples
    --------
    >>> tree = load_tree("examples/tree.toml")
    >>> [child.id for child in tree.spec.children]
    ['llm', 'side']
    """
    file = Path(path)
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SpecFileError(str(file), "", None, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecFileError(str(file), "", None, f"is not TOML: {error}") from error
    except RecursionError:
        raise SpecFileError(str(file), "", None, "is not TOML: its values are nested too deeply") from None
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
    """Convert the keys of a table by their type hints."""
    if not isinstance(given, Mapping):
        raise WrongValueError(key, given, "must be a table")
    found: dict[str, Any] = {}
    for name, value in given.items():
        where = f"{key}.{name}" if key else name
        if name not in known:
            raise unknown_key(where, value, known)
        found[_ARGUMENTS.get(name) or name] = convert(value, known[name], where)
    return found


def _supervisor(given: Mapping[str, Any], key: str) -> SupervisorSpec:
    """Make the supervisor whose flags and children are in a table; other keys are ignored."""
    above = f"{key}." if key else ""
    if key.count("children[") >= LEVELS_MAX:
        problem = f"must have at most {LEVELS_MAX} levels of supervisors"
        raise WrongValueError("children", None, problem)
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
    arguments = _subtree(rest, key) if maker is specs.subtree else _section(rest, _keys(maker), key)
    for each in arguments_of(maker):
        if each.default is inspect.Parameter.empty and each.name not in arguments:
            spelt = _KEYS.get(each.name, each.name)
            raise WrongValueError(
                f"{key}.{spelt}", None, f"is missing; a child of kind {given['kind']!r} needs it"
            )
    try:
        return maker(**arguments)
    except SpecError as error:
        field = _KEYS.get(error.field, error.field)
        raise WrongValueError(f"{key}.{field}", given.get(field, error.value), error.problem) from None


def _kind(kind: Any, key: str) -> str:
    if isinstance(kind, str) and kind in KINDS:
        return kind
    if kind is None:
        raise WrongValueError(f"{key}.kind", None, f"is missing; it must be one of {', '.join(KINDS)}")
    raise WrongValueError(f"{key}.kind", kind, unknown_key(str(kind), kind, KINDS).problem)


def _subtree(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the arguments of a child that is a supervisor: its own keys, its flags and its children."""
    known = {name: hint for name, hint in _keys(specs.subtree).items() if name not in _NOT_IN_FILES}
    allowed = {*known, *_SUPERVISOR, "children"}
    for name, value in given.items():
        if name not in allowed:
            raise unknown_key(f"{key}.{name}", value, allowed)
    own = {name: value for name, value in given.items() if name in known}
    return {**_section(own, known, key), "spec": _supervisor(given, key)}


def _keys(maker: Callable[..., ChildSpec]) -> dict[str, Any]:
    """Return the keys of a child, and the type hint of each."""
    return {_KEYS.get(each.name, each.name): each.hint for each in arguments_of(maker)}


_SHUTDOWNS = {"infinity": Shutdown.INFINITY, "brutal_kill": Shutdown.BRUTAL_KILL}


_SIMPLE: Mapping[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
}


class WrongValueError(Exception):
    """A value that cannot be converted to the type of its key.

    Parameters
    ----------
    key
        Path of the key, for example ``children[0].backoff.maximum``.
    value
        The value found there.
    problem
        What is wrong with it, and how to fix it.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key = key
        self.value = value
        self.problem = problem
        super().__init__(f"{key}={masked_repr(value, key)}: {masked_text(problem)}")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Convert a TOML value to the type of a hint.

    Raises
    ------
    WrongValueError
        The value does not fit.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _one_of(value, get_args(hint), key)
    if origin is Literal:
        return _choice(value, get_args(hint), key)
    if hint is type or origin in (type, Callable):
        return load_target(value, key)
    base = origin or hint
    for kind, make in _MAKERS:
        if isinstance(base, type) and kind(base):
            return make(value, hint, key)
    return value  # Any, and values that only the function itself can check


def _simple(value: Any, hint: Any, key: str) -> Any:
    kinds, words = _SIMPLE[hint]
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise WrongValueError(key, value, f"must be {words}")
    return value


def _shutdown(value: Any, _: Any, key: str) -> Shutdown:
    if isinstance(value, str) and value in _SHUTDOWNS:
        return _SHUTDOWNS[value]
    raise WrongValueError(key, value, f"must be {' or '.join(map(repr, _SHUTDOWNS))}")


def _member(value: Any, hint: Any, key: str) -> Any:
    return hint(_choice(value, [member.value for member in hint], key))


def _one_of(value: Any, hints: Sequence[Any], key: str) -> Any:
    wrong: list[WrongValueError] = []
    for hint in (hint for hint in hints if hint is not types.NoneType):
        try:
            return convert(value, hint, key)
        except WrongValueError as error:
            wrong.append(error)
    # A mistake inside of a value says more than that the value is of none of the types.
    deep = [error for error in wrong if error.key != key]
    if deep or len(wrong) == 1:
        raise (deep or wrong)[0]
    must = " or ".join(dict.fromkeys(error.problem.removeprefix("must be ") for error in wrong))
    raise WrongValueError(key, value, f"must be {must}")


def _choice(value: Any, choices: Sequence[Any], key: str) -> Any:
    if value in choices:
        return value
    raise WrongValueError(
        key, value, f"must be one of {', '.join(map(repr, choices))}{_meant(value, map(str, choices))}"
    )


def _record(value: Any, kind: Any, key: str) -> Any:
    """Make a dataclass from a table with its fields."""
    if not isinstance(value, Mapping):
        raise WrongValueError(key, value, f"must be a table ({', '.join(_fields(kind))})")
    hints, known = get_type_hints(kind), _fields(kind)
    given = {}
    for name, each in value.items():
        if name not in known:
            raise unknown_key(f"{key}.{name}", each, known)
        given[name] = convert(each, hints[name], f"{key}.{name}")
    try:
        return kind(**given)
    except SpecError as error:
        raise WrongValueError(f"{key}.{error.field.rpartition('.')[2]}", error.value, error.problem) from None
    except TypeError:
        required = [
            each.name
            for each in dataclasses.fields(kind)
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        ]
        raise WrongValueError(key, value, f"must say {', '.join(required)}") from None


def _fields(kind: Any) -> list[str]:
    return [each.name for each in dataclasses.fields(kind) if each.init]


def _table(value: Any, hint: Any, key: str) -> dict[str, Any]:
    hints = get_args(hint)
    if not isinstance(value, Mapping):
        raise WrongValueError(key, value, "must be a table")
    inner = hints[1] if len(hints) > 1 else Any
    return {name: convert(each, inner, f"{key}.{name}") for name, each in value.items()}


def _array(value: Any, hint: Any, key: str) -> tuple[Any, ...]:
    hints = get_args(hint)
    if not isinstance(value, list):
        raise WrongValueError(key, value, "must be an array")
    inner = hints[0] if hints else Any
    return tuple(convert(each, inner, f"{key}[{index}]") for index, each in enumerate(value))


def load_target(value: Any, key: str) -> Any:
    """Import the object that ``"module:name"`` names.

    Raises
    ------
    WrongValueError
        It does not exist, or its module cannot be imported.
    """
    module_name, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not module_name or not name:
        raise WrongValueError(key, value, "must be 'module:name'")
    try:
        found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A module may call sys.exit(), and an extension may raise errors that derive from BaseException only.
        raise WrongValueError(
            key,
            value,
            f"cannot be imported: {type(error).__name__}: {error} "
            "(searched beside the file, and on the Python path)",
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise WrongValueError(key, value, f"there is no {part!r} in it{_meant(part, dir(found))}")
        found = getattr(found, part)
    return found


def unknown_key(key: str, value: Any, known: Collection[str]) -> WrongValueError:
    """Return the error of an unknown key, with the key that may have been meant."""
    name = key.rpartition(".")[2]
    return WrongValueError(
        key, value, f"is not known{_meant(name, known)}; there are: {', '.join(sorted(known))}"
    )


def _meant(name: Any, known: Any) -> str:
    near = get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


_MAKERS: Sequence[tuple[Callable[[type], bool], Callable[[Any, Any, str], Any]]] = (
    (lambda kind: kind in _SIMPLE, _simple),
    (lambda kind: kind is Shutdown, _shutdown),
    (lambda kind: issubclass(kind, Enum), _member),
    (dataclasses.is_dataclass, _record),
    (lambda kind: issubclass(kind, Mapping), _table),
    (lambda kind: issubclass(kind, Sequence), _array),
)
