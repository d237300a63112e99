"""The protocols of backends, which create the incarnations of children.

The runtime knows no backend, only these protocols: it starts an incarnation, waits for its end, stops it, and
asks for the proof that nothing of it is left. Each call may be cancelled, and is if it takes too long.
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
    """A recovery in place failed; the child keeps the fault that it was to recover from."""


class Incarnation(Protocol):
    """One incarnation of one child.

    An incarnation that can recover in place also has ``async def act(self, action: str) -> None``, which may
    raise RecoveryFailedError.
    """

    async def start(self) -> SupervisorSpec | None:
        """Bring it up. Everything that it creates is recorded before it awaits anything.

        If the child is a supervisor it returns the spec: the core starts the children.

        It enforces the spec's ``start_timeout`` itself, since it knows what took so long; the runtime
        waits a little longer and then gives up the start.

        Raises
        ------
        StartRefusedError
            It did not come up.
        StartIgnored
            It chose not to start.
        """

    async def ended(self) -> Termination:
        """Wait until it has ended by itself."""
        ...

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:
        """Ask it to end, wait, kill; return True once it is proven that nothing of it is left.

        ``Shutdown.BRUTAL_KILL`` kills immediately, also while another ``stop`` is still waiting. It never
        touches a newer incarnation of the child.
        """
        ...

    async def clean(self) -> bool:
        """End what is left of it after it ended by itself; return True once it is proven that nothing is."""
        ...


class ChildBackend(Protocol):
    """Runs the children of one kind."""

    async def open(self) -> None:
        """Get ready, if it is not yet. Called before the first incarnation is created."""

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> Incarnation:
        """Create an incarnation; nothing is started by it."""
        ...

    async def release(self, child: str) -> None:
        """Release what the child holds beyond its incarnations: it is not started again soon."""

    async def close(self) -> None:
        """End everything that is left, within a bounded time."""


def takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function, or the constructor of a class, takes an argument of this name."""
    try:
        return keyword in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it has no signature that can be read
        return False


def with_predecessor(function: Callable[..., Any], predecessor: Exit | None) -> dict[str, Any]:
    """Return keyword arguments with the previous incarnation's exit, for a start that takes them."""
    return {"predecessor": predecessor} if takes(function, "predecessor") else {}
