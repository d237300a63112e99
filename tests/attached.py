"""Runs programs on an existing Ray; starting one takes each program ten seconds of a core."""

from __future__ import annotations

import sys

__all__ = ["attached"]

# rayvisor sets the variable before it imports ray; else Ray prints each worker's death to standard output.
_PROGRAM = """
import os, sys, warnings
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing")
import ray
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray.init(address=sys.argv.pop(1), log_to_driver=False, logging_level="ERROR")
"""


def attached(address: str, program: str, *arguments: str) -> list[str]:
    """Return a command that connects to the Ray at ``address`` and then runs a program."""
    return [sys.executable, "-c", _PROGRAM + program, address, *arguments]
