"""The plugin that vLLM loads into each of its processes, EngineCore and workers (``vllm.general_plugins``).

**EngineCore forks its workers**, which is also vLLM's own default: an import of vLLM takes 13 s of a core,
and a forked worker inherits it. EngineCore itself is not forked from the host, which has threads and may run
inside Ray, but from the host's template (``forking.py``). vLLM still spawns its workers if a device is
already in use.

**The processes end quickly.** The processes of an engine end one after the other. At the end of each one
Python's garbage collector visits everything that torch and vLLM have imported: 2.5 s of a core, for memory
that the system is about to reclaim. It skips frozen objects, which takes 0.3 s. vLLM itself does the same on
one platform only.

If rayvisor is importable but not installed as a distribution, vLLM does not find this plugin. Engines then
start and end more slowly, and are otherwise the same.
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
"""The variable that sets how vLLM starts processes, in the host and in EngineCore."""
OWN_METHOD = "RAYVISOR_WORKER_METHOD"
"""The variable that sets how EngineCore starts its workers, unless the user has set `METHOD`."""

_ROLES = {"EngineCore": "::EngineCore", "VllmWorker": "::Worker", "Worker": "::Worker"}
"""Names of threads, at most 15 characters long: the kernel truncates longer ones."""


def register() -> None:
    """Prepare this process if it is a child process of an engine; the host also loads this plugin."""
    if TAG not in os.environ or multiprocessing.parent_process() is None:
        return
    # In the host this would only make libraries complain about leaked objects.
    atexit.register(gc.freeze)
    _name_first_thread()
    own = os.environ.get(OWN_METHOD)
    if own and multiprocessing.current_process().name.startswith("EngineCore"):
        os.environ[METHOD] = own
        multiprocessing.util.register_after_fork(register, lambda _: _name_first_thread())


def _name_first_thread() -> None:
    """Put the role of this process into its thread name if its title does not show it.

    vLLM names the process ``EngineCore`` or ``VllmWorker-0`` for multiprocessing, and sets the title with
    ``setproctitle``, which does nothing if it does not find the memory that holds the title.
    """
    process = multiprocessing.current_process().name
    role = next((role for name, role in _ROLES.items() if process.startswith(name)), "")
    if role and "::" not in Path("/proc/self/cmdline").read_text(encoding="utf-8", errors="replace"):
        Path(f"/proc/self/task/{os.getpid()}/comm").write_text(role, encoding="utf-8")
