"""Killing a process tree, until it is proven that nothing of it is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import anyio

from rayvisor._backends.process.identity import alive
from rayvisor._backends.process.threads import run_in_thread
from rayvisor._backends.process.tree import kill, marked, suspend, tree
from rayvisor._core.protocol.links import CleanupReport
from rayvisor._core.protocol.wire import ProcessId
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ProcessTimeouts

__all__ = ["Killing", "end_processes"]

_QUIET_ROUNDS = 2
"""A child may just have been forking in the first round that finds nothing."""


class Killing:
    """Rounds of finding and killing processes, with everything below them. This process is never killed.

    Parameters
    ----------
    processes
        The known processes of the tree; its roots are enough while they live.
    key
        The host's key: processes that carry it are found even when none of their ancestors is left. Without
        a key, a process that is killed while it forks would leave a child whose parent is unknown. In that
        case all are stopped first, and searched for children once more when all of them are.
    suspend_timeout
        Seconds to wait until all are stopped; then they are killed anyway.
    """

    def __init__(
        self,
        processes: Iterable[ProcessId],
        *,
        key: str | None = None,
        suspend_timeout: float = DEFAULT_TIMEOUTS.process.suspend,
    ) -> None:
        self._known = {process.pid: process for process in processes}
        self._key = key
        self._suspend_until = 0.0 if key else time.monotonic() + suspend_timeout
        self._suspended = False
        self._quiet = 0
        self.killed: dict[int, ProcessId] = {}
        """The processes that were sent a SIGKILL."""

    @property
    def proven(self) -> bool:
        """Whether nothing was found alive in two rounds."""
        return self._quiet >= _QUIET_ROUNDS

    def round(self) -> list[ProcessId]:
        """Find and kill once more; return the processes that were alive before the kill."""
        # Known processes are searched every time: their children lose their parent when it dies.
        self._note(tree(*self._known.values()))
        if self._key:
            self._note(marked(self._key))
        living = [each for each in self._known.values() if each.pid != os.getpid() and alive(each)]
        if living and time.monotonic() < self._suspend_until and not self._all_suspended(living):
            return living
        self.killed |= {process.pid: process for process in living if kill(process)}
        self._quiet = 0 if living else self._quiet + 1
        return living

    def _note(self, found: Iterable[ProcessId]) -> None:
        self._known |= {process.pid: process for process in found}

    def _all_suspended(self, living: Iterable[ProcessId]) -> bool:
        """Stop them; return whether they were stopped already when the last search below them began."""
        suspended = [suspend(process) for process in living]  # a list: every one of them is stopped
        before, self._suspended = self._suspended, all(suspended)
        return before and self._suspended


async def end_processes(
    processes: Iterable[ProcessId],
    *,
    key: str | None,
    timeout: float,
    killed: dict[int, ProcessId] | None = None,
    timeouts: ProcessTimeouts = DEFAULT_TIMEOUTS.process,
) -> CleanupReport:
    """Kill these processes and everything below them, and wait for the proof that all are gone.

    Parameters
    ----------
    processes, key
        As for [`Killing`][rayvisor._backends.process.killing.Killing].
    timeout
        Seconds to wait for the proof.
    killed
        Receives the killed processes after each round; the report names everything in it at the end.
    timeouts
        The wait until all are stopped, and the first pause between two rounds.
    """
    until = time.monotonic() + timeout
    killing = Killing(processes, key=key, suspend_timeout=timeouts.suspend)
    killed = {} if killed is None else killed
    pause = timeouts.gone_poll
    while True:
        living = await run_in_thread(killing.round)
        # Rounds run in a thread, and several may end one host: what they share changes on the loop only.
        killed |= killing.killed
        if killing.proven:
            return CleanupReport(tuple(killed.values()), (), verified=True)
        if time.monotonic() >= until:
            left = tuple(process for process in living if alive(process))
            return CleanupReport(tuple(killed.values()), left, verified=False)
        await anyio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
