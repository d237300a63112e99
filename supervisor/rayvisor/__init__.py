"""rayvisor keeps Ray actors and vLLM engines running, and loses no request."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayvisor.children import actor, coroutine, engine_pool
    from rayvisor.errors import RayvisorError, SpecError, StartFailed, SupervisorGaveUp
    from rayvisor.faults import Cause, Fault, FaultClass
    from rayvisor.pool import (
        EnginePool,
        Generation,
        GenerationChunk,
        NoEngineError,
        PoisonRequestError,
        RequestError,
    )
    from rayvisor.reference import ChildRef
    from rayvisor.specs import (
        AutoShutdown,
        Backoff,
        ChildSpec,
        Jitter,
        Restart,
        Shutdown,
        Strategy,
        SupervisorSpec,
    )
    from rayvisor.supervisor import Supervisor

_HOMES = {
    "AutoShutdown": "specs",
    "Backoff": "specs",
    "Cause": "faults",
    "ChildRef": "reference",
    "ChildSpec": "specs",
    "EnginePool": "pool",
    "Fault": "faults",
    "FaultClass": "faults",
    "Generation": "pool",
    "GenerationChunk": "pool",
    "Jitter": "specs",
    "NoEngineError": "pool",
    "PoisonRequestError": "pool",
    "RayvisorError": "errors",
    "RequestError": "pool",
    "Restart": "specs",
    "Shutdown": "specs",
    "SpecError": "errors",
    "StartFailed": "errors",
    "Strategy": "specs",
    "Supervisor": "supervisor",
    "SupervisorGaveUp": "errors",
    "SupervisorSpec": "specs",
    "actor": "children",
    "coroutine": "children",
    "engine_pool": "children",
}

__version__ = "0.1.0"

__all__ = [
    "AutoShutdown",
    "Backoff",
    "Cause",
    "ChildRef",
    "ChildSpec",
    "EnginePool",
    "Fault",
    "FaultClass",
    "Generation",
    "GenerationChunk",
    "Jitter",
    "NoEngineError",
    "PoisonRequestError",
    "RayvisorError",
    "RequestError",
    "Restart",
    "Shutdown",
    "SpecError",
    "StartFailed",
    "Strategy",
    "Supervisor",
    "SupervisorGaveUp",
    "SupervisorSpec",
    "actor",
    "coroutine",
    "engine_pool",
]


def __getattr__(name: str) -> Any:
    # Imported when used: `import rayvisor` must stay light, and never bring in Ray.
    if name in _HOMES:
        value = getattr(import_module(f"rayvisor.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rayvisor' has no attribute {name!r}")
