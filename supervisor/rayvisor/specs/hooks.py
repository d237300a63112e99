"""Hooks of an actor: a probe, pause, resume and drain.

Each is optional: the name of a method, which is called without arguments, or a function that takes Ray's
handle of the actor. [`rayvisor.actor`][rayvisor.actor] and [`rayvisor.adopt`][rayvisor.adopt] take them. A
function may be async, or return an object reference, which is awaited; one that blocks runs in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayvisor._validation import seconds
from rayvisor.errors import SpecError
from rayvisor.specs.limits import StallLimits

__all__ = ["ActorHook", "ActorHooks"]

ActorHook = str | Callable[[Any], Any]
"""The name of a method, or a function that takes the actor's handle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHooks:
    """Hooks of one actor.

    Parameters
    ----------
    probe
        Proves that the actor works: returns anything but False.
    pause, resume
        Makes the actor pause, and resume.
    drain
        Lets the actor finish its work before it is ended.
    limits
        How often the actor is probed, and how many probes it may miss.
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
