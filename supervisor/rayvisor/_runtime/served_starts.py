"""The start specs that have come up under each supervisor.

A start that fails although its configuration has served before, in this child or in a sibling, does not
fail because of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from rayvisor._core.protocol.user_code import concerns_program

__all__ = ["ServedStart", "ServedStarts"]


class ServedStart:
    """One configuration under one supervisor, and how many children have come up with it."""

    __slots__ = ("children", "key", "start")

    def __init__(self, key: tuple[str, int], start: object) -> None:
        self.key = key
        self.start = start
        self.children = 0


class ServedStarts:
    """Counts the children that have come up with each configuration, by supervisor.

    A configuration is compared only with those of the same fingerprint: a lookup does not depend on the
    number of siblings.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[ServedStart]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))

    def add(self, parent: str, start: object) -> ServedStart:
        """Count a child of ``parent`` that has come up with ``start``; ``discard`` takes it back."""
        key = parent, _fingerprint(start)
        served = self._find(key, start)
        if served is None:
            served = ServedStart(key, start)
            self._known.setdefault(key, []).append(served)
        served.children += 1
        return served

    def discard(self, served: ServedStart) -> None:
        """Take back one ``add``."""
        served.children -= 1
        if not served.children:
            known = self._known[served.key]
            known.remove(served)
            if not known:
                del self._known[served.key]

    def has(self, parent: str, start: object) -> bool:
        """Whether a child of ``parent`` has come up with ``start``."""
        return self._find((parent, _fingerprint(start)), start) is not None

    def _find(self, key: tuple[str, int], start: object) -> ServedStart | None:
        return next((served for served in self._known.get(key, ()) if _equal(served.start, start)), None)


def _equal(one: object, other: object) -> bool:
    """Compare two start specs; a user's arguments may refuse to be compared (arrays do)."""
    if one is other:
        return True
    try:
        return bool(one == other)
    except BaseException as error:
        if concerns_program(error):
            raise
        return False  # the two are not known to be equal


def _fingerprint(value: object) -> int:
    """Return the same number for equal values; values that cannot be hashed all have 0."""
    try:
        if isinstance(value, Mapping):
            return hash(frozenset((key, _fingerprint(each)) for key, each in value.items()))
        if isinstance(value, tuple | list):
            return hash(tuple(map(_fingerprint, value)))
        if is_dataclass(value) and not isinstance(value, type):
            own = (_fingerprint(getattr(value, each.name)) for each in fields(value) if each.compare)
            return hash((type(value), *own))
        return hash(value)
    except BaseException as error:
        if concerns_program(error):
            raise
        return 0  # it cannot be hashed
