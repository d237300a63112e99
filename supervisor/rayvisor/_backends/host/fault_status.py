"""Follows the status that an engine with fault tolerance reports, and sends its changes to the driver.

Such an engine survives an exception in its model: it ends its requests, reports itself unhealthy, and waits
for an instruction for a limited time. One that reports itself dead would wait equally long, in vain; so it
counts as dead immediately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rayvisor._backends.host.engine import Engine, EngineStatus
from rayvisor._backends.host.liveness import LivenessMonitor
from rayvisor._backends.host.log_reading import log_causes
from rayvisor._backends.host.post_mortem import log_size, read_log
from rayvisor._core.protocol.wire import Condition
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Evidence, Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, HostTimeouts

__all__ = ["ConditionWatch"]

E = TypeVar("E", bound=Evidence)
log = get_logger("rayvisor.host")


class ConditionWatch:
    """Watches the condition of one incarnation.

    Parameters
    ----------
    engine, incarnation
        The engine, which has fault tolerance.
    tell
        Sends an item to the driver.
    monitor
        Its liveness monitor, which rests while the engine waits for an instruction.
    log_file
        The engine's log, from which the exception is read that its status does not contain.
    timeouts
        Intervals at which the status is read, and at which an unhealthy one is reported again.
    """

    def __init__(
        self,
        engine: Engine,
        incarnation: int,
        tell: Callable[[Condition], object],
        monitor: LivenessMonitor,
        log_file: str,
        *,
        timeouts: HostTimeouts = DEFAULT_TIMEOUTS.host,
    ) -> None:
        self._engine = engine
        self._incarnation = incarnation
        self._tell = tell
        self._monitor = monitor
        self._log_file = log_file
        self._timeouts = timeouts
        self._since = log_size(log_file)
        self._told: Condition | None = None
        self._told_at = 0.0

    async def dead(self) -> Termination:
        """Wait until the engine reports itself dead, and return why."""
        try:
            return await self._watch()
        except Exception:
            # Its end and its stalls are still seen: better watched in part than ended because of this.
            log.exception("host.condition.failed", incarnation=self._incarnation)
            never: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
            return await never

    async def _watch(self) -> Termination:
        while True:
            said = await self._engine.status()
            if said.status == "dead":
                return self._evidence(Termination, "EngineDead", "the engine says that it is dead", said)
            if said.status == "unhealthy":
                self._unhealthy(said)
            else:
                self._well()
            await asyncio.sleep(self._timeouts.fault_status_poll)

    def answered(self, answer: Mapping[str, Any]) -> None:
        """Note the answer to an instruction: an unhealthy status after a success is another fault."""
        if answer.get("success"):
            self._well()

    def _well(self) -> None:
        if self._told is not None:
            log.info("host.engine.recovered", incarnation=self._incarnation)
            self._told = None
            self._monitor.resting = False
            self._tell(Condition(self._incarnation, "healthy"))

    def _unhealthy(self, said: EngineStatus) -> None:
        now = time.monotonic()
        if self._told is None:
            evidence = self._evidence(
                Evidence, "EngineUnhealthy", "the engine waits for an instruction", said
            )
            log.warning("host.engine.unhealthy", incarnation=self._incarnation, cause=str(evidence.root))
            self._monitor.resting = True
            self._told = Condition(self._incarnation, "unhealthy", evidence)
        elif now - self._told_at < self._timeouts.fault_status_reminder:
            return
        self._told_at = now
        self._tell(self._told)

    def _evidence(self, kind: type[E], name: str, message: str, said: EngineStatus) -> E:
        """Read the evidence from the log: the engine itself reports only the exception's type name."""
        since, self._since = self._since, log_size(self._log_file)
        written, traceback = log_causes(read_log(self._log_file, since))
        outer = Cause(name, f"{message}: {said.fault}" if said.fault else message)
        if not written and said.fault:
            written = (Cause(said.fault, ""),)
        return kind(
            causes=(outer, *written),
            source="engine",
            traceback=traceback,
            phase="serving",
            log_file=self._log_file,
        )
