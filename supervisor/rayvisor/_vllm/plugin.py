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
from pathlib import Path

from rayvisor._engine.processes import TAG

__all__ = ["register"]

_ROLES = {"EngineCore": "::EngineCore", "VllmWorker": "::Worker", "Worker": "::Worker"}
"""At most 15 characters: the kernel keeps no more."""


def register() -> None:
    """Make the end of this process quick, if it is one of ours.

    Not that of the host, which also loads this: there it would only have libraries complain of objects
    that are left.
    """
    if TAG in os.environ and multiprocessing.parent_process() is not None:
        atexit.register(gc.freeze)
        _name_first_thread(multiprocessing.current_process().name)


def _name_first_thread(process: str) -> None:
    """Say what this process is where its title does not: setting that is not always possible.

    vLLM names the process ``EngineCore`` or ``VllmWorker-0`` for multiprocessing, and sets the title with
    ``setproctitle``, which does nothing where it does not find the memory that holds the title.
    """
    role = next((role for name, role in _ROLES.items() if process.startswith(name)), "")
    if role and "::" not in Path("/proc/self/cmdline").read_text(encoding="utf-8", errors="replace"):
        Path(f"/proc/self/task/{os.getpid()}/comm").write_text(role, encoding="utf-8")
