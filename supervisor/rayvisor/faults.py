"""Faults: failures of one incarnation of one child, as plain data.

A [`Fault`][rayvisor.Fault] never holds an exception object from Ray or vLLM, so that reading one requires
importing neither: causes are pairs of type name and message, outermost first.

    >>> fault = Fault(
    ...     child="llm/1", incarnation=2, at=0.0, source="host", fault_class=FaultClass.FATAL,
    ...     causes=(Cause("EngineDeadError", "EngineCore encountered an issue"),
    ...             Cause("ProcessKilled", "EngineCore (pid 4711) was ended by SIGKILL")),
    ...     signal=9,
    ... )
    >>> fault.root.type
    'ProcessKilled'
    >>> print(fault)
    ProcessKilled: EngineCore (pid 4711) was ended by SIGKILL (llm/1, incarnation 2, FATAL, seen by host)

The end of an incarnation is reported as one [`Termination`][rayvisor.faults.Termination], which travels from
the process that saw it to the supervisor unchanged. The supervisor classifies it and makes the `Fault` of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "RULES",
    "Case",
    "Cause",
    "Evidence",
    "Exit",
    "ExitKind",
    "Fault",
    "FaultClass",
    "Termination",
    "classify",
]

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)
_FOLLOWS = re.compile(r"^(?:The above exception was|During handling of the above)", re.MULTILINE)
"""Between an exception and one that followed from it."""


class FaultClass(StrEnum):
    """The kind of response that a fault calls for."""

    TRANSIENT = "TRANSIENT"
    """It may pass by itself: wait again, bounded, then treat as FATAL."""
    RECOVERABLE = "RECOVERABLE"
    """The engine reports itself unhealthy and can be recovered in place."""
    FATAL = "FATAL"
    """This incarnation is lost: end it and restart by strategy."""
    PERMANENT = "PERMANENT"
    """No restart fixes it: DEAD.FAILED, escalated with the reason."""
    INTENDED = "INTENDED"
    """Requested: not a fault."""
    CLIENT = "CLIENT"
    """One request was wrong: returned to its caller, the engine is fine."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One link of a cause chain: the exception's type name and its message."""

    type: str
    message: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


