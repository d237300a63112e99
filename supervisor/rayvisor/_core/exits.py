"""How an incarnation ended: OTP's exit reasons as an own small type."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from rayvisor.faults import FaultClass

if TYPE_CHECKING:
    from rayvisor.faults import Fault

__all__ = ["KILLED", "NORMAL", "SHUTDOWN", "Exit", "ExitKind", "crashed"]


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

    renewed: bool = False
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
