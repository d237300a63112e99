"""The stack of a host's event loop while it does not answer, written by a watchdog without the interpreter.

``faulthandler`` has a native thread that writes all stacks to a file unless it is postponed. It does not
take the interpreter's lock, so it works while native code holds that lock; it does not while the process
is stopped. The file is read from another process on the same machine.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import re
import tempfile
import threading
from pathlib import Path

__all__ = ["StackDumper", "stack_of"]

_MAX_BYTES = 1 << 18
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')


class StackDumper:
    """Postpones the watchdog for as long as the event loop runs. A process has at most one.

    Parameters
    ----------
    after
        Seconds for which the loop may be blocked before its stack is written.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        # Without a name: nothing of it is left, however this process ends.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed in close()
        self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self._task = asyncio.create_task(self._postpone(), name="stack dumper")

    def close(self) -> None:
        """Stop the watchdog."""
        self._task.cancel()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    async def _postpone(self) -> None:
        while True:
            # A stack that was written during an earlier, shorter block is outdated.
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"loop 0x{threading.get_ident():x}\n".encode())
            faulthandler.dump_traceback_later(self._after, file=self._file.fileno())
            await asyncio.sleep(self._after / 2)


def stack_of(path: str) -> str:
    """Read the stack of the event loop from such a file, innermost frame first; empty if there is none."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_BYTES)
    except OSError:
        return ""
    first, _, rest = text.partition("\n")
    loop = first.removeprefix("loop 0x")
    frames: list[str] = []
    in_loop = False
    for line in rest.splitlines():
        thread = _THREAD.match(line)
        if thread is not None:
            in_loop = thread[1].lstrip("0") == loop
            continue
        frame = _FRAME.match(line)
        if in_loop and frame is not None:
            frames.append(f"{frame['name']} ({frame['file']}, line {frame['line']})")
    return "\n".join(frames)
