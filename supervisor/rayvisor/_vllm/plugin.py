"""What vLLM loads into each of its processes, EngineCore and workers (``vllm.general_plugins``).

An engine that is asked to end does so process after process, and at the end of each one Python's
collector goes through everything that torch and vLLM have ever imported: 2.5 s of a core, twice, for
memory that the system is about to take back. Frozen objects are passed over: 0.3 s. vLLM does the
same by itself, on one platform only.

Where rayvisor is importable but not installed as a distribution, vLLM does not find this; engines then
just end more slowly.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os

from rayvisor._engine.processes import TAG

__all__ = ["register"]


def register() -> None:
    """Make the end of this process quick, if it is one of ours.

    Not that of the host, which also loads this: there it would only have libraries complain of objects
    that are left.
    """
    if TAG in os.environ and multiprocessing.parent_process() is not None:
        atexit.register(gc.freeze)
