"""Recovery of an engine in place: the instruction, its acknowledgement, and the proof that it is healthy.

An instruction goes to every rank of a group, because the ranks carry it out together. A rank that has no
fault of its own (yet) refuses it: it waits until the others are healthy, and gets the instruction again if it
becomes unhealthy meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from rayvisor._core.protocol.links import HostCallFailedError, HostGoneError
from rayvisor._runtime.children.protocol import RecoveryFailedError
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._core.protocol.links import HostLink
    from rayvisor._core.protocol.wire import EngineInfo
    from rayvisor._runtime.children.slots import EngineSlot

__all__ = ["await_instruction", "recover", "recovery_seconds"]

OWN_SHARE = 0.9
"""Share of the supervisor's timeout that is used: a failure here can name its reason."""
ENGINE_SHARE = 0.8
"""Share of the engine's own timeout that is used: it began before its fault was reported."""


def recovery_seconds(timeout: float, info: EngineInfo) -> float:
    """Return the seconds that a recovery may take: it ends before the engine's own timeout does."""
    own = timeout * OWN_SHARE
    return min(own, info.recovery_timeout * ENGINE_SHARE) if info.recovery_timeout else own


async def recover(
    slot: EngineSlot,
    incarnation: int,
    instruction: str,
    timeout: float,
    *,
    timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
) -> None:
    """Have an engine carry out an instruction, and wait until it is healthy again.

    Parameters
    ----------
    slot, incarnation
        The engine.
    instruction
        The name of the instruction.
    timeout
        Seconds it may take.
    timeouts
        How often its status is queried, and how far that may lag.

    Raises
    ------
    RecoveryFailedError
        It has not recovered, or has not reported so; the message says which.
    """
    link, info = _serving(slot, incarnation)
    if instruction not in info.instructions:
        known = ", ".join(info.instructions) or "none"
        raise RecoveryFailedError(
            f"the engine does not know the instruction {instruction!r}; it knows {known}"
        )
    seconds = recovery_seconds(timeout, info)
    attempt = _Attempt(link, incarnation, instruction, seconds, timeouts)
    try:
        with anyio.fail_after(seconds):
            while not await attempt.accepted():
                attempt.waits_for = "the others of its group were not well"
                await slot.group.until(lambda: slot.unhealthy or not slot.others_unhealthy)
                if not slot.unhealthy:
                    break
            await attempt.recovered()
    except TimeoutError:
        raise RecoveryFailedError(f"{attempt.waits_for} within {seconds:.3g} s") from None
    except HostGoneError as gone:
        await _let_end_come_first(slot, timeouts.recovery_lag)
        raise RecoveryFailedError(f"its host has ended: {gone.end.root}") from None
    except HostCallFailedError as failed:
        await _let_end_come_first(slot, timeouts.recovery_lag)
        root = failed.causes[-1] if failed.causes else failed
        raise RecoveryFailedError(f"the instruction {instruction!r} failed: {root}") from None


async def await_instruction(slot: EngineSlot, incarnation: int, timeout: float) -> None:
    """Wait until an engine and the others of its group have recovered by an operator's instruction.

    Parameters
    ----------
    slot, incarnation
        The engine.
    timeout
        Seconds it may take.

    Raises
    ------
    RecoveryFailedError
        No instruction came in time, or it did not help.
    """
    _, info = _serving(slot, incarnation)
    seconds = recovery_seconds(timeout, info)
    with anyio.move_on_after(seconds):
        await slot.group.until(lambda: not slot.unhealthy and not slot.others_unhealthy)
        return
    who = "it has" if slot.unhealthy else "another of its group has"
    raise RecoveryFailedError(
        f"{who} not recovered within {seconds:.3g} s: no instruction came, or it did not help"
    )


def _serving(slot: EngineSlot, incarnation: int) -> tuple[HostLink, EngineInfo]:
    if slot.link is None or slot.info is None or slot.incarnation != incarnation:
        raise RecoveryFailedError(f"incarnation {incarnation} has ended")
    return slot.link, slot.info


async def _let_end_come_first(slot: EngineSlot, lag: float) -> None:
    """Wait for an end that may be why a call failed: the end is the fault, the failure its consequence."""
    with anyio.move_on_after(lag):
        await slot.ended()


class _Attempt:
    """One attempt to have an engine recover."""

    def __init__(
        self,
        link: HostLink,
        incarnation: int,
        instruction: str,
        seconds: float,
        timeouts: RuntimeTimeouts,
    ) -> None:
        self._link = link
        self._incarnation = incarnation
        self._instruction = instruction
        self._seconds = seconds
        self._timeouts = timeouts
        self.waits_for = ""

    async def accepted(self) -> bool:
        """Send the instruction; False when the engine refused it because there is nothing to recover from."""
        was_unhealthy = await self._status() == "unhealthy"
        request = uuid4().hex
        self.waits_for = f"no acknowledgement of {self._instruction!r}"
        given = {"instruction": self._instruction, "params": {}, "request_id": request}
        answer = await self._ask("handle_fault", given)
        if not isinstance(answer, Mapping) or answer.get("request_id") != request:
            raise RecoveryFailedError(
                f"the acknowledgement of {self._instruction!r} is of another request: {answer}"
            )
        if answer.get("success"):
            return True
        if was_unhealthy and await self._status() != "healthy":
            raise RecoveryFailedError(
                f"it refused {self._instruction!r}: {answer.get('reason') or 'no reason given'}"
            )
        return False

    async def recovered(self) -> None:
        """Wait until the engine reports itself healthy; a new fault ends the wait."""
        self.waits_for = f"{self._instruction!r} was acknowledged, but the engine was not healthy"
        until = anyio.current_time() + self._timeouts.recovery_lag
        while (status := await self._status()) != "healthy":
            if status == "dead" or anyio.current_time() > until:
                raise RecoveryFailedError(
                    f"{self._instruction!r} was acknowledged, but the engine is {status}"
                )
            await anyio.sleep(self._timeouts.recovery_poll)

    async def _status(self) -> str:
        """Return the worst status among its engines."""
        report = await self._ask("get_status")
        said = {str(engine["status"]) for engine in report["engines"]}
        return next((each for each in ("dead", "unhealthy") if each in said), "healthy")

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self._link.ask(self._incarnation, method, args, {}, self._seconds)
