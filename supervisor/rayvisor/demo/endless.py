"""For the demo's fault ``endless-step``: a model step that never returns, in a real worker of vLLM's.

vLLM imports this module into each worker when it is named as ``worker_extension_cls``. From then on a SIGUSR1
makes the worker's main thread sleep wherever it is, and what it was doing never comes to its end.
"""

from __future__ import annotations

import signal
import time

__all__ = ["Endless"]


def _sleep_forever(*_: object) -> None:
    while True:
        time.sleep(60.0)


class Endless:
    """Adds nothing to the worker: it is the import that counts."""


signal.signal(signal.SIGUSR1, _sleep_forever)
