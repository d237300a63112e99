"""Which configurations have come up under a supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rayvisor import specs
from rayvisor._runtime.served_starts import ServedStarts
from rayvisor.specs.actors import ActorStart


class Worker:
    """Never made."""


class Incomparable:
    """As an array: comparing two of them raises, and so does hashing one."""

    def __eq__(self, other: object) -> NoReturn:
        raise ValueError("ambiguous")

    def __hash__(self) -> int:
        raise TypeError("unhashable")


@dataclass(frozen=True)
class Start:
    """As the start specs are: with values that cannot be hashed."""

    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def test_equal_starts_of_one_supervisor_are_one_configuration() -> None:
    served = ServedStarts()
    served.add("pool", Start(("a", [1]), {"size": {"x": 1}}))
    assert served.has("pool", Start(("a", [1]), {"size": {"x": 1}}))
    assert not served.has("pool", Start(("a", [2]), {"size": {"x": 1}}))
    assert not served.has("other", Start(("a", [1]), {"size": {"x": 1}}))


def test_specs_that_are_made_by_two_calls_are_equal() -> None:
    served = ServedStarts()

    def spec() -> specs.ChildSpec:
        return specs.actor("a", Worker, args=([1], {"k": 2}), kwargs={"x": [3]})

    served.add("", spec().start)
    assert isinstance(spec().start, ActorStart)
    assert served.has("", spec().start)
    assert not served.has("", specs.actor("a", Worker).start)


def test_a_configuration_is_forgotten_with_the_last_child_that_has_it() -> None:
    served = ServedStarts()
    first, second = served.add("", Start(("a",))), served.add("", Start(("a",)))
    served.discard(first)
    assert served.has("", Start(("a",)))
    served.discard(second)
    assert not served.has("", Start(("a",)))
    assert len(served) == 0


def test_a_value_that_changes_after_it_was_added_can_still_be_discarded() -> None:
    served, numbers = ServedStarts(), [1]
    entry = served.add("", Start((numbers,)))
    numbers.append(2)
    served.discard(entry)
    assert len(served) == 0


def test_starts_that_cannot_be_compared_are_different_unless_they_are_one() -> None:
    served, one = ServedStarts(), Start((Incomparable(),))
    served.add("", one)
    assert served.has("", one)
    assert not served.has("", Start((Incomparable(),)))
