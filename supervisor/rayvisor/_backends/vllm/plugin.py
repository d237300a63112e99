"""What vLLM loads into each of its processes, EngineCore and workers (``vllm.general_plugins``).

**EngineCore forks its workers**, as vLLM does by itself on its own: an import of vLLM takes 13 s of a core,
and a forked worker has it already. EngineCore itself is not forked from the host, which has threads and may
be inside Ray, but from the host's template (``forking.py``); and vLLM goes on to spawn where it finds that a
device is in use already.

**Their end is quick.** An engine that is asked to end does so process after process, and at the end of each
one Python's collector goes through everything that torch and vLLM have ever imported: 2.5 s of a core, for
memory that the system is about to take back. Frozen objects are passed over: 0.3 s. vLLM does the same by
itself, on one platform only.

Where rayvisor is importable but not installed as a distribution, vLLM does not find this; engines then
just start and end more slowly.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import multiprocessing.util
import os
from pathlib import Path

from rayvisor._backends.process.engine_tree import TAG

__all__ = ["METHOD", "OWN_METHOD", "register"]

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
"""How vLLM makes processes, of the host and of EngineCore."""
OWN_METHOD = "RAYVISOR_WORKER_METHOD"
"""How EngineCore makes its workers, unless the user has set the other one."""

_ROLES = {"EngineCore": "::EngineCore", "VllmWorker": "::Worker", "Worker": "::Worker"}
"""At most 15 characters: the kernel keeps no more."""


def register() -> None:
    """Prepare this process, if it is one of ours; the host, which also loads this, is not."""
    if TAG not in os.environ or multiprocessing.parent_process() is None:
        return
    # In the host this would only have libraries complain of objects that are left.
    atexit.register(gc.freeze)
    _name_first_thread()
    own = os.environ.get(OWN_METHOD)
    if own and multiprocessing.current_process().name.startswith("EngineCore"):
        os.environ[METHOD] = own
        multiprocessing.util.register_after_fork(register, lambda _: _name_first_thread())


def _name_first_thread() -> None:
    """Say what this process is where its title does not: setting that is not always possible.

    vLLM names the process ``EngineCore`` or ``VllmWorker-0`` for multiprocessing, and sets the title with
    ``setproctitle``, which does nothing where it does not find the memory that holds the title.
    """
    process = multiprocessing.current_process().name
    role = next((role for name, role in _ROLES.items() if process.startswith(name)), "")
    if role and "::" not in Path("/proc/self/cmdline").read_text(encoding="utf-8", errors="replace"):
        Path(f"/proc/self/task/{os.getpid()}/comm").write_text(role, encoding="utf-8")
