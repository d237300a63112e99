"""Specs of trees, as plain data: supervisors, children, limits, placement."""

from __future__ import annotations

from rayvisor.specs.actors import ActorStart, AdoptStart, actor, adopt
from rayvisor.specs.arguments import (
    ActorArguments,
    AdoptArguments,
    EngineGroupArguments,
    EnginePoolArguments,
    HealthArguments,
    HookArguments,
    PlacementArguments,
    PoolArguments,
    RestartArguments,
    ServerArguments,
)
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
    "ActorArguments",
    "ActorHook",
    "ActorHooks",
    "ActorOptions",
    "ActorStart",
    "AdoptArguments",
    "AdoptStart",
    "AutoShutdown",
    "Backoff",
    "ChildSpec",
    "CoroutineStart",
    "EngineGroupArguments",
    "EnginePoolArguments",
    "EnginePoolSpec",
    "EngineStart",
    "Gate",
    "HealthArguments",
    "HookArguments",
    "IgnoreStart",
    "Instance",
    "Jitter",
    "NodePin",
    "PlacementArguments",
    "PlacementOptions",
    "PoolArguments",
    "Restart",
    "RestartArguments",
    "ServerArguments",
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
