"""What an actor of the user's can be asked to do: prove that it works, hold still, go on, finish.

Each is optional and is the name of a method, which is called without arguments, or a function that takes
Ray's handle of the actor; [`rayvisor.actor`][rayvisor.actor] and [`rayvisor.adopt`][rayvisor.adopt] take
them. A function may be async, or return an object reference, which is awaited; one that blocks runs in a
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayvisor._validation import seconds
from rayvisor.errors import SpecError
from rayvisor.specs.limits import StallLimits

__all__ = ["ActorHook", "ActorHooks", "hooks_of"]

ActorHook = str | Callable[[Any], Any]
"""The name of a method, or a function that takes the actor's handle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHooks:
    """What an actor can be asked to do.

    Parameters
    ----------
    probe
        Proves that it works: it may return anything but False.
    pause, resume
        It is to hold still, and to go on.
    drain
        It is about to be ended: it may finish what it has.
    limits
        How often it is probed, and how many probes it may miss.
    probe_timeout
        Seconds a probe may take before it counts as missed.
    """

    probe: ActorHook | None = None
    pause: ActorHook | None = None
    resume: ActorHook | None = None
    drain: ActorHook | None = None
    limits: StallLimits = field(default_factory=StallLimits)
    probe_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in ("probe", "pause", "resume", "drain"):
            hook = getattr(self, name)
            if (
                hook is not None
                and not callable(hook)
                and not (isinstance(hook, str) and hook.isidentifier())
            ):
                raise SpecError(
                    name, hook, "must be the name of a method, or a function that takes the actor's handle"
                )
        seconds("probe_timeout", self.probe_timeout, exclusive=True, below=1e9)


def hooks_of(
    *,
    probe: ActorHook | None,
    pause: ActorHook | None,
    resume: ActorHook | None,
    drain: ActorHook | None,
    probe_interval: float,
    probe_timeout: float,
    failure_threshold: tuple[int, int],
    stall_after: float,
) -> ActorHooks:
    """Make the hooks of the keywords that `actor` and `adopt` share."""
    # Whether an actor computes is not looked at: that it answers is what counts.
    limits = StallLimits(
        stall_after=stall_after,
        step_limit=stall_after,
        probe_interval=probe_interval,
        failure_threshold=failure_threshold,
    )
    return ActorHooks(
        probe=probe, pause=pause, resume=resume, drain=drain, limits=limits, probe_timeout=probe_timeout
    )
