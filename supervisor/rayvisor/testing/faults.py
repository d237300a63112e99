"""Fault plans for trees in virtual time and for real trees.

>>> from rayvisor.specs import ChildSpec, Strategy, SupervisorSpec
>>> from rayvisor.testing import NOTHING, VirtualTree
>>> plan = FaultPlan(Crash("a", at=1.0), FailedStart("a", incarnation=2))
>>> spec = SupervisorSpec(intensity=2, children=[ChildSpec(id="a", start=NOTHING)])
>>> tree = VirtualTree(spec, outcomes=plan.outcomes)
>>> plan.play(tree)
['start a 1', 'tree up', 'start a 2', 'start a 3']
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import anyio

from rayvisor._validation import seconds, whole
from rayvisor.testing.virtual import BOOM, UP, Outcome, VirtualTree, fails

__all__ = ["Crash", "Crashable", "FailedStart", "FaultPlan"]


class Crash(NamedTuple):
    """A crash of a child, if it runs at that time."""

    child: str
    """Path of the child."""
    at: float
    """Seconds after the start of the plan."""
    message: str = "boom"


class FailedStart(NamedTuple):
    """A failed start of a child."""

    child: str
    """Path of the child."""
    incarnation: int
    """The number of the start; 1 is the first."""
    message: str = "boom"


class Crashable(Protocol):
    """Children that can be made to crash, such as [`Puppets`][rayvisor.testing.Puppets]."""

    def crash(self, path: str, message: str = "boom") -> object:
        """Make a child crash."""
        ...


class FaultPlan:
    """A schedule of faults.

    Parameters
    ----------
    faults
        Each a [`Crash`][rayvisor.testing.Crash] or a [`FailedStart`][rayvisor.testing.FailedStart].

    Raises
    ------
    SpecError
        If a time is negative or an incarnation is less than 1.
    """

    def __init__(self, *faults: Crash | FailedStart) -> None:
        for fault in faults:
            if isinstance(fault, Crash):
                seconds("at", fault.at, below=math.inf)
            else:
                whole("incarnation", fault.incarnation)
        self.crashes = sorted((f for f in faults if isinstance(f, Crash)), key=lambda crash: crash.at)
        self.failed_starts = {
            (f.child, f.incarnation): f.message for f in faults if isinstance(f, FailedStart)
        }

    @property
    def outcomes(self) -> dict[str, list[Outcome]]:
        """The outcomes of starts, for [`VirtualTree`][rayvisor.testing.VirtualTree]."""
        found: dict[str, list[Outcome]] = {}
        for child, incarnation in sorted(self.failed_starts):
            script = found.setdefault(child, [])
            script.extend([UP] * (incarnation - 1 - len(script)))
            script.append(fails())
        return found

    def play(self, tree: VirtualTree, *, settle: float = 3600.0) -> list[str]:
        """Run the plan in virtual time; return the actions of the tree as text.

        Parameters
        ----------
        tree
            A tree that was made with this plan's ``outcomes``.
        settle
            Seconds to advance the clock after the last crash.
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
        """Make the crashes happen in real time; the puppets themselves make the planned starts fail.

        Parameters
        ----------
        puppets
            The children, made with this plan.
        speed
            Factor by which the plan is accelerated.
        """
        began = anyio.current_time()
        for crash in self.crashes:
            await anyio.sleep(max(0.0, began + crash.at / speed - anyio.current_time()))
            puppets.crash(crash.child, crash.message)
