"""Rows of the matrix: what is injected, and what should come of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.faults.trial import Observed, Response
from rayvisor.faults import FaultClass

if TYPE_CHECKING:
    from benchmarks.faults.trial import Trial

__all__ = ["Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    name: str
    fault_class: FaultClass | None
    """None: there is nothing to find, all is fine."""
    root: str
    """Pattern of the root cause, type and message."""
    response: Response
    run: Callable[[Trial], Awaitable[None]]
    host: bool = True
    """Whether its engine must have a host process of its own; else it can be played without Ray."""
    only: str = ""
    """It can be played with this engine only: ``sim`` or ``vllm``; empty: with both, or without any."""

    def deviations(self, found: Observed) -> str:
        """What is not as it should be; empty if all is."""
        wrong = []
        if found.problem:
            wrong.append(found.problem)
        if found.fault_class is not self.fault_class:
            wrong.append(f"class {found.fault_class} instead of {self.fault_class}")
        if self.fault_class is not None and not re.search(self.root, found.root):
            wrong.append(f"root cause {found.root!r}")
        if found.response != self.response:
            wrong.append(f"{found.response!r} instead of {self.response!r}")
        if found.lost:
            wrong.append(f"{found.lost} requests lost")
        if found.left:
            wrong.append(f"left: {', '.join(found.left)}")
        return "; ".join(wrong)
