"""The slot of an engine child: the state that it keeps across its incarnations."""

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
    from rayvisor._runtime.children.group_health import GroupHealth
    from rayvisor.faults import Exit
    from rayvisor.specs import StallLimits

__all__ = ["EngineSlot", "host_lost"]


class EngineSlot:
    """One engine child: its host and its current incarnation."""

    __slots__ = (
        "_settled",
        "child",
        "end",
        "epoch",
        "group",
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
        "suspicions",
        "unresponsive",
    )

    def __init__(self, child: str, group: GroupHealth) -> None:
        self.child = child
        # The health of the engines under the same supervisor, this one included.
        self.group = group
        # How the incarnation before the current one ended.
        self.predecessor: Exit | None = None
        self.epoch = 0
        self.incarnation = 0
        self.link: HostLink | None = None
        # The host's process, once the host has answered.
        self.process: ProcessId | None = None
        # Cancels the tasks that listen to the host.
        self.scope: anyio.CancelScope | None = None
        self.info: EngineInfo | None = None
        # How the current incarnation ended by itself, once it has.
        self.end: Termination | None = None
        self._settled = anyio.Event()
        # When something arrived from the host last.
        self.last_heartbeat = -math.inf
        # The host does not answer: no more calls are sent to it, it is only ended.
        self.unresponsive = False
        # Why the current incarnation may hang, by observer.
        self.suspicions: dict[str, tuple[Cause, ...]] = {}
        self.limits = PATIENT
        # Seconds for which a host may be silent while its engine starts.
        self.silence_timeout = math.inf
        # Cancels the start.
        self.starting: anyio.CancelScope | None = None

    @property
    def unhealthy(self) -> bool:
        """Whether the engine has reported a fault, and not yet that it has recovered."""
        return self.group.is_unhealthy(self.child)

    @unhealthy.setter
    def unhealthy(self, unhealthy: bool) -> None:
        self.group.set(self.child, unhealthy=unhealthy)

    @property
    def others_unhealthy(self) -> bool:
        """Whether another engine of its group has a fault."""
        return self.group.others_unhealthy(self.child)

    def begin(self, incarnation: int, limits: StallLimits, silence_timeout: float) -> None:
        """Begin a new incarnation."""
        self.incarnation = incarnation
        self.limits, self.silence_timeout = limits, silence_timeout
        self.last_heartbeat = anyio.current_time()
        self.suspicions.clear()
        self.unhealthy = False
        self.info = None
        self.end = None
        self._settled = anyio.Event()

    def settle(self, termination: Termination) -> None:
        """Record the end of the current incarnation; the first report counts."""
        if self.end is None:
            self.end = termination
            self._settled.set()

    async def ended(self) -> Termination:
        """Wait until the current incarnation has ended."""
        settled = self._settled
        await settled.wait()
        return Termination(causes=()) if self.end is None else self.end

    def leave(self, link: HostLink) -> None:
        """Drop a host, if it is still the one of this slot."""
        if self.link is link:
            self.link = self.process = None
            self.unresponsive = False
            self.stop_listening()

    def stop_listening(self) -> None:
        """Stop listening to the host."""
        if self.scope is not None:
            self.scope.cancel()
            self.scope = None


def host_lost(end: Termination) -> Termination:
    """Make the termination of an engine from the end of its host.

    A host that exits on purpose leaves its engine behind: no intentional exit of the engine. A host
    that has stayed unavailable for too long counts as lost.
    """
    return replace(end, source="ray", intended=False, unavailable=False, lost=not end.init_failed)
