"""Children that a test controls, under a real running supervisor.

>>> import anyio
>>> import rayvisor as rv
>>> async def main() -> None:
...     puppets = Puppets()
...     spec = rv.SupervisorSpec(strategy="one_for_all", children=[puppets.child("a"), puppets.child("b")])
...     async with rv.Supervisor(spec) as sup:
...         puppets.crash("b")
...         await wait_for_state(sup, "b", "ALIVE.SERVING", incarnation=2)
...     print(puppets.story)
>>> anyio.run(main)
['start a 1', 'start b 1', 'crash b 1', 'stop a 1', 'start a 2', 'start b 2', 'stop b 2', 'stop a 2']
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import anyio

from rayvisor._core.paths import join, split
from rayvisor.specs import coroutine
from rayvisor.testing.faults import FaultPlan

if TYPE_CHECKING:
    from rayvisor.specs import ChildSpec
    from rayvisor.supervisor import Supervisor
    from statecharts import Configuration

__all__ = ["PuppetCrashedError", "Puppets", "wait_for_state"]


class PuppetCrashedError(Exception):
    """A puppet crashed on request."""


class _Run:
    """One incarnation of a puppet."""

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.message: str | None = None


class Puppets:
    """Makes and controls children.

    Parameters
    ----------
    plan
        The starts that fail. ``plan.run(puppets)`` makes the planned crashes happen.

    Attributes
    ----------
    story
        The actions of all puppets in order: ``start a 1``, ``crash a 1``, ``end a 1``, ``stop a 1``,
        ``fail a 2``.
    """

    def __init__(self, plan: FaultPlan | None = None) -> None:
        self._plan = plan or FaultPlan()
        self._starts: dict[str, int] = defaultdict(int)
        self._runs: dict[str, _Run] = {}
        self.story: list[str] = []

    def child(self, id: str, *, under: str = "", **options: Any) -> ChildSpec:
        """Make a child.

        Parameters
        ----------
        id
            Id of the child.
        under
            Path of its supervisor, which is the prefix of its path in the plan and in the methods here.
        options
            As for [`coroutine`][rayvisor.coroutine].
        """
        path = join(under, id)
        return coroutine(id, self._act, args=(path,), **options)

    def crash(self, path: str, message: str = "boom") -> bool:
        """Make a puppet raise PuppetCrashedError; return False if it does not run."""
        return self._end(path, message)

    def end(self, path: str) -> bool:
        """Make a puppet end normally; return False if it does not run."""
        return self._end(path, None)

    def _end(self, path: str, message: str | None) -> bool:
        run = self._runs.get(path)
        if run is None or run.ended.is_set():
            return False
        run.message = message
        run.ended.set()
        return True

    async def _act(self, path: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._starts[path] += 1
        incarnation = self._starts[path]
        message = self._plan.failed_starts.get((path, incarnation))
        if message is not None:
            self.story.append(f"fail {path} {incarnation}")
            raise PuppetCrashedError(message)
        run = self._runs[path] = _Run()
        action = "stop"
        self.story.append(f"start {path} {incarnation}")
        try:
            task_status.started()
            await run.ended.wait()
            action = "end" if run.message is None else "crash"
            if run.message is not None:
                raise PuppetCrashedError(run.message)
        finally:
            self.story.append(f"{action} {path} {incarnation}")
            if self._runs.get(path) is run:
                del self._runs[path]


async def wait_for_state(
    supervisor: Supervisor, child: str, state: str, *, incarnation: int | None = None, timeout: float = 10.0
) -> Configuration:
    """Wait until a child is in a state of its chart.

    Parameters
    ----------
    supervisor
        A running supervisor.
    child
        Path of the child.
    state
        A state (``"ALIVE"``), a leaf (``"SERVING"``), or both (``"ALIVE.SERVING"``).
    incarnation
        The minimum incarnation; None for any.
    timeout
        Maximum time to wait, in seconds.

    Raises
    ------
    TimeoutError
        If the child does not reach the state in time; the message shows its current state.
    """
    watch = supervisor.watch()  # subscribed before the first check, so that no change is missed
    under, name = split(child)
    seen = "not there"
    with anyio.move_on_after(timeout):
        while True:
            for line in await supervisor.which_children(under):
                if line.id != name:
                    continue
                seen = f"{line.configuration} (incarnation {line.incarnation})"
                here = line.configuration
                if state in {here.state, here.leaf, here.path} and line.incarnation >= (incarnation or 0):
                    return here
            await anext(watch)
    wanted = state if incarnation is None else f"{state} (incarnation {incarnation} or later)"
    raise TimeoutError(f"{child!r} was not {wanted} within {timeout:g} s; it is {seen}")
