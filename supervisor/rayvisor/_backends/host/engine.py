"""The seam between an engine host and the engine that runs in it.

An engine is a whole process tree below the host. The host knows it through
[`Engine`][rayvisor._backends.host.engine.Engine] only. A failure is one of four exceptions, which carry plain
data only, because an exception object of vLLM must never leave the host process:

    EngineError
    ├── EngineStartFailedError   ``start`` failed; nothing of the engine is left
    ├── EngineGoneError          the engine has ended; ``died`` returns why
    ├── RequestRefusedError      this one request is wrong; the engine is fine
    └── RequestLostError         the engine ended a request without being asked to
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rayvisor._core.protocol.causes import Causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor.faults import Termination, root_of
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "EngineGoneError",
    "EngineStartFailedError",
    "EngineStatus",
    "ExternalLoad",
    "Report",
    "RequestLostError",
    "RequestRefusedError",
    "ServesExternally",
    "SharesResources",
    "load_engine",
]

Report = Callable[[str, str], None]
"""Called with a phase of the start and a detail."""

ENGINES: Mapping[str, str] = {
    "server": "rayvisor._backends.server.server_engine:ServerEngine",
    "sim": "rayvisor._backends.sim.sim_engine:SimEngine",
    "vllm": "rayvisor._backends.vllm.vllm_engine:VllmEngine",
    "vllm-rehearsal": "rayvisor._backends.vllm.rehearsal:RehearsalEngine",
}


class EngineError(Exception):
    """Base of the errors of an engine. Their data is plain, whatever caused them."""


class EngineStartFailedError(EngineError):
    """The engine did not come up. None of its processes is left."""

    def __init__(self, termination: Termination) -> None:
        self.termination = termination
        super().__init__(str(termination.root))

    def __reduce__(self) -> tuple[type[EngineStartFailedError], tuple[Termination]]:
        return EngineStartFailedError, (self.termination,)


class EngineGoneError(EngineError):
    """The engine has ended: by itself (``died`` returns why), or on request."""


class RequestRefusedError(EngineError):
    """One request is wrong; the error belongs to its caller."""

    def __init__(self, causes: Causes) -> None:
        self.causes = causes
        super().__init__(str(root_of(causes)))

    def __reduce__(self) -> tuple[type[RequestRefusedError], tuple[Causes]]:
        return RequestRefusedError, (self.causes,)


class RequestLostError(EngineError):
    """The engine ended a request without being asked to; ``reason`` is all that it reports."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class EngineStatus(NamedTuple):
    """The status that an engine with fault tolerance reports."""

    status: str
    """``"healthy"``, ``"unhealthy"`` or ``"dead"``, as in vLLM."""
    fault: str = ""
    """Its own description of the fault: with vLLM the exception's type name."""

    @classmethod
    def worst_of(cls, engines: Iterable[Mapping[str, Any]]) -> EngineStatus:
        """Return the worst status in vLLM's list of engines; healthy if it is empty.

        >>> EngineStatus.worst_of([{"status": "healthy"}, {"status": "dead", "fault_info": "OSError"}])
        EngineStatus(status='dead', fault='OSError')
        """
        reported = list(engines)
        for status in ("dead", "unhealthy"):
            for engine in reported:
                if engine["status"] == status:
                    return cls(status, str(engine.get("fault_info") or ""))
        return cls("healthy")


class ExternalLoad(NamedTuple):
    """The requests that an engine receives directly, not through its host, and their progress."""

    waiting: int
    """Number of requests that wait for it."""
    since: float
    """The time on the monotonic clock since which at least one request has waited."""
    progressed: float
    """The time of its last progress on the monotonic clock; minus infinity if there was none."""
    unanswered: str = ""
    """A description of the health check that it has not answered; empty if there is none."""
    worked: bool = False
    """Whether it has done useful work."""


@runtime_checkable
class SharesResources(Protocol):
    """An engine with a costly resource that the later engines of its host use as well."""

    def acquire_shared(self) -> Callable[[], None]:
        """Keep the resource beyond this engine's end. Return a function that releases it, and may block."""
        ...


@runtime_checkable
class ServesExternally(Protocol):
    """An engine that receives requests directly, not only through its host: a server."""

    def external_load(self) -> ExternalLoad:
        """Return the load of these requests."""
        ...


class Engine(Protocol):
    """One incarnation of an engine, with the processes it consists of.

    It is started once and stopped once. ``start`` can be cancelled, and ``stop`` may interrupt it.
    Everything runs on the host's event loop, which an engine never blocks.
    """

    async def start(self, report: Report) -> EngineInfo:
        """Bring the engine up.

        Raises
        ------
        EngineStartFailedError
            It did not come up, or was stopped meanwhile. None of its processes is left.
        """
        ...

    def generate(self, command: GenerateCommand) -> AsyncIterator[Chunk]:
        """Yield the tokens of one command as they come; the last chunk has a finish reason.

        The iterator ends without one after ``abort``, and raises when the engine ends. Closing it aborts the
        request in the engine.

        Raises
        ------
        RequestRefusedError
            The command is wrong.
        RequestLostError
            The engine ended the request by itself.
        EngineGoneError
            The engine has ended.
        """
        ...

    async def abort(self, requests: Sequence[str]) -> None:
        """End these requests; their ``generate`` ends without a finish reason. Unknown ones are ignored."""
        ...

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Carry out one of the calls that the engine offers beside requests; the answer is plain data.

        An engine with fault tolerance offers ``get_status``, and ``handle_fault`` with an instruction:
        ``{"instruction", "params", "request_id"}``, answered by ``{"request_id", "success", "reason"}``.

        Raises
        ------
        EngineError
            It does not offer this call.
        """
        ...

    async def status(self) -> EngineStatus:
        """Return its status from earlier reports of its processes, immediately, whatever their state."""
        ...

    async def stop(self, grace: float) -> None:
        """End the engine and its whole process tree: request, wait at most ``grace`` seconds, kill, prove.

        Raises
        ------
        EngineError
            A process survived SIGKILL; the message names it.
        """
        ...

    async def died(self) -> Termination:
        """Wait until the engine ends by itself, and return why; never returns if it was stopped."""
        ...

    def processes(self) -> tuple[ProcessId, ...]:
        """Return the known processes of the engine, the host not included."""
        ...


def load_engine(
    kind: str,
    incarnation: int,
    arguments: Mapping[str, Any],
    log_file: str = "",
    *,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Engine:
    """Create an engine that has not been started. Imports its adapter, nothing heavy.

    Parameters
    ----------
    kind
        ``"vllm"``, ``"sim"``, ``"server"`` for a process that serves HTTP, or ``"vllm-rehearsal"``, see
        ``rayvisor.testing.rehearse``.
    incarnation
        The number of this start.
    arguments
        The engine's own arguments, by name.
    log_file
        The file for the output of the engine's processes; empty: one in the temporary folder.
    timeouts
        Timeouts and intervals of the engine's adapter.
    """
    if kind not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(sorted(ENGINES))}, not {kind!r}")
    module, _, name = ENGINES[kind].partition(":")
    engine: Engine = getattr(import_module(module), name)(incarnation, arguments, log_file, timeouts=timeouts)
    return engine
