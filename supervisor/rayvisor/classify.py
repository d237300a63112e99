"""Which class a fault belongs to: the innermost cause first, then the child's history.

The table is read from the top; the first row that fits decides. Pure: it sees plain data only.

    >>> classify(Ending(causes=(Cause("ValueError", "max_model_len must be positive"),)), starting=True)
    <FaultClass.PERMANENT: 'PERMANENT'>
    >>> classify(Ending(causes=(Cause("OutOfMemoryError", "CUDA out of memory"),)), starting=True)
    <FaultClass.FATAL: 'FATAL'>
    >>> classify(Ending(causes=(Cause("ValueError", "..."),)), starting=True, served=True)
    <FaultClass.FATAL: 'FATAL'>
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rayvisor.faults import Cause, FaultClass

__all__ = ["RULES", "Ending", "classify"]


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
    renewed: bool = False
    """Somebody else brings it up again: an adopted actor that Ray itself restarts."""
    final: bool = False
    """Nobody could make it again."""
    node: str = ""
    log_file: str = ""
    doing: str = ""

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
"""Rows of (name, predicate, class), read from the top; nothing fits: FATAL."""


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