def root_of(causes: tuple[Cause, ...]) -> Cause:
    """Return the innermost cause of a chain."""
    return causes[-1] if causes else Cause("UnknownError", "no cause was reported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The facts about a failure, as its observer reports them; parameters as in [`Fault`][rayvisor.Fault]."""

    causes: tuple[Cause, ...] = ()
    source: str = "runtime"
    traceback: str = ""
    exit_code: int | None = None
    signal: int | None = None
    node: str = ""
    log_file: str = ""
    phase: str = ""

    @property
    def root(self) -> Cause:
        """The innermost cause: the first thing that a reader wants to know."""
        return root_of(self.causes)

    def as_fault(self, *, child: str, incarnation: int, at: float, fault_class: FaultClass) -> Fault:
        """Make the fault record of it, with all these facts."""
        facts = {field.name: getattr(self, field.name) for field in fields(Evidence)}
        return Fault(child=child, incarnation=incarnation, at=at, fault_class=fault_class, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Evidence):
    """One fault of one incarnation, plain data from end to end.

    Parameters
    ----------
    child
        Path of the child, for example ``"llm/1"``.
    incarnation
        Which start of the child it happened to (1, 2, ...).
    at
        When it was seen, in seconds on the clock of the supervisor's runtime.
    source
        The observer: ``"ray"``, ``"host"``, ``"engine"``, ``"agent"``, ``"probe"`` or ``"runtime"``.
    fault_class
        The response it calls for.
    causes
        The cause chain, outermost first; the last one is the root cause.
    traceback
        Where the root cause was raised, as text; empty if not known.
    exit_code, signal
        How the process ended; None if it did not, or if that is not known.
    node
        Address of the machine; empty if not known.
    log_file
        The log of the engine or of its host, on that machine; empty if there is none.
    phase
        The activity it interrupted: ``"starting"``, ``"loading"``, ``"serving"``, ...
    """

    child: str
    incarnation: int
    at: float
    fault_class: FaultClass

    @property
    def place(self) -> str:
        """File and line that raised the root cause, ``"/srv/model.py, line 12"``; empty if not known."""
        first = _FOLLOWS.split(self.traceback, maxsplit=1)[0]
        frames = _FRAME.findall(first)
        return f"{frames[-1][0]}, line {frames[-1][1]}" if frames else ""

    def __str__(self) -> str:
        phase = f", while {self.phase}" if self.phase else ""
        return (
            f"{self.root} ({self.child}, incarnation {self.incarnation}, {self.fault_class}, "
            f"seen by {self.source}{phase})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination(Evidence):
    """The end of an incarnation, or the failure of its start, as its observer reports it.

    It is the only record of an end on the way from an engine's process to the supervisor. A layer that knows
    more adds it with ``dataclasses.replace``.

    Parameters
    ----------
    causes, source, traceback, exit_code, signal, node, log_file, phase
        As in [`Fault`][rayvisor.Fault].
    intended
        It was asked to end, or it exited on purpose.
    unavailable
        It cannot be reached; its end is not confirmed yet.
    permanent
        No new start can succeed: the cause is in the configuration, or it cannot be recreated.
    init_failed
        It never came up: its construction raised.
    lost
        Its process ended, and not because its own code raised while it was constructed.
    overdue
        It did not come up within its start timeout.
    out_of_memory
        It was killed because its node ran low on memory.
    preempted
        Its node was taken away, or its place was given to something else.
    node_died
        Its node died.
    restarted_by_ray
        Ray brings it up again by itself: an adopted actor with ``max_restarts``.
    """

    intended: bool = False
    unavailable: bool = False
    permanent: bool = False
    init_failed: bool = False
    lost: bool = False
    overdue: bool = False
    out_of_memory: bool = False
    preempted: bool = False
    node_died: bool = False
    restarted_by_ray: bool = False


_MEMORY = frozenset({"MemoryError", "OutOfMemoryError", "OOMKilled"})
_REFUSED = ("out of memory", "can't allocate memory", "cannot allocate memory")
"""Messages of torch, Python and the C library when memory is refused; the types they raise vary."""
_PASSING = frozenset(
    {"ActorUnavailableError", "ConnectionResetError", "ConnectionRefusedError", "RpcError", "GetTimeoutError"}
)


def memory_refused(causes: tuple[Cause, ...]) -> bool:
    """Return whether one of these causes says that memory could not be allocated."""
    return any(
        cause.type in _MEMORY or any(text in cause.message.lower() for text in _REFUSED) for cause in causes
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One termination to be classified, with the child's history; each row of `RULES` tests it."""

    termination: Termination
    starting: bool
    """Whether it ended before it was up."""
    served: bool
    """Whether this configuration has ever come up."""

    def names(self, kind: str) -> bool:
        """Return whether an exception of this type is among the causes."""
        return any(cause.type == kind for cause in self.termination.causes)

    @property
    def never_up(self) -> bool:
        """Whether it failed to start, and no start of this configuration has ever succeeded."""
        return self.starting and not self.served


RULES: list[tuple[str, Callable[[Case], bool], FaultClass]] = [
    ("intentional exit", lambda case: case.termination.intended, FaultClass.INTENDED),
    ("outcome not confirmed yet", lambda case: case.termination.unavailable, FaultClass.TRANSIENT),
    ("no new start can succeed", lambda case: case.termination.permanent, FaultClass.PERMANENT),
    # The predecessor's memory may still be held: worth a bounded number of tries.
    (
        "out of memory",
        lambda case: case.termination.out_of_memory or memory_refused(case.termination.causes),
        FaultClass.FATAL,
    ),
    ("ended by a signal", lambda case: case.termination.signal is not None, FaultClass.FATAL),
    (
        "ended by its node or scheduler",
        lambda case: case.termination.preempted or case.termination.node_died,
        FaultClass.FATAL,
    ),
    (
        "its runtime environment cannot be created",
        lambda case: case.never_up and case.names("RuntimeEnvSetupError"),
        FaultClass.PERMANENT,
    ),
    ("its process was lost", lambda case: case.termination.lost, FaultClass.FATAL),
    ("a start that timed out", lambda case: case.termination.overdue, FaultClass.FATAL),
    (
        "a connection that may come back",
        lambda case: case.starting and case.termination.root.type in _PASSING,
        FaultClass.FATAL,
    ),
    ("a start that failed, and none has ever succeeded", lambda case: case.never_up, FaultClass.PERMANENT),
]
"""The classification table: (row, test, class). The first row that fits decides; without one it is FATAL."""


def classify(termination: Termination, *, starting: bool = False, served: bool = False) -> FaultClass:
    """Return the class of a termination, by the first row of `RULES` that fits; FATAL if none does.

    Parameters
    ----------
    termination
        The report of the backend.
    starting
        Whether it ended before it was up.
    served
        Whether this configuration has ever come up: a failing start is then worth another try.
    """
    case = Case(termination, starting, served)
    for _, fits, answer in RULES:
        if fits(case):
            return answer
    return FaultClass.FATAL


class ExitKind(StrEnum):
    """The four kinds of exit."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    KILLED = "killed"
    FAULT = "fault"


class Exit(NamedTuple):
    """The reason for the end of one incarnation (OTP: the exit reason)."""

    kind: ExitKind
    word: str = ""
    """The reason of a shutdown (OTP: ``{shutdown, Reason}``), or the name of a fault without a record."""
    fault: Fault | None = None
    child: str = ""
    """For a supervisor that could not start: the id of the child whose start failed."""
    below: Exit | None = None
    """The exit of that child's start."""
    final: bool = False
    """A supervisor gave up because its children crash in a loop: no parent restarts it."""
    restarted_by_ray: bool = False
    """Ray restarts it by itself (an adopted actor): nothing is decided or counted."""

    @property
    def abnormal(self) -> bool:
        """Whether a transient child is restarted after it (OTP: every reason but normal and shutdown)."""
        return self.kind is ExitKind.KILLED or self.kind is ExitKind.FAULT

    @property
    def permanent(self) -> bool:
        """Whether no restart can fix it, at any level of the tree."""
        return self.final or (self.fault is not None and self.fault.fault_class is FaultClass.PERMANENT)

    def __str__(self) -> str:
        if self.fault is not None:
            return str(self.fault)
        if self.below is not None:
            return f"{self.child!r} could not be started: {self.below}"
        return f"{self.kind}({self.word})" if self.word else str(self.kind.value)


NORMAL = Exit(ExitKind.NORMAL)
SHUTDOWN = Exit(ExitKind.SHUTDOWN)
KILLED = Exit(ExitKind.KILLED)


def crashed(fault: Fault) -> Exit:
    """Make the exit of a fault: normal for an intended one, abnormal for every other."""
    if fault.fault_class is FaultClass.INTENDED:
        return Exit(ExitKind.NORMAL, fault=fault)
    return Exit(ExitKind.FAULT, fault=fault)
