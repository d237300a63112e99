"""Rows of the matrix: the injected fault and the expected response."""

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
    """None if no fault is expected."""
    root: str
    """Pattern of the root cause (type and message)."""
    response: Response
    run: Callable[[Trial], Awaitable[None]]
    host: bool = True
    """Whether its engine needs a separate host process; otherwise the row can run without Ray."""
    only: str = ""
    """The only engine it runs with, ``sim`` or ``vllm``; empty if it runs with both or needs none."""

    def deviations(self, found: Observed) -> str:
        """Return the differences from the expected response; empty if there are none."""
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
            wrong.append(f"left over: {', '.join(found.left)}")
        return "; ".join(wrong)
