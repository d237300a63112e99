"""Killing a process tree, until it is proven that nothing of it is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import anyio
import anyio.to_thread

from rayvisor._backends.process.tree import alive, hold, kill, marked, tree
from rayvisor._core.protocol.links import CleanupReport
from rayvisor._core.protocol.wire import ProcessId

__all__ = ["Killing", "end_processes"]

_HOLD_SECONDS = 0.5
_QUIET_ROUNDS = 2
"""A child may just have been forking in the first round that finds nothing."""


class Killing:
    """Rounds of finding and killing processes, with everything below them. This process is never killed.

    Parameters
    ----------
    processes
        What is known of the tree; roots are enough while they live.
    key
        The host's key: processes that carry it are found even when nothing of their ancestry is left.
        Without one, a process that is killed while it forks would leave a child whose parent nobody knows:
        then all are stopped first, and looked below once more when they stand still.
    hold
        Seconds that they are given to stand still, before they are killed all the same.
    """

    def __init__(
        self, processes: Iterable[ProcessId], *, key: str | None = None, hold: float = _HOLD_SECONDS
    ) -> None:
        self._known = {process.pid: process for process in processes}
        self._key = key
        self._hold_until = 0.0 if key else time.monotonic() + hold
        self._still = False
        self._quiet = 0
        self.killed: dict[int, ProcessId] = {}
        """What was sent a SIGKILL."""

    @property
    def proven(self) -> bool:
        """Whether nothing was found alive, twice."""
        return self._quiet >= _QUIET_ROUNDS

    def round(self) -> list[ProcessId]:
        """Find once more, kill once more; what was found alive before the kill."""
        # What was found keeps being looked below: its children lose their parent when it dies.
        self._note(tree(*self._known.values()))
        if self._key:
            self._note(marked(self._key))
        living = [each for each in self._known.values() if each.pid != os.getpid() and alive(each)]
        if living and time.monotonic() < self._hold_until and not self._stands_still(living):
            return living
        self.killed |= {process.pid: process for process in living if kill(process)}
        self._quiet = 0 if living else self._quiet + 1
        return living

    def _note(self, found: Iterable[ProcessId]) -> None:
        self._known |= {process.pid: process for process in found}

    def _stands_still(self, living: Iterable[ProcessId]) -> bool:
        """Stop them; whether they stood still before the last look below them, too."""
        standing = [hold(process) for process in living]  # every one of them is stopped
        were_still, self._still = self._still, all(standing)
        return were_still and self._still


async def end_processes(
    processes: Iterable[ProcessId],
    *,
    key: str | None,
    timeout: float,
    killed: dict[int, ProcessId] | None = None,
) -> CleanupReport:
    """Kill these processes and everything below them, and wait for the proof that all are gone.

    Parameters
    ----------
    processes, key
        As for [`Killing`][rayvisor._backends.process.killing.Killing].
    timeout
        Seconds to wait for the proof.
    killed
        Where to note what was killed, as it happens; the report names everything that is in it at the end.
    """
    until = time.monotonic() + timeout
    killing = Killing(processes, key=key)
    if killed is not None:
        killing.killed = killed
    pause = 0.005
    while True:
        living = await anyio.to_thread.run_sync(killing.round)
        if killing.proven:
            return CleanupReport(tuple(killing.killed.values()), (), verified=True)
        if time.monotonic() >= until:
            left = tuple(process for process in living if alive(process))
            return CleanupReport(tuple(killing.killed.values()), left, verified=False)
        await anyio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
