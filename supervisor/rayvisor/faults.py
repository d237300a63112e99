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
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Cause", "Fault", "FaultClass"]

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
    doing: str = ""

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
        doing = f", while {self.doing}" if self.doing else ""
        return (
            f"{self.root} ({self.child}, incarnation {self.incarnation}, {self.fault_class}, "
            f"seen by {self.source}{doing})"
        )
