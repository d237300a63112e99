"""Faults on a plan: the same for a tree in virtual time and for one that really runs.

>>> from rayvisor.specs import ChildSpec, Strategy, SupervisorSpec
>>> from rayvisor.testing import NOTHING, VirtualTree
>>> plan = FaultPlan(Crash("a", at=1.0), FailedStart("a", incarnation=2))
>>> spec = SupervisorSpec(intensity=2, children=[ChildSpec(id="a", start=NOTHING)])
>>> tree = VirtualTree(spec, outcomes=plan.outcomes)
>>> plan.play(tree)
['start a 1', 'tree up', 'start a 2', 'start a 3']
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import anyio

from rayvisor.errors import SpecError
from rayvisor.testing.virtual import BOOM, UP, Outcome, VirtualTree, fails

__all__ = ["Crash", "Crashable", "FailedStart", "FaultPlan"]


class Crash(NamedTuple):
    """A child crashes, if it runs at that time."""

    child: str
    """Its path."""
    at: float
    """Seconds after the plan began."""
    message: str = "boom"


class FailedStart(NamedTuple):
    """A start of a child fails."""

    child: str
    """Its path."""
    incarnation: int
    """Which start: 1 is the first."""
    message: str = "boom"


class Crashable(Protocol):
    """Children that can be told to crash, as [`Puppets`][rayvisor.testing.Puppets] can."""

    def crash(self, path: str, message: str = "boom") -> object:
        """Make a child crash."""
        ...


class FaultPlan:
    """What goes wrong, and when.

    Parameters
    ----------
    faults
        Each a [`Crash`][rayvisor.testing.Crash] or a [`FailedStart`][rayvisor.testing.FailedStart].

    Raises
    ------
    SpecError
        A time before the beginning, or an incarnation before the first.
    """

    def __init__(self, *faults: Crash | FailedStart) -> None:
        for fault in faults:
            if isinstance(fault, Crash) and fault.at < 0:
                raise SpecError("at", fault.at, "must be seconds after the plan began, 0 or more")
            if isinstance(fault, FailedStart) and fault.incarnation < 1:
                raise SpecError("incarnation", fault.incarnation, "must be the number of a start, 1 or more")
        self.crashes = sorted((f for f in faults if isinstance(f, Crash)), key=lambda crash: crash.at)
        self.failed_starts = {
            (f.child, f.incarnation): f.message for f in faults if isinstance(f, FailedStart)
        }

    @property
    def outcomes(self) -> dict[str, list[Outcome]]:
        """How starts turn out: for [`VirtualTree`][rayvisor.testing.VirtualTree]."""
        found: dict[str, list[Outcome]] = {}
        for child, incarnation in sorted(self.failed_starts):
            script = found.setdefault(child, [])
            script.extend([UP] * (incarnation - 1 - len(script)))
            script.append(fails())
        return found

    def play(self, tree: VirtualTree, *, settle: float = 3600.0) -> list[str]:
        """Have it all happen in virtual time; what the tree did, in words.

        Parameters
        ----------
        tree
            A tree that was made with this plan's ``outcomes``.
        settle
            Seconds the clock goes on after the last crash.
        """
        began = tree.now
        for crash in self.crashes:
            tree.advance(began + crash.at - tree.now)
            child = tree.core.status(crash.child)
            if crash.child in tree.live and child is not None and child.configuration.state == "ALIVE":
                tree.crash(crash.child, BOOM)
        tree.advance(settle)
        return tree.take()

    async def run(self, puppets: Crashable, *, speed: float = 1.0) -> None:
        """Have the crashes happen in real time; the failed starts are the puppets' from the beginning.

        Parameters
        ----------
        puppets
            The children, made with this plan.
        speed
            How much faster than planned.
        """
        began = anyio.current_time()
        for crash in self.crashes:
            await anyio.sleep(max(0.0, began + crash.at / speed - anyio.current_time()))
            puppets.crash(crash.child, crash.message)
