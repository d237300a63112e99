"""What a supervisor tells of its tree when it is asked: as it is now, and what was counted."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rayvisor._control.forms import walk
from rayvisor._live.drawn import drawing_of
from rayvisor._live.metrics import Readings, exposition
from rayvisor._runtime.snapshot import Facts, node_of
from rayvisor.errors import UnknownChildError
from rayvisor.status import Node

if TYPE_CHECKING:
    from rayvisor._engine.wire import EngineInfo, ProcessId
    from rayvisor._live.story import Story
    from rayvisor._live.tallies import Tallies
    from rayvisor._publish.publisher import Publisher
    from rayvisor._runtime.session import Session
    from rayvisor._runtime.watchers import Watchers
    from statecharts import Drawing

__all__ = ["LookingVerbs"]


class LookingVerbs(ABC):
    """The part of a supervisor that changes nothing."""

    _publisher: Publisher | None
    _session: Session | None
    _story: Story
    _tallies: Tallies
    _watchers: Watchers

    @property
    @abstractmethod
    def _running(self) -> Session: ...

    @property
    @abstractmethod
    def _begun(self) -> Session: ...

    def status(self, path: str = "") -> Node:
        """The tree below ``path`` as it is now, as plain data; the empty path is all of it.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        now = time.monotonic()
        session = self._begun
        if not session.begun and not path:
            return Node(path="", kind="supervisor", state="STARTING", leaf="")
        session = self._running

        def stats(pool: str) -> Any:
            front = session.pools.get(pool)
            return None if front is None else front.stats()

        engines = session.engines
        facts = Facts(epoch=engines.epoch, processes=engines.processes, stats=stats, url=engines.url)
        core = session.runtime.core
        node = node_of(core, facts, path, now, session.began)
        if node is None:
            raise UnknownChildError(path, tuple(core.children))
        return node

    def chart(self, path: str) -> Drawing:
        """The chart of the child at ``path``, with the state it is in and the way it took.

        What is lit is the leaf that it is in, and a little the last ones before. Each way out says how often
        it was taken since the tree began, and after how many seconds on average. It is a snapshot, and shows
        itself in a notebook; ``rayvisor chart --of PATH`` draws the same.

        Parameters
        ----------
        path
            Of the child: ``"llm/1"``. A supervisor below the root has the chart of an actor.

        Returns
        -------
        Drawing
            For [`render_drawing`][statecharts.render_drawing] with any format; ``passes`` has the counts.

        Raises
        ------
        UnknownChildError
            There is no such child; the root is none.
        SupervisorStoppedError
            The tree has ended, or was not begun.

        Examples
        --------
        >>> drawing = sup.chart("llm/1")
        >>> drawing.at
        'SERVING'
        >>> sum(each.times for each in drawing.passes if each.event == "fault")
        1
        """
        if not path:
            raise UnknownChildError(path, tuple(self._running.runtime.core.children))
        return drawing_of(self.status(path), self._story)

    def metrics(self) -> str:
        """The tree in numbers, as Prometheus reads them (text format, version 0.0.4).

        Faults, restarts and recoveries of each child, requests and tokens of each pool, and more:
        [all of them](docs/metrics.md). Counters begin at 0 with the tree and go on over every restart in it.
        The live page and the control socket have the same text at ``/metrics``; this is for a program that
        serves, or pushes, metrics of its own.

        Raises
        ------
        SupervisorStoppedError
            The tree has ended, or was not begun.

        Examples
        --------
        >>> print(sup.metrics())
        # HELP rayvisor_build_info 1; the version of rayvisor is its label
        ...
        """
        from rayvisor import __version__  # it imports this

        session = self._begun
        root, wall = self.status(), self._story.wall
        fronts = {} if not session.begun else {node.path: session.pools.get(node.path) for node in walk(root)}
        publisher = self._publisher
        return exposition(
            Readings(
                root,
                {node.path: self._named(node.path) for node in walk(root)},
                self._tallies,
                {path: front.stats() for path, front in fronts.items() if front is not None},
                version=__version__,
                began=session.began + wall,
                now=time.monotonic() + wall,
                lag=session.runtime.watchdog.lag if session.begun else (0.0, 0),
                dropped=self._watchers.missed,
                overflows=None if publisher is None else publisher.overflows,
            )
        )

    def engine_info(self, path: str) -> EngineInfo | None:
        """What the engine at ``path`` said of itself when it came up; None while none is up there."""
        session = self._running
        child = session.runtime.core.children.get(path)
        return None if child is None else session.engines.info(path, child.incarnation)

    def processes(self, path: str) -> list[tuple[str, ProcessId]]:
        """Processes of the engine at ``path`` and of its host, each with its role: ``host`` or ``engine``."""
        return self._running.engines.processes(path)

    def _named(self, path: str) -> str:
        """The name by which a child is counted: ``workers/*`` for all instances of a template."""
        session = self._session
        if session is None or not session.begun:
            return path
        supervisors, above, name = session.runtime.core.supervisors, "", ""
        for part in path.split("/"):
            supervisor = supervisors.get(above)
            one = "*" if supervisor is not None and supervisor.simple else part
            above, name = (f"{above}/{part}", f"{name}/{one}") if above else (part, one)
        return name

    def _children(self) -> Collection[str]:
        session = self._session
        return () if session is None or not session.begun else session.runtime.core.children
