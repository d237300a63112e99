"""The fault matrix: every fault is injected, and what came of it compared with what should.

``python -m benchmarks faults`` (``make faults``) prints a line a fault; exit status 1 if any line is off.
"""

from __future__ import annotations

from benchmarks.faults.command import main

__all__ = ["main"]
