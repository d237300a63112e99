"""From a TOML value to what a type hint asks for, with an error that names the key and the value.

The hints of the functions that make children are the schema: what they learn to take, a file can say.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rayvisor.errors import SpecError
from rayvisor.specs import Shutdown

__all__ = ["WrongValueError", "convert", "load_target", "unknown_key"]

_SHUTDOWNS = {"infinity": Shutdown.INFINITY, "brutal_kill": Shutdown.BRUTAL_KILL}
_SIMPLE: Mapping[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
}


class WrongValueError(Exception):
    """A value that cannot be made into what is asked for.

    Parameters
    ----------
    key
        Where it is, for example ``children[0].backoff.maximum``.
    value
        What is there.
    problem
        What is wrong with it, and the way out.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key = key
        self.value = value
        self.problem = problem
        super().__init__(f"{key}={value!r}: {problem}")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Make a TOML value into what a type hint asks for.

    Raises
    ------
    WrongValueError
        It cannot be.
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
    return value  # Any, and what only the function itself can judge


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
    # What is wrong inside of it says more than that it is not one of the others.
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
    """A table with the fields of a dataclass."""
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
    """Import what ``"module:name"`` means.

    Raises
    ------
    WrongValueError
        There is no such thing, or its module cannot be imported.
    """
    module_name, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not module_name or not name:
        raise WrongValueError(key, value, "must be 'module:name'")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise WrongValueError(
            key,
            value,
            f"cannot be imported: {type(error).__name__}: {error} "
            "(looked for beside the file, and on the Python path)",
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise WrongValueError(key, value, f"there is no {part!r} in it{_meant(part, dir(found))}")
        found = getattr(found, part)
    return found


def unknown_key(key: str, value: Any, known: Collection[str]) -> WrongValueError:
    """Say that a key means nothing here, and which one may have been meant."""
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
"""What makes a value of which types; the first that fits."""
