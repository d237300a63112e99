"""References to actors: options of a call, and arguments of the method that has the same names."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor._core.protocol.links import HostGoneError
from rayvisor.blocking import BlockingRef
from rayvisor.faults import Termination
from rayvisor.timeouts import RuntimeTimeouts

NAMES = {"timeout": 3, "idempotent": "no", "method": "GET", "self": 1, "path": "/", "args": (), "kwargs": {}}
"""Arguments of a user's method that share their names with options and parameters of `call`."""


class FakeActor:
    """An incarnation that records its calls, and ends during the first ``ends`` of them."""

    def __init__(self) -> None:
        self.name = "actor-1"
        self.handle = object()
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any], float | None]] = []
        self.ends = 0

    async def call(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, timeout: float | None
    ) -> Any:
        self.calls.append((method, tuple(args), dict(kwargs), timeout))
        if self.ends:
            self.ends -= 1
            end = Termination(causes=(rv.Cause("ActorDiedError", "killed"),), unavailable=True)
            raise HostGoneError("a", 1, end)
        return "answer"


class FakeActors:
    """A tree with one actor."""

    def __init__(self) -> None:
        self.there = FakeActor()
        self.up = {"a": self.there}
        self.adopted: dict[str, Any] = {}
        self.paused: dict[str, str] = {}

    @property
    def address(self) -> tuple[str, str]:
        return ("namespace", "prefix")

    def actor(self, child: str) -> FakeActor:
        return self.up[child]

    def reference(self, child: str) -> Any:
        return self.adopted.get(child)

    def withheld(self, child: str) -> str:
        return self.paused.get(child, "")

    async def changed(self, child: str) -> None:
        del child
        await anyio.sleep(0.01)


@pytest.fixture
def actors() -> FakeActors:
    return FakeActors()


async def test_a_call_passes_on_every_argument_whatever_its_name(actors: FakeActors) -> None:
    ref = rv.ChildRef("a", actors)
    assert await ref.call("route", 1, 2, **NAMES) == "answer"
    assert await ref.options(idempotent=True, timeout=60.0).call("route", **NAMES) == "answer"
    assert actors.there.calls[0] == ("route", (1, 2), NAMES, None)
    method, args, kwargs, timeout = actors.there.calls[1]
    assert (method, args, kwargs) == ("route", (), NAMES)
    assert timeout == pytest.approx(60.0, abs=5.0)


async def test_options_make_another_reference_and_keep_what_is_not_given(actors: FakeActors) -> None:
    ref = rv.ChildRef("a", actors)
    patient = ref.options(idempotent=True).options(timeout=60.0)
    actors.there.ends = 1
    assert await patient.call("x") == "answer"
    actors.there.ends = 1
    with pytest.raises(rv.ChildUnavailableError, match=r"^ActorDiedError: killed: 'a' was lost during x\(\)"):
        await ref.call("x")
    assert [call[3] is None for call in actors.there.calls] == [False, False, True]
    actors.there.ends = 1
    with pytest.raises(rv.ChildUnavailableError) as raised:
        await patient.options(idempotent=False).call("x")
    assert raised.value.cause == rv.Cause("ActorDiedError", "killed")


def test_options_travel_with_a_reference(actors: FakeActors) -> None:
    timeouts = RuntimeTimeouts(next_incarnation=3.0)
    ref = rv.ChildRef("a", actors, timeouts=timeouts).options(idempotent=True, timeout=5.0)
    copy = pickle.loads(pickle.dumps(ref))
    assert (copy.path, copy._address, copy._idempotent, copy._timeout, copy._timeouts) == (
        "a",
        ("namespace", "prefix"),
        True,
        5.0,
        timeouts,
    )


async def test_timeouts_travel_with_a_reference(actors: FakeActors) -> None:
    actors.paused["a"] = "paused"
    ref = rv.ChildRef("a", actors, timeouts=RuntimeTimeouts(next_incarnation=0.02)).options(idempotent=True)
    with pytest.raises(rv.ChildUnavailableError, match="paused"):
        with anyio.fail_after(5.0):
            await ref.call("x")
    copy = pickle.loads(pickle.dumps(ref))
    assert copy._timeouts == ref._timeouts


@pytest.mark.parametrize("options", [{"timeout": -1}, {"timeout": "soon"}, {"idempotent": 1}])
def test_an_option_that_cannot_work_is_refused(actors: FakeActors, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(rv.SpecError, match=rf"^{name}={value!r}: must be"):
        rv.ChildRef("a", actors).options(**options)


def test_a_blocking_reference_does_the_same(actors: FakeActors) -> None:
    class Thread:
        def call(self, function: Any) -> Any:
            return anyio.run(function)

    ref = BlockingRef(Thread(), rv.ChildRef("a", actors))  # type: ignore[arg-type]
    actors.there.ends = 1
    assert ref.options(idempotent=True, timeout=60.0).call("route", 1, **NAMES) == "answer"
    assert actors.there.calls[-1][:3] == ("route", (1,), NAMES)
