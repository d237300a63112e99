"""What a supervisor tells of its tree when it is asked: as it is now, and what was counted."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rayvisor._live.drawn import drawing_of
from rayvisor._runtime.snapshot import Facts, node_of
from rayvisor.errors import UnknownChildError
from rayvisor.status import Node

if TYPE_CHECKING:
    from rayvisor._engine.wire import EngineInfo, ProcessId
    from rayvisor._live.story import Story
    from rayvisor._runtime.session import Session
    from statecharts import Drawing

__all__ = ["LookingVerbs"]


class LookingVerbs(ABC):
    """The part of a supervisor that changes nothing."""

    _session: Session | None
    _story: Story

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

    def engine_info(self, path: str) -> EngineInfo | None:
        """What the engine at ``path`` said of itself when it came up; None while none is up there."""
        session = self._running
        child = session.runtime.core.children.get(path)
        return None if child is None else session.engines.info(path, child.incarnation)

    def processes(self, path: str) -> list[tuple[str, ProcessId]]:
        """Processes of the engine at ``path`` and of its host, each with its role: ``host`` or ``engine``."""
        return self._running.engines.processes(path)

    def _children(self) -> Collection[str]:
        session = self._session
        return () if session is None or not session.begun else session.runtime.core.children
