"""What a tree is made of, as plain data: supervisors, children, limits, placement."""

from __future__ import annotations

from rayvisor.specs.actors import ActorStart, AdoptStart, actor, adopt
from rayvisor.specs.backoff import Backoff, Jitter
from rayvisor.specs.engines import EnginePoolSpec, EngineStart, engine_group, engine_pool
from rayvisor.specs.gate import Gate
from rayvisor.specs.hooks import ActorHook, ActorHooks
from rayvisor.specs.limits import StallLimits
from rayvisor.specs.local import CoroutineStart, IgnoreStart, SupervisorStart, coroutine, subtree
from rayvisor.specs.placement import ActorOptions, NodePin, PlacementOptions
from rayvisor.specs.servers import ServerStart, server
from rayvisor.specs.tasks import TaskAttempt, TaskPolicy
from rayvisor.specs.tree import (
    AutoShutdown,
    ChildSpec,
    Instance,
    Restart,
    Shutdown,
    StartSpec,
    Strategy,
    SupervisorSpec,
)

__all__ = [
    "ActorHook",
    "ActorHooks",
    "ActorOptions",
    "ActorStart",
    "AdoptStart",
    "AutoShutdown",
    "Backoff",
    "ChildSpec",
    "CoroutineStart",
    "EnginePoolSpec",
    "EngineStart",
    "Gate",
    "IgnoreStart",
    "Instance",
    "Jitter",
    "NodePin",
    "PlacementOptions",
    "Restart",
    "ServerStart",
    "Shutdown",
    "StallLimits",
    "StartSpec",
    "Strategy",
    "SupervisorSpec",
    "SupervisorStart",
    "TaskAttempt",
    "TaskPolicy",
    "actor",
    "adopt",
    "coroutine",
    "engine_group",
    "engine_pool",
    "server",
    "subtree",
]
