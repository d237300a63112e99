"""rayvisor keeps Ray actors and vLLM engines running, and loses no request."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayvisor._core.exits import Exit, ExitKind
    from rayvisor._engine.link import NodePin, PlacementOptions
    from rayvisor._web.server import WebPage
    from rayvisor.blocking import run_in_thread
    from rayvisor.children import (
        IgnoreStart,
        actor,
        adopt,
        coroutine,
        engine_group,
        engine_pool,
        server,
        subtree,
    )
    from rayvisor.errors import (
        AlreadyPresentError,
        AlreadyStartedError,
        CallError,
        ChildRestartingError,
        ChildRunningError,
        ChildStartError,
        ChildUnavailableError,
        ClusterUnavailableError,
        ControlSocketError,
        PublishError,
        RayvisorError,
        SpecError,
        SpecFileError,
        StartFailed,
        StrategyError,
        SupervisorBusyError,
        SupervisorGaveUp,
        SupervisorStoppedError,
        TaskTimeoutError,
        TemplateError,
        UnguardedMainError,
        UnknownChildError,
    )
    from rayvisor.fatality import LastWords, fatal, last_words
    from rayvisor.faults import Cause, Fault, FaultClass
    from rayvisor.gates import Gate
    from rayvisor.pool import (
        EnginePool,
        Generation,
        GenerationChunk,
        NoEngineError,
        PoisonRequestError,
        RequestError,
    )
    from rayvisor.reference import ChildRef
    from rayvisor.retrying import RefWait, retry
    from rayvisor.servers import ServerRef
    from rayvisor.specs import (
        AutoShutdown,
        Backoff,
        ChildSpec,
        Instance,
        Jitter,
        Restart,
        Shutdown,
        Strategy,
        SupervisorSpec,
    )
    from rayvisor.strategies import RestartStrategy
    from rayvisor.supervisor import Supervisor
    from rayvisor.tasks import Task, TaskAttempt, TaskPolicy, submit

_HOMES = {
    "AlreadyPresentError": "errors",
    "AlreadyStartedError": "errors",
    "AutoShutdown": "specs",
    "Backoff": "specs",
    "CallError": "errors",
    "Cause": "faults",
    "ChildRef": "reference",
    "ChildRestartingError": "errors",
    "ChildRunningError": "errors",
    "ChildSpec": "specs",
    "ChildStartError": "errors",
    "ChildUnavailableError": "errors",
    "ClusterUnavailableError": "errors",
    "ControlSocketError": "errors",
    "EnginePool": "pool",
    "Exit": "_core.exits",
    "ExitKind": "_core.exits",
    "Fault": "faults",
    "FaultClass": "faults",
    "Gate": "gates",
    "Generation": "pool",
    "GenerationChunk": "pool",
    "IgnoreStart": "children",
    "Instance": "specs",
    "Jitter": "specs",
    "LastWords": "fatality",
    "NoEngineError": "pool",
    "NodePin": "_engine.link",
    "PlacementOptions": "_engine.link",
    "PoisonRequestError": "pool",
    "PublishError": "errors",
    "UnguardedMainError": "errors",
    "RayvisorError": "errors",
    "RefWait": "retrying",
    "RequestError": "pool",
    "Restart": "specs",
    "RestartStrategy": "strategies",
    "ServerRef": "servers",
    "Shutdown": "specs",
    "SpecError": "errors",
    "SpecFileError": "errors",
    "StartFailed": "errors",
    "Strategy": "specs",
    "StrategyError": "errors",
    "Supervisor": "supervisor",
    "SupervisorBusyError": "errors",
    "SupervisorGaveUp": "errors",
    "SupervisorSpec": "specs",
    "SupervisorStoppedError": "errors",
    "Task": "tasks",
    "TaskAttempt": "tasks",
    "TaskPolicy": "tasks",
    "TaskTimeoutError": "errors",
    "TemplateError": "errors",
    "UnknownChildError": "errors",
    "WebPage": "_web.server",
    "actor": "children",
    "adopt": "children",
    "coroutine": "children",
    "engine_group": "children",
    "engine_pool": "children",
    "fatal": "fatality",
    "last_words": "fatality",
    "retry": "retrying",
    "run_in_thread": "blocking",
    "server": "children",
    "submit": "tasks",
    "subtree": "children",
}

__version__ = "0.1.0"

__all__ = [
    "AlreadyPresentError",
    "AlreadyStartedError",
    "AutoShutdown",
    "Backoff",
    "CallError",
    "Cause",
    "ChildRef",
    "ChildRestartingError",
    "ChildRunningError",
    "ChildSpec",
    "ChildStartError",
    "ChildUnavailableError",
    "ClusterUnavailableError",
    "ControlSocketError",
    "EnginePool",
    "Exit",
    "ExitKind",
    "Fault",
    "FaultClass",
    "Gate",
    "Generation",
    "GenerationChunk",
    "IgnoreStart",
    "Instance",
    "Jitter",
    "LastWords",
    "NoEngineError",
    "NodePin",
    "PlacementOptions",
    "PoisonRequestError",
    "PublishError",
    "RayvisorError",
    "RefWait",
    "RequestError",
    "Restart",
    "RestartStrategy",
    "ServerRef",
    "Shutdown",
    "SpecError",
    "SpecFileError",
    "StartFailed",
    "Strategy",
    "StrategyError",
    "Supervisor",
    "SupervisorBusyError",
    "SupervisorGaveUp",
    "SupervisorSpec",
    "SupervisorStoppedError",
    "Task",
    "TaskAttempt",
    "TaskPolicy",
    "TaskTimeoutError",
    "TemplateError",
    "UnguardedMainError",
    "UnknownChildError",
    "WebPage",
    "actor",
    "adopt",
    "coroutine",
    "engine_group",
    "engine_pool",
    "fatal",
    "last_words",
    "retry",
    "run_in_thread",
    "server",
    "submit",
    "subtree",
]


def __getattr__(name: str) -> Any:
    # Imported when used: `import rayvisor` must stay light, and never bring in Ray.
    if name in _HOMES:
        value = getattr(import_module(f"rayvisor.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rayvisor' has no attribute {name!r}")
