"""Having an engine recover in place: the instruction, its acknowledgement, and the proof that it is well.

An instruction goes to every rank of a group, since what it has them do they do together. A rank that has no
fault of its own (yet) refuses it: it waits until the others are well, and is told again should it turn
unhealthy meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from rayvisor._core.protocol.links import HostCallFailedError, HostGoneError
from rayvisor._runtime.children.protocol import RecoveryFailedError

if TYPE_CHECKING:
    from rayvisor._core.protocol.links import HostLink
    from rayvisor._core.protocol.wire import EngineInfo
    from rayvisor._runtime.children.slots import EngineSlot

__all__ = ["await_instruction", "recover", "recovery_seconds"]

POLL_SECONDS = 0.01
LAG_SECONDS = 0.5
"""How much later than its acknowledgement an engine's new status may come; and its end than a failed call."""
OWN_SHARE = 0.9
"""Of the time that the supervisor gives: here it is known what took too long."""
ENGINE_SHARE = 0.8
"""Of the engine's own patience, which began before its fault was heard of."""


def recovery_seconds(timeout: float, info: EngineInfo) -> float:
    """Seconds that a recovery may take: it ends before the engine loses its own patience."""
    own = timeout * OWN_SHARE
    return min(own, info.recovery_timeout * ENGINE_SHARE) if info.recovery_timeout else own


async def recover(
    slot: EngineSlot, incarnation: int, instruction: str, timeout: float, others_ail: Callable[[], bool]
) -> None:
    """Have an engine carry out an instruction, and see that it is well again.

    Parameters
    ----------
    slot, incarnation
        Which engine.
    instruction
        What it is told.
    timeout
        Seconds it may take.
    others_ail
        Whether another rank of its group has a fault still.

    Raises
    ------
    RecoveryFailedError
        It has not recovered, or has not said so; the message says which.
    """
    link, info = _who_serves(slot, incarnation)
    if instruction not in info.instructions:
        known = ", ".join(info.instructions) or "none"
        raise RecoveryFailedError(
            f"the engine does not know the instruction {instruction!r}; it knows {known}"
        )
    seconds = recovery_seconds(timeout, info)
    attempt = _Attempt(link, incarnation, instruction, seconds)
    try:
        with anyio.fail_after(seconds):
            while not await attempt.accepted():
                attempt.waits_for = "the others of its group were not well"
                while not slot.unhealthy and others_ail():  # noqa: ASYNC110 - set by whoever reads the host's stream
                    await anyio.sleep(POLL_SECONDS)
                if not slot.unhealthy:
                    break
            await attempt.well()
    except TimeoutError:
        raise RecoveryFailedError(f"{attempt.waits_for} within {seconds:.3g} s") from None
    except HostGoneError as gone:
        await _its_end(slot)
        raise RecoveryFailedError(f"its host has ended: {gone.end.root}") from None
    except HostCallFailedError as failed:
        await _its_end(slot)
        root = failed.causes[-1] if failed.causes else failed
        raise RecoveryFailedError(f"the instruction {instruction!r} failed: {root}") from None


async def await_instruction(
    slot: EngineSlot, incarnation: int, timeout: float, others_ail: Callable[[], bool]
) -> None:
    """Wait until an operator has had an engine, and the others of its group, recover.

    Parameters
    ----------
    slot, incarnation
        Which engine.
    timeout
        Seconds it may take.
    others_ail
        Whether another rank of its group has a fault still.

    Raises
    ------
    RecoveryFailedError
        Nobody has, or it was of no use.
    """
    _, info = _who_serves(slot, incarnation)
    seconds = recovery_seconds(timeout, info)
    with anyio.move_on_after(seconds):
        while slot.unhealthy or others_ail():  # noqa: ASYNC110 - set by whoever reads the host's stream
            await anyio.sleep(POLL_SECONDS)
        return
    who = "it has" if slot.unhealthy else "another of its group has"
    raise RecoveryFailedError(
        f"{who} not recovered within {seconds:.3g} s: no instruction came, or it did not help"
    )


def _who_serves(slot: EngineSlot, incarnation: int) -> tuple[HostLink, EngineInfo]:
    if slot.link is None or slot.info is None or slot.incarnation != incarnation:
        raise RecoveryFailedError(f"incarnation {incarnation} is not there any more")
    return slot.link, slot.info


async def _its_end(slot: EngineSlot) -> None:
    """Let an end be told first, if that is why a call failed: it is the fault, and this its consequence."""
    with anyio.move_on_after(LAG_SECONDS):
        await slot.ended()


class _Attempt:
    """One recovery of one engine."""

    def __init__(self, link: HostLink, incarnation: int, instruction: str, seconds: float) -> None:
        self._link = link
        self._incarnation = incarnation
        self._instruction = instruction
        self._seconds = seconds
        self.waits_for = ""

    async def accepted(self) -> bool:
        """Send the instruction; False when the engine refused it because there is nothing to recover from."""
        ailed = await self._status() == "unhealthy"
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
        if ailed and await self._status() != "healthy":
            raise RecoveryFailedError(
                f"it refused {self._instruction!r}: {answer.get('reason') or 'no reason given'}"
            )
        return False

    async def well(self) -> None:
        """Wait until the engine says that it is healthy; one that has a new fault is not."""
        self.waits_for = f"{self._instruction!r} was acknowledged, but the engine was not healthy"
        until = anyio.current_time() + LAG_SECONDS
        while (status := await self._status()) != "healthy":
            if status == "dead" or anyio.current_time() > until:
                raise RecoveryFailedError(
                    f"{self._instruction!r} was acknowledged, but the engine is {status}"
                )
            await anyio.sleep(POLL_SECONDS)

    async def _status(self) -> str:
        """The worst of what its engines say."""
        report = await self._ask("get_status")
        said = {str(engine["status"]) for engine in report["engines"]}
        return next((each for each in ("dead", "unhealthy") if each in said), "healthy")

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self._link.ask(self._incarnation, method, args, {}, self._seconds)
