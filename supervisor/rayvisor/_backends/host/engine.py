"""The seam between an engine host and the engine that runs in it.

An engine is a whole process tree below the host. Everything that the host knows of it goes through
[`Engine`][rayvisor._backends.host.engine.Engine]; what fails comes out as one of four exceptions, and each
carries plain data only, since exception objects of vLLM's must never leave the host process:

    EngineError
    ├── EngineStartFailedError   ``start`` did not come to an end; nothing of the engine is left
    ├── EngineGoneError          the engine has ended; ``died`` tells why
    ├── RequestRefusedError      this one request is wrong; the engine is fine
    └── RequestLostError         the engine ended a request that nobody asked it to end
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rayvisor._core.protocol.causes import Causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor.faults import Termination, root_of

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "EngineGoneError",
    "EngineStartFailedError",
    "EngineStatus",
    "Outside",
    "Report",
    "RequestLostError",
    "RequestRefusedError",
    "ServesOutside",
    "Shares",
    "load_engine",
]

Report = Callable[[str, str], None]
"""Takes a phase of the start and a detail."""

ENGINES: Mapping[str, str] = {
    "server": "rayvisor._backends.server.engine:ServerEngine",
    "sim": "rayvisor._backends.sim.engine:SimEngine",
    "vllm": "rayvisor._backends.vllm.engine:VllmEngine",
    "vllm-rehearsal": "rayvisor._backends.vllm.rehearsal:RehearsalEngine",
}


class EngineError(Exception):
    """What an engine raises. Its data is plain, whatever was behind it."""


class EngineStartFailedError(EngineError):
    """The engine did not come up. No process of it is left."""

    def __init__(self, termination: Termination) -> None:
        self.termination = termination
        super().__init__(str(termination.root))

    def __reduce__(self) -> tuple[type[EngineStartFailedError], tuple[Termination]]:
        return EngineStartFailedError, (self.termination,)


class EngineGoneError(EngineError):
    """The engine has ended: by itself (``died`` returns why), or since it was asked to."""


class RequestRefusedError(EngineError):
    """One request is wrong: back to its caller."""

    def __init__(self, causes: Causes) -> None:
        self.causes = causes
        super().__init__(str(root_of(causes)))

    def __reduce__(self) -> tuple[type[RequestRefusedError], tuple[Causes]]:
        return RequestRefusedError, (self.causes,)


class RequestLostError(EngineError):
    """The engine ended a request without being asked, and says no more than ``reason``."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class EngineStatus(NamedTuple):
    """How an engine with fault tolerance says it is."""

    status: str
    """``"healthy"``, ``"unhealthy"`` or ``"dead"``, as vLLM has it."""
    fault: str = ""
    """What it says of its fault: for vLLM the exception's type name."""


class Outside(NamedTuple):
    """What is asked of an engine past its host, and how it gets on with that."""

    waiting: int
    """How many wait for it."""
    since: float
    """Since when somebody has waited all the time; on the monotonic clock."""
    progressed: float
    """When it got on last; before the clock began if never."""
    doubt: str = ""
    """What was asked of it in vain, in words."""
    worked: bool = False
    """Whether it has done useful work."""


@runtime_checkable
class Shares(Protocol):
    """An engine that has something costly, which those that follow it in its host use as well."""

    def share(self) -> Callable[[], None]:
        """Keep it when this engine has ended; give back what ends it too. That one may block for a moment."""
        ...


@runtime_checkable
class ServesOutside(Protocol):
    """An engine that is asked past its host as well: a server."""

    def outside(self) -> Outside:
        """Say what is asked of it there."""
        ...


class Engine(Protocol):
    """One incarnation of an engine, with the processes it consists of.

    It is started once and stopped once. ``start`` can be cancelled, and ``stop`` may interrupt it.
    Everything runs on one event loop, the host's, which an engine never blocks.
    """

    async def start(self, report: Report) -> EngineInfo:
        """Bring the engine up.

        Raises
        ------
        EngineStartFailedError
            It did not come up, or was stopped meanwhile. Nothing of it is left.
        """
        ...

    def generate(self, order: GenerateCommand) -> AsyncIterator[Chunk]:
        """Tokens of one order as they come; the last chunk has a finish reason.

        Ends without one when ``abort`` was asked for, and never waits for ever: when the engine ends,
        so does this. Closing the iterator aborts the request in the engine.

        Raises
        ------
        RequestRefusedError
            The order is wrong.
        RequestLostError
            The engine gave the request up by itself.
        EngineGoneError
            The engine has ended.
        """
        ...

    async def abort(self, requests: Sequence[str]) -> None:
        """End these requests; their ``generate`` ends without a finish reason. Unknown ones are no error."""
        ...

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Carry out one of the calls that the engine offers beside requests; the answer is plain data.

        One with fault tolerance takes ``get_status``, and ``handle_fault`` with an instruction:
        ``{"instruction", "params", "request_id"}``, answered by ``{"request_id", "success", "reason"}``.

        Raises
        ------
        EngineError
            It offers no such call.
        """
        ...

    async def status(self) -> EngineStatus:
        """Say how it is, from what its processes have told before: at once, whatever state they are in."""
        ...

    async def stop(self, grace: float) -> None:
        """End the engine and its whole process tree: ask, wait at most ``grace`` seconds, kill, prove.

        Raises
        ------
        EngineError
            A process outlived SIGKILL; the message names it.
        """
        ...

    async def died(self) -> Termination:
        """Why the engine ended by itself. Returns when it has, never when it was stopped."""
        ...

    def processes(self) -> tuple[ProcessId, ...]:
        """The processes of the engine that are known, the host not included."""
        ...


def load_engine(kind: str, incarnation: int, arguments: Mapping[str, Any], log_file: str = "") -> Engine:
    """Make an engine that has not been started. Imports its adapter, nothing heavy.

    Parameters
    ----------
    kind
        ``"vllm"``, ``"sim"``, ``"server"`` for a process that is talked to over HTTP, or
        ``"vllm-rehearsal"``, see ``rayvisor.testing.rehearse``.
    incarnation
        Which start this is: chunks and deaths are told apart by it.
    arguments
        The engine's own arguments, by name.
    log_file
        Where the output of the engine's processes goes; empty: a file in the temporary folder.
    """
    if kind not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(sorted(ENGINES))}, not {kind!r}")
    module, _, name = ENGINES[kind].partition(":")
    engine: Engine = getattr(import_module(module), name)(incarnation, arguments, log_file)
    return engine
