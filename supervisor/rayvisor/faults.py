"""Faults: what went wrong with one incarnation of one child, as plain data.

A [`Fault`][rayvisor.Fault] never holds an exception object from Ray or vLLM, so that no reader of it
has to import either: causes are pairs of type name and message, outermost first.

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
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

__all__ = ["RULES", "Cause", "Ending", "Exit", "ExitKind", "Fault", "FaultClass", "classify"]

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)
_FOLLOWS = re.compile(r"^(?:The above exception was|During handling of the above)", re.MULTILINE)
"""Between an exception and one that followed from it."""


class FaultClass(StrEnum):
    """What kind of answer a fault asks for."""

    TRANSIENT = "TRANSIENT"
    """It may pass by itself: wait again, bounded, then treat as FATAL."""
    RECOVERABLE = "RECOVERABLE"
    """The engine reports itself unhealthy and can be recovered in place."""
    FATAL = "FATAL"
    """This incarnation is lost: end it and restart by strategy."""
    PERMANENT = "PERMANENT"
    """No restart cures it: DEAD.FAILED, escalated with the reason."""
    INTENDED = "INTENDED"
    """Asked for: not a fault."""
    CLIENT = "CLIENT"
    """One request was wrong: back to its caller, the engine is fine."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One link of a cause chain: the exception's type name and its message."""

    type: str
    message: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of one incarnation, plain data from end to end.

    Parameters
    ----------
    child
        Path of the child, for example ``"llm/1"``.
    incarnation
        Which start of the child it happened to (1, 2, ...).
    at
        When it was seen, seconds on the clock of the supervisor's runtime.
    source
        Who saw it: ``"ray"``, ``"host"``, ``"engine"``, ``"agent"``, ``"probe"``, ``"runtime"``.
    fault_class
        What answer it asks for.
    causes
        The cause chain, outermost first; the last one is the root cause.
    """

    child: str
    incarnation: int
    at: float
    source: str
    fault_class: FaultClass
    causes: tuple[Cause, ...]
    traceback: str = ""
    exit_code: int | None = None
    signal: int | None = None
    node: str = ""
    log_file: str = ""
    phase: str = ""

    @property
    def root(self) -> Cause:
        """The innermost cause: what a reader wants to know first."""
        return self.causes[-1] if self.causes else Cause("UnknownFault", "no cause was reported")

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
class Ending:
    """How an incarnation ended by itself, or why it did not start, as its backend reports it."""

    causes: tuple[Cause, ...]
    """Outermost first; the last one is the root cause."""
    source: str = "runtime"
    traceback: str = ""
    exit_code: int | None = None
    signal: int | None = None
    intended: bool = False
    """It was asked to end, or ended as it meant to."""
    unavailable: bool = False
    """Nobody has ruled yet whether it lives."""
    out_of_memory: bool = False
    preempted: bool = False
    overdue: bool = False
    """It did not come up within its start deadline."""
    lost: bool = False
    """Its process ended, and not because what it was told to start raised."""
    restarted_by_ray: bool = False
    """Somebody else brings it up again: an adopted actor that Ray itself restarts."""
    final: bool = False
    """Nobody could make it again."""
    node: str = ""
    log_file: str = ""
    phase: str = ""

    @property
    def root(self) -> Cause:
        """The innermost cause."""
        return self.causes[-1] if self.causes else Cause("UnknownEnd", "no cause was reported")


_MEMORY = frozenset({"MemoryError", "OutOfMemoryError", "OOMKilled"})


# What torch, Python and the C library say when memory is refused; the types they raise are of any kind.
_REFUSED = ("out of memory", "can't allocate memory", "cannot allocate memory")


_PASSING = frozenset(
    {"ActorUnavailableError", "ConnectionResetError", "ConnectionRefusedError", "RpcError", "GetTimeoutError"}
)


def _memory(ending: Ending) -> bool:
    return ending.out_of_memory or any(
        cause.type in _MEMORY or any(words in cause.message.lower() for words in _REFUSED)
        for cause in ending.causes
    )


def _names(ending: Ending, kind: str) -> bool:
    return any(cause.type == kind for cause in ending.causes)


@dataclass(frozen=True, slots=True)
class _Case:
    ending: Ending
    starting: bool
    served: bool


RULES: list[tuple[str, Callable[[_Case], bool], FaultClass]] = [
    ("it meant to end", lambda case: case.ending.intended, FaultClass.INTENDED),
    ("nobody has ruled yet", lambda case: case.ending.unavailable, FaultClass.TRANSIENT),
    ("nobody can make it again", lambda case: case.ending.final, FaultClass.PERMANENT),
    # The predecessor's memory may still be held: worth a bounded number of tries.
    ("out of memory", lambda case: _memory(case.ending), FaultClass.FATAL),
    ("ended by a signal", lambda case: case.ending.signal is not None, FaultClass.FATAL),
    ("ended by its node or scheduler", lambda case: case.ending.preempted, FaultClass.FATAL),
    (
        "its environment cannot be made",
        lambda case: case.starting and not case.served and _names(case.ending, "RuntimeEnvSetupError"),
        FaultClass.PERMANENT,
    ),
    ("its process was lost", lambda case: case.ending.lost, FaultClass.FATAL),
    ("a start that took too long", lambda case: case.ending.overdue, FaultClass.FATAL),
    (
        "a connection that may come back",
        lambda case: case.starting and case.ending.root.type in _PASSING,
        FaultClass.FATAL,
    ),
    (
        "it never came up, and would not the next time",
        lambda case: case.starting and not case.served,
        FaultClass.PERMANENT,
    ),
]


def classify(ending: Ending, *, starting: bool = False, served: bool = False) -> FaultClass:
    """Say which class an ending belongs to.

    Parameters
    ----------
    ending
        What the backend reports.
    starting
        Whether it ended before it was up.
    served
        Whether this configuration has ever come up: then a failing start is worth another try.
    """
    case = _Case(ending, starting, served)
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
    """How one incarnation ended."""

    kind: ExitKind
    word: str = ""
    """For a shutdown "with a word" (OTP: ``{shutdown, Word}``); for a fault without a record its name."""
    fault: Fault | None = None
    child: str = ""
    """For a supervisor that could not start: the id of the child whose start failed."""
    below: Exit | None = None
    """And how that start failed."""
    final: bool = False
    """A supervisor gave up over children that never got anywhere: no parent tries it again."""

    restarted_by_ray: bool = False
    """Somebody else brings it up again (Ray restarts an adopted actor): nothing is decided or counted."""

    @property
    def abnormal(self) -> bool:
        """Whether a transient child is restarted after it (OTP: all but normal and shutdown)."""
        return self.kind is ExitKind.KILLED or self.kind is ExitKind.FAULT

    @property
    def permanent(self) -> bool:
        """Whether no restart can cure it, however far up."""
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
    """Make the exit of a fault: an intended end is normal, everything else abnormal."""
    if fault.fault_class is FaultClass.INTENDED:
        return Exit(ExitKind.NORMAL, fault=fault)
    return Exit(ExitKind.FAULT, fault=fault)
