"""Monitors the heartbeats of a host: if its stream brings nothing for some time, the host hangs.

A host whose process is stopped, whose event loop is blocked, or whose interpreter is held by native code
looks alive to Ray. It is judged by the same watch as an engine, with heartbeats instead of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from rayvisor._backends.process.observation import describe, stopped_cause
from rayvisor._core.health.stall import BUSY_SHARE, HealthAction, Look, StallWatch
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._core.protocol.links import HostLink, HostView
    from rayvisor._runtime.children.slots import EngineSlot

__all__ = ["monitor_host"]

log = get_logger("rayvisor.engines")

Suspect = Callable[[str, tuple[Cause, ...]], None]


async def monitor_host(
    slot: EngineSlot,
    link: HostLink,
    suspect: Suspect,
    *,
    timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
) -> None:
    """Watch a host's heartbeats for as long as it belongs to the slot; end its incarnation if it hangs.

    Parameters
    ----------
    slot, link
        The slot and its host.
    suspect
        Called with the observer and the causes when the host may hang, and without causes when it does not.
    timeouts
        How often the host of a starting engine is checked, and how long an observation from outside may take.
    """
    while True:
        if slot.end is None:
            if slot.info is not None:
                await _while_serving(slot, link, suspect, timeouts.host_view)
            elif anyio.current_time() - slot.last_heartbeat > slot.silence_timeout:
                # While an engine starts, its host is busy: the start's own timeout counts.
                silent = anyio.current_time() - slot.last_heartbeat
                await _condemn(slot, link, silent, "starting", timeouts.host_view)
        await anyio.sleep(min(timeouts.starting_host_poll, slot.limits.probe_interval))


async def _while_serving(slot: EngineSlot, link: HostLink, suspect: Suspect, view_timeout: float) -> None:
    incarnation = slot.incarnation
    now = anyio.current_time()
    watch = StallWatch(slot.limits, now)
    while True:
        await anyio.sleep(max(0.0, watch.next_look(now) - anyio.current_time()))
        if slot.incarnation != incarnation or slot.end is not None:
            return
        now = anyio.current_time()
        match watch.look(Look(now, progressed=slot.last_heartbeat, waiting=1)):
            case HealthAction.SUSPECT:
                silence = f"nothing was heard of the host for {watch.silent:.1f} s"
                suspect("heartbeat", (Cause("HostSuspect", silence),))
            case HealthAction.CLEAR:
                suspect("heartbeat", ())
            case HealthAction.STALLED:
                await _condemn(slot, link, watch.silent, "serving", view_timeout)
                return
            case _:
                pass


async def _condemn(slot: EngineSlot, link: HostLink, silent: float, phase: str, view_timeout: float) -> None:
    """End the incarnation because of its host's silence, with the causes that can be seen."""
    incarnation = slot.incarnation
    view = await link.view(view_timeout)
    if slot.incarnation != incarnation:
        return  # it has ended for another reason meanwhile
    causes = _causes(view, silent)
    log.warning("host.stalled", child=slot.child, epoch=slot.epoch, cause=str(causes[-1]))
    slot.unresponsive = True  # no more calls are sent to it, it is only ended
    slot.settle(
        Termination(
            causes=causes, source="host", traceback=view.stack, lost=True, node=view.node,
            log_file=view.log_file, phase=phase,
        )
    )  # fmt: skip
    if slot.starting is not None:
        slot.starting.cancel()


def _causes(view: HostView, silent: float) -> tuple[Cause, ...]:
    message = f"nothing was heard of the host for {silent:.1f} s"
    stopped = stopped_cause(view.sights[:1])
    if stopped is not None:
        return Cause("HostStalled", message), Cause(stopped.type, f"the {stopped.message}")
    where = view.stack.strip().splitlines()[:1]
    seen = [describe(view.sights[:1], BUSY_SHARE), *(f"its loop is at {line.strip()}" for line in where)]
    return (Cause("HostStalled", "; ".join([message, *filter(None, seen)])),)
