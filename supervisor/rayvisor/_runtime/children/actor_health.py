"""Whether an actor of the user's is there and works: what Ray says of it, and what it answers to probes.

An actor that Ray cannot reach, or that misses probes, is SUSPECT: no new work, and not condemned. It is asked
again, the same one; what lasts too long, and only that, ends its incarnation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.health.probes import ProbeWatch
from rayvisor._core.health.stall import HealthAction
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.links import HostEnd, HostGoneError
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Ending

if TYPE_CHECKING:
    from rayvisor._backends.ray.actors import UserActor
    from rayvisor.specs import ActorHooks

__all__ = ["ActorHealthMonitor", "ActorReports", "ending_of", "prove"]

log = get_logger("rayvisor.actors")

UNREACHABLE_SECONDS = 30.0
"""How long Ray may be unable to reach an actor; by default it takes 16 s to find that a node is lost."""


class ActorReports(Protocol):
    """Who is told of doubts: the session."""

    def suspected(self, child: str, incarnation: int, source: str, causes: tuple[Cause, ...]) -> None:
        """It cannot be reached, or does not answer; that may pass."""

    def condition(self, child: str, incarnation: int, event: str, causes: tuple[Cause, ...] = ()) -> None:
        """Its condition has changed: ``clear``."""


class _Probe:
    """One probe: there is never more than one under way, however long it takes."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.cause: Cause | None = None

    async def run(self, actor: UserActor, hooks: ActorHooks) -> None:
        try:
            self.cause = await _asked(actor, hooks)
        finally:
            self.over.set()


async def _asked(
    actor: UserActor, hooks: ActorHooks, unreachable: Callable[[HostEnd], object] | None = None
) -> Cause | None:
    """Ask an actor to prove that it works; why it has not."""
    if hooks.probe is None:
        return None
    try:
        answer = await actor.run(hooks.probe)
    except HostGoneError as gone:
        if gone.end.unavailable and unreachable is not None:
            unreachable(gone.end)
        return gone.end.root
    except Exception as error:  # noqa: BLE001 - whatever a user's probe raises says that it does not work
        return Cause(*plain_causes(error)[-1])
    return Cause("ProbeFailed", "the probe returned False") if answer is False else None


async def prove(
    actor: UserActor,
    hooks: ActorHooks,
    timeout: float,
    unreachable: Callable[[HostEnd], object] | None = None,
) -> None:
    """Wait until an actor that has come up has answered its first probe.

    Parameters
    ----------
    actor, hooks
        Who is probed, and how.
    timeout
        Seconds it may take.
    unreachable
        Told each time that Ray could not reach it.

    Raises
    ------
    HostGoneError
        It ended.
    TimeoutError
        It has not answered by then; the message says why.
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
    """Attends to one incarnation of an actor until it has ended, or is condemned.

    Parameters
    ----------
    who
        Path of the child, and which incarnation.
    actor
        The actor.
    hooks
        How it is probed.
    reports
        Who is told of doubts.
    """

    def __init__(
        self, who: tuple[str, int], actor: UserActor, hooks: ActorHooks, reports: ActorReports
    ) -> None:
        self._who = who
        self._actor = actor
        self._hooks = hooks
        self._reports = reports
        self._doubts: dict[str, tuple[Cause, ...]] = {}
        self._over = anyio.Event()
        self._ending = Ending(causes=())

    async def until_it_ends(self) -> Ending:
        """Wait for the end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            if self._hooks.probe is not None:
                tasks.start_soon(self._probe, tasks)
            await self._over.wait()
            tasks.cancel_scope.cancel()
        return self._ending

    def _settle(self, ending: Ending) -> None:
        if not self._over.is_set():
            self._ending = ending
            self._over.set()

    def _doubt(self, source: str, causes: tuple[Cause, ...]) -> None:
        """Somebody doubts it, or (without causes) does not any more."""
        suspected = bool(self._doubts)
        self._doubts.pop(source, None)
        if causes:
            self._doubts[source] = causes
        if self._doubts and not suspected:
            self._reports.suspected(*self._who, source, causes)
        elif suspected and not self._doubts:
            self._reports.condition(*self._who, "clear")

    async def _follow(self) -> None:
        """Follow what Ray says of it."""
        actor = self._actor
        snapshot = actor.snapshot
        since = math.inf
        while snapshot.state is not snapshot.state.DEAD and snapshot.restarts == actor.ray_restarts:
            self._doubt("ray", snapshot.suspect_causes)
            since = min(since, anyio.current_time()) if snapshot.suspect_causes else math.inf
            left = since + UNREACHABLE_SECONDS - anyio.current_time()
            with anyio.move_on_after(left) as waited:
                snapshot = await actor.after(snapshot)
            if waited.cancelled_caught:
                silence = Cause("ActorUnreachable", f"Ray could not reach it for {UNREACHABLE_SECONDS:g} s")
                causes = (silence, *snapshot.suspect_causes)
                self._settle(Ending(causes=causes, source="ray", lost=True, phase="serving"))
                return
        self._settle(ending_of(await actor.ended(), "serving"))

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
                    self._doubt("probe", (cause,))
                case HealthAction.CLEAR:
                    self._doubt("probe", ())
                case HealthAction.STALLED if cause is not None:
                    stalled = Cause("ActorStalled", f"no probe was answered for {watch.silent:.1f} s")
                    self._settle(Ending(causes=(stalled, cause), source="probe", lost=True, phase="serving"))
                    return
                case _:
                    pass


def ending_of(end: HostEnd, phase: str) -> Ending:
    """Turn how an actor ended into what the supervisor classifies."""
    return Ending(
        causes=end.causes,
        source="ray",
        traceback=end.traceback,
        exit_code=end.exit_code,
        signal=end.signal,
        intended=end.intended,
        lost=not end.init_failed,
        restarted_by_ray=end.restarted_by_ray,
        out_of_memory=end.out_of_memory,
        preempted=end.preempted or end.node_died,
        node=end.node,
        log_file=end.log_file,
        phase=phase,
    )
