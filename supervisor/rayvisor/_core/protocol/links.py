"""The seam between the runtime and a host: what a host can be asked, wherever it lives.

Two modules implement it: `_backends.ray.hosts` (an actor on a cluster) and `_backends.host.local` (a host in
this process, for tests and fast runs). Both pass the same contract tests. Everything that
crosses it is plain data, and every ``timeout`` is in seconds from now.

What a call raises:

* `HostGoneError`: the host has ended, or cannot be reached; `HostGoneError.end` says how.
* `HostCallFailedError`: the call itself failed inside a host that lives on.
* `TimeoutError`: no answer within the deadline. The call may or may not have been carried out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rayvisor._core.protocol.wire import (
    Died,
    EngineInfo,
    GenerateCommand,
    HostDescription,
    HostItem,
    ProcessId,
    ProcessObservation,
)
from rayvisor.faults import Cause
from rayvisor.specs import ActorOptions, StallLimits
from rayvisor.specs.limits import PATIENT

__all__ = [
    "CleanupReport",
    "HostCallFailedError",
    "HostEnd",
    "HostFactory",
    "HostGoneError",
    "HostLink",
    "HostView",
]


class CleanupReport(NamedTuple):
    """What became of a host's processes."""

    killed: tuple[ProcessId, ...]
    """Processes that had to be killed."""
    left: tuple[ProcessId, ...]
    """Processes that were still alive when the deadline passed."""
    verified: bool
    """Whether it is proven that none is left. False too when nobody could be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEnd:
    """How a host ended, or why it cannot be reached."""

    causes: tuple[Cause, ...]
    """Outermost first; the last one is the root cause."""
    exit_code: int | None = None
    signal: int | None = None
    intended: bool = False
    """It was asked to end, or it left by itself in an orderly way."""
    unavailable: bool = False
    """Nobody has ruled yet: it may live. Ask again, `HostLink.ended` then watches anew."""
    init_failed: bool = False
    """It never came up: its construction raised."""
    out_of_memory: bool = False
    preempted: bool = False
    node_died: bool = False
    restarted_by_ray: bool = False
    """Whoever made it has begun to make it again by himself: Ray restarts an actor that it may restart."""
    node: str = ""
    log_file: str = ""
    traceback: str = ""

    @property
    def root(self) -> Cause:
        """The innermost cause."""
        return self.causes[-1] if self.causes else Cause("UnknownEnd", "no cause was reported")


class HostView(NamedTuple):
    """What is seen of a host that does not answer, from beside it."""

    sights: tuple[ProcessObservation, ...]
    """Its processes, itself first; empty when nobody on its node can tell."""
    stack: str = ""
    """Where its event loop stands, if it could still say so; the innermost frame first."""
    node: str = ""
    log_file: str = ""


class HostGoneError(Exception):
    """The host has ended or cannot be reached."""

    def __init__(self, child: str, epoch: int, end: HostEnd) -> None:
        self.child = child
        self.epoch = epoch
        self.end = end
        state = "cannot be reached" if end.unavailable else "has ended"
        super().__init__(f"the host of {child!r} (epoch {epoch}) {state}: {end.root}")

    def __reduce__(self) -> tuple[type[HostGoneError], tuple[str, int, HostEnd]]:
        return (HostGoneError, (self.child, self.epoch, self.end))


class HostCallFailedError(Exception):
    """A call failed inside a host that lives on."""

    def __init__(self, call: str, causes: Sequence[tuple[str, str]], traceback: str) -> None:
        self.call = call
        self.causes = tuple(Cause(*cause) for cause in causes)
        self.traceback = traceback
        root = self.causes[-1] if self.causes else Cause("UnknownError", "no cause was reported")
        super().__init__(f"{call} failed in its host: {root}")

    def __reduce__(self) -> tuple[type[HostCallFailedError], tuple[str, list[tuple[str, str]], str]]:
        return (HostCallFailedError, (self.call, [(c.type, c.message) for c in self.causes], self.traceback))


class HostLink(Protocol):
    """One host process of one child: the epoch tells one host of a child from the next."""

    @property
    def child(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    async def ready(self, timeout: float) -> HostDescription:
        """Wait until the host answers and its processes are watched."""
        ...

    async def ensure_started(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        timeout: float,
        limits: StallLimits = PATIENT,
    ) -> EngineInfo | Died:
        """Start an engine, or wait for the start of this incarnation that is under way; never twice.

        The deadline counts from the start's last progress; ``limits`` bound the whole, and what comes after.
        """
        ...

    async def stop_engine(self, incarnation: int, grace: float) -> None:
        """End the engine with its process tree; the host stays."""
        ...

    def stream(self) -> AsyncIterator[list[HostItem]]:
        """Everything the host has to say, a batch a tick; a newer stream replaces the older.

        An empty batch is a heartbeat: there is one every ``limits.beat`` seconds at least.
        """
        ...

    async def submit(self, incarnation: int, orders: Sequence[GenerateCommand]) -> None: ...

    async def abort(self, requests: Sequence[tuple[str, int]]) -> None:
        """End these (request, attempt) pairs in the engine; nothing more comes from them."""
        ...

    async def flow(self, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading the engine's output for a request whose reader is slow."""
        ...

    async def ask(
        self, incarnation: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float
    ) -> Any:
        """Have the engine carry out one of the calls it offers beside requests, for example weight updates.

        Raises
        ------
        HostCallFailedError
            It raised, offers no such call, was not done in time, or that incarnation does not serve here.
        """
        ...

    async def view(self, timeout: float) -> HostView:
        """Look at the host from beside it, without asking itself."""
        ...

    async def ended(self) -> HostEnd:
        """Wait until the host has ended; any number of callers may wait."""
        ...

    async def end(self, timeout: float) -> CleanupReport:
        """Kill the host and its whole process tree, and return the proof that they are gone."""
        ...


class HostFactory(Protocol):
    """Where hosts are made."""

    async def create(self, *, child: str, epoch: int, engine: str, options: ActorOptions) -> HostLink:
        """Make a host. It is recorded before this returns: whatever happens next, it can be ended."""
        ...

    async def end_child(self, child: str, timeout: float) -> CleanupReport:
        """End every host of this child that is left, and give back what the child holds for them."""
        ...

    async def close(self, timeout: float = 30.0) -> None:
        """End every host that is left and give back everything that this place took."""
        ...
