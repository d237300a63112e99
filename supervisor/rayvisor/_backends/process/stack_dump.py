"""Where a host's event loop stands when it does not answer: written by a watchdog that needs no interpreter.

``faulthandler`` has a thread of its own that writes all stacks to a file unless it is told to wait on. It
takes no lock of the interpreter's, so it works while native code holds that; it cannot while the process is
stopped. Whoever wants to know reads the file, from another process on the same machine.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import re
import tempfile
import threading
from pathlib import Path

__all__ = ["StackKeeper", "stack_of"]

_MOST_BYTES = 1 << 18
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')


class StackKeeper:
    """Keeps the watchdog waiting for as long as the event loop runs. One in a process.

    Parameters
    ----------
    after
        Seconds that the loop may be held up before its stack is written.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        # Without a name: nothing is left of it, however this process ends.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed in close()
        self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self._task = asyncio.create_task(self._keep(), name="stack keeper")

    def close(self) -> None:
        """Keep no stack any more."""
        self._task.cancel()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    async def _keep(self) -> None:
        while True:
            # What was written in an earlier moment of delay is no news.
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"loop 0x{threading.get_ident():x}\n".encode())
            faulthandler.dump_traceback_later(self._after, file=self._file.fileno())
            await asyncio.sleep(self._after / 2)


def stack_of(path: str) -> str:
    """Read the stack of the event loop from such a file, innermost frame first; empty if there is none."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_BYTES)
    except OSError:
        return ""
    first, _, rest = text.partition("\n")
    loop = first.removeprefix("loop 0x")
    frames: list[str] = []
    ours = False
    for line in rest.splitlines():
        thread = _THREAD.match(line)
        if thread is not None:
            ours = thread[1].lstrip("0") == loop
            continue
        frame = _FRAME.match(line)
        if ours and frame is not None:
            frames.append(f"{frame['name']} ({frame['file']}, line {frame['line']})")
    return "\n".join(frames)
