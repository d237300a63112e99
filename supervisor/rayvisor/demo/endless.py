"""The demo's fault ``endless-step``: a model step that never returns, in a real vLLM worker.

vLLM imports this module into each worker if it is named as ``worker_extension_cls``. From then on SIGUSR1
makes the worker's main thread sleep forever, so the current step never completes.
"""

from __future__ import annotations

import signal
import time

__all__ = ["Endless"]


def _sleep_forever(*_: object) -> None:
    while True:
        time.sleep(60.0)


class Endless:
    """Adds nothing to the worker; only the import of this module matters."""


signal.signal(signal.SIGUSR1, _sleep_forever)
