"""The seam between the runtime and an engine host: the calls that a host answers, wherever it lives.

Two modules implement it: `_backends.ray.hosts` (an actor on a cluster) and `_backends.host.local` (a host in
this process, for tests and fast runs). Both pass the same contract tests. Everything that crosses it is plain
data, and every ``timeout`` is in seconds from now.

A call raises:

* `HostGoneError`: the host has ended, or cannot be reached; `HostGoneError.end` says how.
* `HostCallFailedError`: the call itself failed inside a host that is alive.
* `TimeoutError`: no answer within the timeout. The call may or may not have been carried out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rayvisor._core.protocol.causes import Causes
from rayvisor._core.protocol.wire import (
    EngineInfo,
    GenerateCommand,
    HostDescription,
    HostItem,
    ProcessId,
    ProcessObservation,
)
from rayvisor.faults import Termination, root_of
from rayvisor.specs import ActorOptions, StallLimits
from rayvisor.specs.limits import PATIENT

__all__ = [
    "CleanupReport",
    "HostCallFailedError",
    "HostFactory",
    "HostGoneError",
    "HostLink",
    "HostView",
    "merge_reports",
]


class CleanupReport(NamedTuple):
    """The fate of a host's processes."""

    killed: tuple[ProcessId, ...]
    """Processes that had to be killed."""
    left: tuple[ProcessId, ...]
    """Processes that were still alive when the timeout expired."""
    verified: bool
    """Whether it is proven that none is left. False too when no agent could be asked."""


def merge_reports(reports: Sequence[CleanupReport]) -> CleanupReport:
    """Make one report of several: verified if each of them is."""
    return CleanupReport(
        tuple(process for report in reports for process in report.killed),
        tuple(process for report in reports for process in report.left),
        verified=all(report.verified for report in reports),
    )


class HostView(NamedTuple):
    """A host that does not answer, as seen from outside of it."""

    sights: tuple[ProcessObservation, ...]
    """Its processes, itself first; empty if no agent on its node can answer."""
    stack: str = ""
    """The stack of its event loop, if it could still write that down; the innermost frame first."""
    node: str = ""
    log_file: str = ""


class HostGoneError(Exception):
    """The host has ended or cannot be reached."""

    def __init__(self, child: str, epoch: int, end: Termination) -> None:
        self.child = child
        self.epoch = epoch
        self.end = end
        state = "cannot be reached" if end.unavailable else "has ended"
        super().__init__(f"the host of {child!r} (epoch {epoch}) {state}: {end.root}")

    def __reduce__(self) -> tuple[type[HostGoneError], tuple[str, int, Termination]]:
        return (HostGoneError, (self.child, self.epoch, self.end))


class HostCallFailedError(Exception):
    """A call failed inside a host that is alive."""

    def __init__(self, call: str, causes: Causes, traceback: str) -> None:
        self.call = call
        self.causes = causes
        self.traceback = traceback
        super().__init__(f"{call} failed in its host: {root_of(causes)}")

    def __reduce__(self) -> tuple[type[HostCallFailedError], tuple[str, Causes, str]]:
        return (HostCallFailedError, (self.call, self.causes, self.traceback))


class HostLink(Protocol):
    """One host process of one child; the epoch distinguishes the successive hosts of a child."""

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
    ) -> EngineInfo | Termination:
        """Start an engine, or wait for the start of this incarnation that is under way; never start it twice.

        The timeout counts from the start's last progress. ``limits`` bound the whole start, and later hangs.
        """
        ...

    async def stop_engine(self, incarnation: int, grace: float) -> None:
        """End the engine with its process tree; the host stays."""
        ...

    def stream(self) -> AsyncIterator[list[HostItem]]:
        """Yield everything that the host reports, one batch per tick; a newer stream replaces the older.

        An empty batch is a heartbeat: there is one every ``limits.beat`` seconds at least.
        """
        ...

    async def submit(self, incarnation: int, commands: Sequence[GenerateCommand]) -> None: ...

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
            It raised, does not offer this call, took too long, or that incarnation does not serve here.
        """
        ...

    async def view(self, timeout: float) -> HostView:
        """Observe the host from outside, without a call to the host itself."""
        ...

    async def ended(self) -> Termination:
        """Wait until the host has ended; any number of callers may wait."""
        ...

    async def end(self, timeout: float) -> CleanupReport:
        """Kill the host and its whole process tree, and return the proof that they are gone."""
        ...


class HostFactory(Protocol):
    """Creates hosts."""

    async def create(self, *, child: str, epoch: int, engine: str, options: ActorOptions) -> HostLink:
        """Create a host. It is recorded before this returns, so that it can always be ended."""
        ...

    async def end_child(self, child: str, timeout: float) -> CleanupReport:
        """End every remaining host of this child, and release the resources that the child holds for them."""
        ...

    async def close(self, timeout: float = 30.0) -> None:
        """End every remaining host, and release everything that this factory holds."""
        ...
