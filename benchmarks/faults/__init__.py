"""The fault matrix: injects every fault and compares the response with the expected one.

``python -m benchmarks faults`` (``make faults``) prints a line for each fault; the exit status is 1 if any
response differs from the expected one.
"""

from __future__ import annotations

from benchmarks.faults.command import main

__all__ = ["main"]
