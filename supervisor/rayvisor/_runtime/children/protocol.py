"""Carriers: one incarnation of one child each, carried out by its backend.

The runtime knows no backend, only this protocol: it starts a carrier, waits for its end, stops it, and
asks for the proof that nothing of it is left. Each call may be cancelled, and is when it takes too long.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rayvisor.faults import Exit, Termination
    from rayvisor.specs import ChildSpec, Shutdown, SupervisorSpec

__all__ = [
    "ChildBackend",
    "Incarnation",
    "RecoveryFailedError",
    "StartIgnored",
    "StartRefusedError",
    "takes",
    "with_predecessor",
]


class StartRefusedError(Exception):
    """A start failed; ``termination`` says why."""

    def __init__(self, termination: Termination) -> None:
        self.termination = termination
        super().__init__(str(termination.root))


class StartIgnored(Exception):  # noqa: N818 - an outcome, not an error
    """A start chose not to run (OTP: ``ignore``)."""


class RecoveryFailedError(Exception):
    """A recovery in place came to nothing; the fault that asked for it is what counts."""


class Incarnation(Protocol):
    """One incarnation of one child.

    One that can recover in place has ``async def act(self, action: str) -> None`` as well, which may raise
    RecoveryFailedError.
    """

    async def start(self) -> SupervisorSpec | None:
        """Bring it up. What it makes is recorded before anything is waited for.

        Where the child is a supervisor it returns the spec: the core starts the children.

        It keeps the spec's ``start_timeout`` itself, since it can say what took so long; the runtime
        waits a little longer and then gives the start up.

        Raises
        ------
        StartRefusedError
            It did not come up.
        StartIgnored
            It chose not to.
        """

    async def ended(self) -> Termination:
        """Wait until it has ended by itself."""
        ...

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:
        """Ask it to end, wait, kill; True when it is proven that nothing of it is left.

        ``Shutdown.BRUTAL_KILL`` kills at once, also what another stop is still waiting for. A carrier
        whose child has had a newer incarnation since never touches that one.
        """
        ...

    async def clean(self) -> bool:
        """It ended by itself: end what is left of it; True when it is proven that nothing is."""
        ...


class ChildBackend(Protocol):
    """What carries one kind of children."""

    async def open(self) -> None:
        """Get ready, if it is not yet. Comes before the first carrier is made."""

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> Incarnation:
        """Make the carrier of an incarnation; nothing is started by it."""
        ...

    async def release(self, child: str) -> None:
        """Give back what the child holds beyond its incarnations: it will not be started again soon."""

    async def close(self) -> None:
        """End all that is left, within a bounded time."""


def takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function, or the making of an object, takes an argument of this name."""
    try:
        return keyword in inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature to be had
        return False


def with_predecessor(function: Callable[..., Any], predecessor: Exit | None) -> dict[str, Any]:
    """Keyword arguments by which a start that asks for it is told how the incarnation before ended."""
    return {"predecessor": predecessor} if takes(function, "predecessor") else {}
