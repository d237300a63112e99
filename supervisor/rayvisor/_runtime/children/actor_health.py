"""Monitors a user's actor: its state as Ray reports it, and its answers to probes.

An actor that Ray cannot reach, or that misses probes, is SUSPECT: it gets no new work, but is not ended yet.
The same actor is called again; only if that lasts too long is its incarnation ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.health.probes import ProbeWatch
from rayvisor._core.health.stall import HealthAction
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.links import HostGoneError
from rayvisor._log import get_logger
from rayvisor._runtime.deadlines import must_pass
from rayvisor.faults import Cause, Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActor
    from rayvisor.specs import ActorHooks

__all__ = ["ActorHealthMonitor", "ActorReports", "process_lost", "prove"]

log = get_logger("rayvisor.actors")


class ActorReports(Protocol):
    """Receives suspicions; implemented by the session."""

    def suspected(self, child: str, incarnation: int, source: str, causes: tuple[Cause, ...]) -> None:
        """Note that it cannot be reached, or does not answer; that may pass."""

    def condition(self, child: str, incarnation: int, event: str, causes: tuple[Cause, ...] = ()) -> None:
        """Note a change of its condition: ``clear``."""


class _Probe:
    """One probe; at most one is under way, however long it takes."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.cause: Cause | None = None

    async def run(self, actor: UserActor, hooks: ActorHooks) -> None:
        try:
            self.cause = await _asked(actor, hooks)
        finally:
            self.over.set()


async def _asked(
    actor: UserActor, hooks: ActorHooks, unreachable: Callable[[Termination], object] | None = None
) -> Cause | None:
    """Call an actor's probe; return why it failed, or None."""
    if hooks.probe is None:
        return None
    try:
        answer = await actor.run(hooks.probe)
    except HostGoneError as gone:
        if gone.end.unavailable and unreachable is not None:
            unreachable(gone.end)
        return gone.end.root
    except BaseException as error:
        if must_pass(error):
            raise
        return plain_causes(error)[-1]
    return Cause("ProbeFailed", "the probe returned False") if answer is False else None


async def prove(
    actor: UserActor,
    hooks: ActorHooks,
    timeout: float,
    unreachable: Callable[[Termination], object] | None = None,
) -> None:
    """Wait until an actor that has come up has answered its first probe.

    Parameters
    ----------
    actor, hooks
        The actor, and how it is probed.
    timeout
        Seconds it may take.
    unreachable
        Called each time that Ray could not reach it.

    Raises
    ------
    HostGoneError
        It ended.
    TimeoutError
        It has not answered in time; the message says why.
    """
    if hooks.probe is None:
        return
    why = "it did not answer"
    with anyio.move_on_after(timeout):
        while True:
            cause = await _asked(actor, hooks, unreachable)
            if cause is None:
                return
            why = str(cause)
            if actor.snapshot.end is not None and actor.snapshot.state is actor.snapshot.state.DEAD:
                raise HostGoneError(actor.name, 0, actor.snapshot.end)
            await anyio.sleep(min(hooks.limits.probe_interval, 1.0))
    raise TimeoutError(f"its first probe was not answered within {timeout:.3g} s: {why}")


class ActorHealthMonitor:
    """Watches one incarnation of an actor until it has ended, or hangs.

    Parameters
    ----------
    incarnation
        Path of the child, and the number of the incarnation.
    actor
        The actor.
    hooks
        How it is probed.
    reports
        Receives its suspicions.
    timeouts
        How long Ray may be unable to reach it.
    """

    def __init__(
        self,
        incarnation: tuple[str, int],
        actor: UserActor,
        hooks: ActorHooks,
        reports: ActorReports,
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self._incarnation = incarnation
        self._actor = actor
        self._hooks = hooks
        self._reports = reports
        self._timeouts = timeouts
        self._suspicions: dict[str, tuple[Cause, ...]] = {}
        self._over = anyio.Event()
        self._termination = Termination(causes=())

    async def until_it_ends(self) -> Termination:
        """Wait until it has ended, or is found to hang."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            if self._hooks.probe is not None:
                tasks.start_soon(self._probe, tasks)
            await self._over.wait()
            tasks.cancel_scope.cancel()
        return self._termination

    def _settle(self, termination: Termination) -> None:
        if not self._over.is_set():
            self._termination = termination
            self._over.set()

    def _note_suspicion(self, source: str, causes: tuple[Cause, ...]) -> None:
        """Record an observer's suspicion, or (without causes) withdraw it."""
        suspected = bool(self._suspicions)
        self._suspicions.pop(source, None)
        if causes:
            self._suspicions[source] = causes
        if self._suspicions and not suspected:
            self._reports.suspected(*self._incarnation, source, causes)
        elif suspected and not self._suspicions:
            self._reports.condition(*self._incarnation, "clear")

    async def _follow(self) -> None:
        """Follow its state as Ray reports it."""
        actor = self._actor
        snapshot = actor.snapshot
        since, longest = math.inf, self._timeouts.unreachable
        while snapshot.state is not snapshot.state.DEAD and snapshot.restarts == actor.ray_restarts:
            self._note_suspicion("ray", snapshot.suspect_causes)
            since = min(since, anyio.current_time()) if snapshot.suspect_causes else math.inf
            left = since + longest - anyio.current_time()
            with anyio.move_on_after(left) as waited:
                snapshot = await actor.after(snapshot)
            if waited.cancelled_caught:
                silence = Cause("ActorUnreachable", f"Ray could not reach it for {longest:g} s")
                causes = (silence, *snapshot.suspect_causes)
                self._settle(Termination(causes=causes, source="ray", lost=True, phase="serving"))
                return
        self._settle(process_lost(await actor.ended(), "serving"))

    async def _probe(self, tasks: TaskGroup) -> None:
        hooks = self._hooks
        limits, timeout = hooks.limits, hooks.probe_timeout
        watch = ProbeWatch(limits, timeout, anyio.current_time())
        probe: _Probe | None = None
        while True:
            await anyio.sleep(limits.probe_interval)
            if probe is None:
                probe = _Probe()
                tasks.start_soon(probe.run, self._actor, hooks)
            with anyio.move_on_after(timeout):
                await probe.over.wait()
            cause: Cause | None = Cause("ProbeMissed", f"a probe was not answered within {timeout:g} s")
            if probe.over.is_set():
                cause, probe = probe.cause, None
            match watch.probed(anyio.current_time(), answered=cause is None):
                case HealthAction.SUSPECT if cause is not None:
                    self._note_suspicion("probe", (cause,))
                case HealthAction.CLEAR:
                    self._note_suspicion("probe", ())
                case HealthAction.STALLED if cause is not None:
                    stalled = Cause("ActorStalled", f"no probe was answered for {watch.silent:.1f} s")
                    self._settle(
                        Termination(causes=(stalled, cause), source="probe", lost=True, phase="serving")
                    )
                    return
                case _:
                    pass


def process_lost(end: Termination, phase: str) -> Termination:
    """Make the termination of an incarnation from the end of its actor as Ray reports it.

    An actor that has stayed unavailable for too long counts as lost.
    """
    return replace(end, source="ray", unavailable=False, lost=not end.init_failed, phase=phase)
