"""Readiness gates: an engine that is up serves only once the user's gate has brought it up to date."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.protocol.causes import in_one_line, plain_causes, traceback_text
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.deadlines import bounded
from rayvisor._validation import is_whole
from rayvisor.faults import Cause, Termination
from rayvisor.specs import Gate
from rayvisor.status import is_up
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._core.supervision.core import Core
    from rayvisor._runtime.children.engines import EngineBackend
    from rayvisor._runtime.incarnations import IncarnationManager

__all__ = ["ReadinessGates"]

log = get_logger("rayvisor.gates")

TRIES = 3


class ReadinessGates:
    """Observes the effects of the core: runs the gate of each engine that is stale.

    Parameters
    ----------
    tasks
        Owner of the gates' tasks.
    core
        Holds the specs.
    engines
        Answers the calls of the gates.
    incarnations
        Ends an incarnation whose gate fails.
    post
        Sends an event to the core.
    weights
        Called with child, incarnation and version when a gate returns the version of the engine's weights.
    timeouts
        The pauses between the tries of a gate.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        core: Core,
        engines: EngineBackend,
        incarnations: IncarnationManager,
        post: Callable[[m.Event], None],
        weights: Callable[[str, int, int], None],
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self._timeouts = timeouts
        self._tasks = tasks
        self._core = core
        self._engines = engines
        self._incarnations = incarnations
        self._post = post
        self._weights = weights
        self._running: dict[str, anyio.CancelScope] = {}

    def observe(self, effect: m.Effect) -> None:
        """Start or cancel a gate after an effect."""
        if not isinstance(effect, m.Changed) or effect.chart != "engine":
            return
        child, after = effect.child, effect.after
        if not is_up(after.state) or "STALE" not in after.flags:
            self._cancel(child)
        elif effect.event == "stale" or child not in self._running:
            self._cancel(child)  # the version that it was brought to is out of date again
            node = self._core.status(child)
            if node is not None and node.spec.gate is not None:
                scope = self._running[child] = anyio.CancelScope()
                timeout = node.spec.start_timeout
                name = f"gate of {child}#{effect.incarnation}"
                self._tasks.start_soon(
                    self._pass,
                    scope,
                    node.spec.gate,
                    (child, effect.incarnation, node.stales),
                    timeout,
                    name=name,
                )

    def _cancel(self, child: str) -> None:
        scope = self._running.pop(child, None)
        if scope is not None:
            scope.cancel()

    async def _pass(
        self,
        scope: anyio.CancelScope,
        function: Callable[[Any], Awaitable[object]],
        subject: tuple[str, int, int],
        timeout: float,
    ) -> None:
        child, incarnation, stales = subject
        with scope:
            gate = Gate(child, incarnation, self._engines.ask, self._engines.predecessor(child))
            name = f"the gate of {child}"
            for attempt in range(TRIES):
                try:
                    version = await bounded(
                        self._tasks, lambda: function(gate), timeout, name, unwind=self._timeouts.unwind
                    )
                except Exception as error:  # noqa: BLE001 - a user's gate may raise anything
                    log.warning(
                        "gate.closed",
                        child=child,
                        incarnation=incarnation,
                        attempt=attempt + 1,
                        of=TRIES,
                        why=in_one_line(error),
                    )
                    termination = _termination_of(error)
                else:
                    log.info("gate.passed", child=child, incarnation=incarnation)
                    if is_whole(version):
                        self._weights(child, incarnation, version)  # before it is admitted
                    self._post(m.Reported(child, incarnation, "synced", stales=stales))
                    return
                if attempt + 1 < TRIES:
                    await anyio.sleep(self._timeouts.gate_retry * 2**attempt)
                else:
                    self._incarnations.condemn(child, incarnation, termination)


def _termination_of(error: Exception) -> Termination:
    return Termination(
        causes=(
            Cause("GateClosed", f"the gate was tried {TRIES} times"),
            *plain_causes(error),
        ),
        traceback=traceback_text(error),
        phase="passing its gate",
    )
