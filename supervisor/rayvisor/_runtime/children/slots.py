"""What an engine child has across its incarnations, and what hosts' words mean for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from rayvisor.faults import Cause, Termination
from rayvisor.specs.limits import PATIENT

if TYPE_CHECKING:
    from rayvisor._core.protocol.links import HostLink
    from rayvisor._core.protocol.wire import EngineInfo, ProcessId
    from rayvisor.faults import Exit
    from rayvisor.specs import StallLimits

__all__ = ["EngineSlot", "host_lost"]


class EngineSlot:
    """One engine child: its host, and the incarnation that is there."""

    __slots__ = (
        "_settled",
        "child",
        "doubts",
        "end",
        "epoch",
        "incarnation",
        "info",
        "last_heartbeat",
        "limits",
        "link",
        "predecessor",
        "process",
        "scope",
        "silence_timeout",
        "starting",
        "unhealthy",
        "unresponsive",
    )

    def __init__(self, child: str) -> None:
        self.child = child
        # How the incarnation before the present one ended.
        self.predecessor: Exit | None = None
        self.epoch = 0
        self.incarnation = 0
        self.link: HostLink | None = None
        # The host's process, once the host has answered.
        self.process: ProcessId | None = None
        # Ends what listens to the host.
        self.scope: anyio.CancelScope | None = None
        self.info: EngineInfo | None = None
        # How the present incarnation ended by itself, once it has.
        self.end: Termination | None = None
        self._settled = anyio.Event()
        # When the host was heard last.
        self.last_heartbeat = -math.inf
        # The host does not answer: it is not asked any more, only ended.
        self.unresponsive = False
        # Who doubts that the present incarnation lives, and why.
        self.doubts: dict[str, tuple[Cause, ...]] = {}
        # The engine has said that it has a fault, and not yet that it has none.
        self.unhealthy = False
        self.limits = PATIENT
        # Seconds that a host may be silent while its engine starts.
        self.silence_timeout = math.inf
        # Calls a start off.
        self.starting: anyio.CancelScope | None = None

    def begin(self, incarnation: int, limits: StallLimits, silence_timeout: float) -> None:
        """A new incarnation takes the seat."""
        self.incarnation = incarnation
        self.limits, self.silence_timeout = limits, silence_timeout
        self.last_heartbeat = anyio.current_time()
        self.doubts.clear()
        self.unhealthy = False
        self.info = None
        self.end = None
        self._settled = anyio.Event()

    def settle(self, ending: Termination) -> None:
        """The present incarnation has ended; what is said first counts."""
        if self.end is None:
            self.end = ending
            self._settled.set()

    async def ended(self) -> Termination:
        """Wait until the present incarnation has ended."""
        settled = self._settled
        await settled.wait()
        return Termination(causes=()) if self.end is None else self.end

    def leave(self, link: HostLink) -> None:
        """Let go of a host, if it is still the seat's."""
        if self.link is link:
            self.link = self.process = None
            self.unresponsive = False
            self.stop_listening()

    def stop_listening(self) -> None:
        """Listen to the host no more."""
        if self.scope is not None:
            self.scope.cancel()
            self.scope = None


def host_lost(end: Termination) -> Termination:
    """Make the termination of an engine from the end of its host.

    A host that exits on purpose leaves its engine behind: no intentional exit of the engine. A host
    that has stayed unavailable for too long counts as lost.
    """
    return replace(end, source="ray", intended=False, unavailable=False, lost=not end.init_failed)
