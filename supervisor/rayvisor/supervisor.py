"""The supervisor: it keeps a tree of children running for as long as a block of code lasts.

    async with rv.Supervisor(spec) as sup:
        async for chunk in sup.pool("llm").generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")

Entering
    starts the children in order and returns when all are up.
Leaving
    ends them in the reverse order, each within its shutdown time, however the block is left: at its end,
    by an exception, by cancellation, by SIGINT (Ctrl-C) or SIGTERM. A second signal ends everything
    immediately. Only a child whose shutdown is ``Shutdown.INFINITY`` is awaited without a bound.
Giving up
    When the tree cannot be kept up, the block is cancelled and
    [`SupervisorGaveUpError`][rayvisor.SupervisorGaveUpError] is raised, root cause first. An exception of the
    block's own takes precedence; but an error of rayvisor that is a consequence of the end of the tree (a
    request that finds no engine any more) becomes the ``__cause__`` of ``SupervisorGaveUpError``.

A blocking program uses [`run_in_thread`][rayvisor.run_in_thread]. A test without Ray passes ``local=True``:
engines, preferably simulated ones, then run below this process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

import anyio

from rayvisor._core.paths import split
from rayvisor._core.supervision import messages as m
from rayvisor._edges.control.server import ControlServer
from rayvisor._edges.live.charts import drawing_of
from rayvisor._edges.live.history import History
from rayvisor._edges.metrics.counters import Counters
from rayvisor._edges.metrics.exposition import TreeMetrics, exposition
from rayvisor._edges.publish.publisher import Publisher
from rayvisor._edges.web.server import WebPage
from rayvisor._log import get_logger
from rayvisor._runtime import introspection, operations, signals
from rayvisor._runtime.broadcaster import RecordBroadcaster, RecordStream
from rayvisor._runtime.deadlines import outlast
from rayvisor._runtime.environment import Environment
from rayvisor._runtime.lifecycle import LifecycleMachine
from rayvisor._runtime.reporting import EventReporter
from rayvisor._runtime.session import Session, only_follows, reason_of
from rayvisor._runtime.snapshot import kind_of
from rayvisor._version import __version__
from rayvisor.errors import (
    ChildKindError,
    RayvisorError,
    SpecError,
    SupervisorStoppedError,
    UnguardedMainError,
    UnknownChildError,
)
from rayvisor.refs import ChildRef, ServerRef
from rayvisor.specs import (
    ActorStart,
    ChildSpec,
    CoroutineStart,
    EnginePoolSpec,
    Instance,
    SupervisorSpec,
    SupervisorStart,
)
from rayvisor.status import ChildKind, Node, walk
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import EngineInfo, ProcessId
    from rayvisor._core.supervision.calls import ChildCounts, ChildStatus
    from rayvisor._core.supervision.nodes import Child
    from rayvisor._edges.http.server import HttpServer
    from rayvisor._runtime.lifecycle import Hook
    from rayvisor._runtime.operations import PauseMode
    from rayvisor._runtime.pool.pool import EnginePool
    from statecharts import Drawing

__all__ = ["Supervisor"]

log = get_logger("rayvisor.supervisor")

_ACTORS = frozenset({ChildKind.ACTOR, ChildKind.ADOPT})
_WAYS_OUT: Mapping[str, str] = {
    ChildKind.ACTOR: "use sup.actor({path!r})",
    ChildKind.ADOPT: "use sup.actor({path!r})",
    ChildKind.SERVER: "use sup.server({path!r})",
    ChildKind.ENGINE_POOL: "use sup.pool({path!r})",
    ChildKind.COROUTINE: "it runs in the supervisor's process: share an object with it, such as a queue",
    ChildKind.SUPERVISOR: "use the path of one of its children; sup.status({path!r}) shows them",
    ChildKind.ENGINE: "it belongs to no pool; sup.engine_info({path!r}) shows what it reported",
}
"""The right way to a child, by its kind."""


class Supervisor:
    """Runs a tree of children while its ``async with`` block lasts. It can be used once.

    Parameters
    ----------
    spec
        The root supervisor and its children.
    address
        Ray cluster to attach to. None: the Ray that this process is connected to, ``RAY_ADDRESS``, or a local
        Ray that is started for the block. Only a Ray started here is ever shut down.
    ray_options
        More arguments for ``ray.init``, for example ``{"num_cpus": 4}``. Options that only a new Ray takes,
        such as this one, are left out when attaching to a running Ray.
    local
        Run engines without Ray, below this process, for tests. Actor children are refused then.
    seed
        Seed of the jitter and of sampling seeds; None: from the system.
    call_limit
        How many calls may wait for the supervisor's answer.
    handle_signals
        Whether SIGINT and SIGTERM end the tree in order; only possible in the main thread. After SIGINT
        the program ends as with asyncio: the main task is cancelled, and ``asyncio.run`` (or ``anyio.run``)
        raises KeyboardInterrupt. After SIGTERM the block raises SystemExit (status 143).
    control
        Path of a Unix socket that controls the running tree (``rayvisor status`` and similar commands); True
        for one that the commands find by themselves. Only you may have access to its folder.
    publish
        Address of a ZeroMQ PUB socket on which every record is published as JSON, a topic per child:
        ``"tcp://127.0.0.1:5570"`` (port 0: a free one) or ``"ipc://PATH"``; True for a free port of the
        loopback interface, which no other machine can reach. Needs pyzmq (the extra ``publish``); the
        messages are described in docs/events.md.
    timeouts
        Timeouts and intervals of rayvisor's own machinery, a [`Timeouts`][rayvisor.Timeouts]; None: its
        defaults. The times of the children (start timeouts, shutdown times, stall limits) are in their specs.

    Raises
    ------
    SpecError
        If the spec is not a SupervisorSpec, ``publish`` is not an address, or ``timeouts`` is no Timeouts.
    ControlSocketError
        On entering, before anything is started: the control socket cannot be opened.
    UnguardedMainError
        On entering, if the program starts the tree when a process of an engine imports it.
    PublishError
        On entering, before anything is started: nothing can be published at that address.
    StartFailedError
        On entering: a child could not be started; the others have been stopped again.
    SupervisorGaveUpError
        On leaving: the tree could not be kept up.

    Examples
    --------
    >>> import anyio
    >>> import rayvisor as rv
    >>> async def tick() -> None:
    ...     await anyio.sleep_forever()
    >>> async def main() -> None:
    ...     async with rv.Supervisor(rv.SupervisorSpec(children=[rv.coroutine("ticker", tick)])) as sup:
    ...         for child in await sup.which_children():
    ...             print(child.id, child.configuration)
    >>> anyio.run(main)
    ticker ALIVE.SERVING
    """

    def __init__(  # noqa: PLR0913 - keywords, each of its own meaning
        self,
        spec: SupervisorSpec,
        *,
        address: str | None = None,
        ray_options: Mapping[str, Any] | None = None,
        local: bool = False,
        seed: int | None = None,
        call_limit: int = 1000,
        handle_signals: bool = True,
        control: str | os.PathLike[str] | bool | None = None,
        publish: str | bool | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        if not isinstance(spec, SupervisorSpec):
            raise SpecError("spec", spec, "must be a SupervisorSpec")
        chosen: object = DEFAULT_TIMEOUTS if timeouts is None else timeouts
        if not isinstance(chosen, Timeouts):
            raise SpecError("timeouts", timeouts, "must be a Timeouts")
        self.spec = spec
        self._timeouts = chosen
        self._environment = Environment(address, ray_options, local=local, timeouts=chosen)
        self._environment.check(spec)
        self._random = Random(seed)
        self._call_limit = call_limit
        self._handle_signals = handle_signals
        # Created here, so that a watcher, or a hook, that is added before the start sees the start.
        self._broadcaster = RecordBroadcaster(time.monotonic)
        self._history = History(time.time() - time.monotonic(), self._children)
        self._counters = Counters(self._named, self._children)
        self._broadcaster.attach(self._history.take)
        self._broadcaster.attach(self._counters.take)
        self._reporter = EventReporter(self._broadcaster)
        self._machines = {
            name: LifecycleMachine(CHARTS[name], self._reporter.hook_failed) for name in ("actor", "engine")
        }
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._body: anyio.CancelScope | None = None
        self._control = (
            ControlServer(self, control, self._history, timeouts=chosen.edges) if control else None
        )
        self._publisher = None if publish in (None, False) else Publisher(publish, timeouts=chosen.edges)
        if self._publisher is not None:
            self._broadcaster.attach(self._publisher.put)
        # The control socket and the live pages that are open.
        self._servers: list[HttpServer] = []

    # --- the block ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise SupervisorStoppedError("")
        try:
            _check_main_guard()
            await self._open_interfaces()
        except BaseException:
            await self._close_servers()
            await self._close_publisher()
            raise
        self._session = session = Session(
            self.spec,
            environment=self._environment,
            rng=self._random,
            broadcaster=self._broadcaster,
            reporter=self._reporter,
            machines=self._machines,
            call_limit=self._call_limit,
            handle_signals=self._handle_signals,
            timeouts=self._timeouts,
        )
        self._task = asyncio.create_task(session.run(), name="rayvisor")
        try:
            await session.settled.wait()
        except BaseException:
            await self._leave(session)
            raise
        if session.over.is_set() or session.signal is not None:
            await self._leave(session)
            await self._raise_for_end(session, None)
            raise SupervisorStoppedError("")
        self._body = anyio.CancelScope()
        self._body.__enter__()
        self._guard = asyncio.create_task(self._guard_body(session, self._body), name="end of the tree")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        session, body, guard = self._session, self._body, self._guard
        if session is None or body is None or guard is None:
            raise SupervisorStoppedError("")
        guard.cancel()
        # The cancellation of the block by the end of the tree ends here.
        left = None if body.__exit__(kind, error, traceback) else error
        cancelled = await self._leave(session)
        if left is None and cancelled is not None:
            raise cancelled
        await self._raise_for_end(session, left)
        return error is not None and left is None

    async def _open_interfaces(self) -> None:
        """Start the publisher and the control socket."""
        if self._publisher is not None:
            await self._publisher.start()
        if self._control is not None:
            await self._control.start()
            self._servers.append(self._control)

    async def _close_servers(self) -> None:
        """Close the control socket and the live pages, whatever ends the block."""
        servers, self._servers = self._servers, []
        await _close_all([server.end for server in servers], self._timeouts.runtime.resisting_tasks)

    async def _close_publisher(self) -> None:
        if self._publisher is not None:
            await _close_all([self._publisher.end], self._timeouts.runtime.resisting_tasks)

    async def kill(self) -> None:
        """End everything immediately, without waiting for shutdown times, as a second signal does."""
        if self._session is not None:
            self._session.kill()

    @staticmethod
    async def _guard_body(session: Session, body: anyio.CancelScope) -> None:
        """Cancel the block when the tree has ended by itself, or a signal came."""
        await session.dismissed.wait()
        body.cancel()

    async def _leave(self, session: Session) -> BaseException | None:
        """End the tree and close everything; return the cancellation that came meanwhile, if any."""
        session.halt()
        # Bounded by the shutdown times of the children, and by the timeouts of everything after them.
        cancelled = await outlast(session.released, session.kill)
        await self._close_servers()
        seconds = self._timeouts.runtime.resisting_tasks
        with anyio.CancelScope(shield=True), anyio.move_on_after(seconds):
            await session.closed.wait()
        await self._close_publisher()
        if not session.closed.is_set():
            log.error("tasks.resist", seconds=seconds, tasks=_other_tasks())
        return cancelled

    @staticmethod
    async def _raise_for_end(session: Session, error: BaseException | None) -> None:
        """Raise what the end of the tree requires; the block's own error takes precedence."""
        reason = reason_of(session)
        if reason is None or (error is not None and not only_follows(error)):
            return
        if session.signal is not None and session.closed.is_set():
            await signals.others_ended()
        if isinstance(reason, KeyboardInterrupt) and session.closed.is_set():
            await signals.hand_on(signal.SIGINT)
        raise reason from error

    # --- reading ------------------------------------------------------------------------------

    def __getitem__(self, path: str) -> Any:
        """Return the handle of the child at ``path``.

        An [`EnginePool`][rayvisor.EnginePool], a [`ServerRef`][rayvisor.ServerRef], or a
        [`ChildRef`][rayvisor.ChildRef]; `pool`, `server` and `actor` return the same, typed. A ``ChildRef``
        to a child that is no actor can be made, but not called.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        session, child = self._running, self._child(path)
        kind = kind_of(child)
        if kind == ChildKind.ENGINE_POOL:
            return self.pool(path)
        if kind == ChildKind.SERVER:
            return ServerRef(path, self)
        return ChildRef(
            path,
            session.actors if kind in _ACTORS else _NoActor(lambda: self._wrong_kind(child, "actor")),
            timeouts=self._timeouts.runtime,
        )

    def pool(self, path: str) -> EnginePool:
        """Return the engine pool at ``path``.

        Raises
        ------
        UnknownChildError
            There is no such child.
        ChildKindError
            The child is no engine pool; the message says what it is, and what to use instead.

        Examples
        --------
        >>> completion = await sup.pool("llm").generate("Once", {"max_tokens": 8}).result()
        """
        child = self._child(path)
        pool = self._running.pools.handle(path)
        if pool is None:
            raise self._wrong_kind(child, "engine pool")
        return pool

    def actor(self, path: str) -> ChildRef:
        """Return a reference to the actor at ``path``.

        Raises
        ------
        UnknownChildError
            There is no such child.
        ChildKindError
            The child is no actor; the message says what it is, and what to use instead.

        Examples
        --------
        >>> answer = await sup.actor("router").call("route", request)
        """
        child = self._child(path)
        if kind_of(child) not in _ACTORS:
            raise self._wrong_kind(child, "actor")
        return ChildRef(path, self._running.actors, timeouts=self._timeouts.runtime)

    def server(self, path: str) -> ServerRef:
        """Return a reference to the server at ``path``.

        Raises
        ------
        UnknownChildError
            There is no such child.
        ChildKindError
            The child is no server; the message says what it is, and what to use instead.

        Examples
        --------
        >>> url = await sup.server("web").serving()
        """
        child = self._child(path)
        if kind_of(child) != ChildKind.SERVER:
            raise self._wrong_kind(child, "server")
        return ServerRef(path, self)

    def _child(self, path: str) -> Child:
        children = self._running.runtime.core.children
        if path not in children:
            raise UnknownChildError(path, tuple(children))
        return children[path]

    def _wrong_kind(self, child: Child, wanted: str) -> ChildKindError:
        kind, path = kind_of(child), child.path
        pool = split(path)[0]
        if kind == ChildKind.ENGINE and self._running.pools.get(pool) is not None:
            way_out = f"use sup.pool({pool!r}), which sends requests to its engines"
        else:
            way_out = _WAYS_OUT.get(kind, "").format(path=path)
        return ChildKindError(path, kind, wanted, way_out)

    def status(self, path: str = "") -> Node:
        """Return the tree below ``path`` as it is now, as plain data; the empty path is the whole tree.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        session = self._begun
        if not session.begun and not path:
            return Node(path="", kind=ChildKind.SUPERVISOR, state="STARTING", leaf="")
        return introspection.status(self._running, path)

    def chart(self, path: str) -> Drawing:
        """Return the chart of the child at ``path``, with its present state and its recent transitions.

        The present leaf is highlighted, and the previous ones a little. Each transition is labelled with how
        often it was taken since the tree began, and after how many seconds on average. It is a snapshot; a
        notebook displays it, and ``rayvisor chart --of PATH`` draws the same.

        Parameters
        ----------
        path
            Path of the child: ``"llm/1"``. A supervisor below the root has the chart of an actor.

        Returns
        -------
        Drawing
            For [`render_drawing`][statecharts.render_drawing] with any format; ``passes`` has the counts.

        Raises
        ------
        UnknownChildError
            There is no such child; the root has no chart.
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
        return drawing_of(self.status(path), self._history)

    def metrics(self) -> str:
        """Return the metrics of the tree in the text format of Prometheus (version 0.0.4).

        Faults, restarts and recoveries of each child, requests and tokens of each pool, and more:
        [all of them](docs/metrics.md). Counters begin at 0 with the tree and continue across restarts in it.
        The live page and the control socket have the same text at ``/metrics``; this method is for a program
        that serves, or pushes, metrics of its own.

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
        session = self._begun
        root, wall = self.status(), self._history.wall
        pools = {} if not session.begun else {node.path: session.pools.get(node.path) for node in walk(root)}
        publisher = self._publisher
        return exposition(
            TreeMetrics(
                root,
                {node.path: self._named(node.path) for node in walk(root)},
                self._counters,
                {path: pool.stats() for path, pool in pools.items() if pool is not None},
                version=__version__,
                began=session.began + wall,
                now=time.monotonic() + wall,
                lag=session.runtime.watchdog.lag if session.begun else (0.0, 0),
                dropped=self._broadcaster.missed,
                overflows=None if publisher is None else publisher.overflows,
            )
        )

    def engine_info(self, path: str) -> EngineInfo | None:
        """Return what the engine at ``path`` reported when it came up; None while none is up there."""
        return introspection.engine_info(self._running, path)

    def processes(self, path: str) -> list[tuple[str, ProcessId]]:
        """Return the processes of an engine and its host, each with its role: ``host`` or ``engine``."""
        return self._running.engines.processes(path)

    def watch(self) -> RecordStream:
        """Return an async iterator of the records of everything from now on, until the tree has ended.

        If it is called before the block is entered, the records of the start are included. A watcher that
        reads slowly loses the oldest records, and gets a ``RecordsMissed`` in their place.
        """
        return self._broadcaster.watch()

    def on_enter(self, place: str, hook: Hook, *, chart: str = "engine") -> None:
        """Call ``hook`` whenever a child enters a state or leaf of its chart.

        The hook is a plain function and is called with a change: ``change.model`` is the child (``.child``,
        ``.incarnation``, ``.state``); ``change.event``, ``change.before`` and ``change.after`` describe the
        transition. It runs within the transition and must not block; an exception in it is recorded. Hooks
        may be added before the block is entered.

        Parameters
        ----------
        place
            A state (``"ALIVE"``) or a leaf (``"SERVING"``).
        hook
            The function to call.
        chart
            ``"engine"``, or ``"actor"`` for all other children.
        """
        self._machine(chart).on_enter(place, hook)

    def on_exit(self, place: str, hook: Hook, *, chart: str = "engine") -> None:
        """Call ``hook`` whenever a child leaves a state or leaf of its chart; see ``on_enter``."""
        self._machine(chart).on_exit(place, hook)

    def _machine(self, chart: str) -> LifecycleMachine:
        if chart not in self._machines:
            raise SpecError("chart", chart, f"must be one of {', '.join(map(repr, self._machines))}")
        return self._machines[chart]

    @property
    def control(self) -> Path | None:
        """Path of the control socket; None if there is none."""
        return None if self._control is None else self._control.path

    @property
    def publish_address(self) -> str | None:
        """Address at which records are published, with the actual port; None if there is none (yet)."""
        return None if self._publisher is None else self._publisher.address

    # --- operating ----------------------------------------------------------------------------

    async def pause(self, path: str = "", *, mode: PauseMode = "wait", timeout: float = 60.0) -> int:
        """Give a child, or everything under a supervisor, no new work until it is resumed.

        A pause outlives restarts: what comes up again comes up paused. Requests to a paused pool wait, and so
        do calls by [`ChildRef`][rayvisor.ChildRef]; an actor's ``pause`` hook is called and awaited.

        Parameters
        ----------
        path
            Path of the child; the empty path is the whole tree.
        mode
            What happens to requests in flight on engines. ``"wait"``: they finish on their engine, and the
            call returns when they have. ``"keep"``: they are held on their engine until ``resume``; their own
            deadlines still apply. ``"abort"``: they are taken off the engine, and continue on another one, or
            on the same one after ``resume``; none is lost, and no attempt is counted. A request that cannot
            be moved (its prompt is embeddings, and tokens of it were delivered) stays and finishes.
        timeout
            Seconds that ``"wait"`` waits; requests still in flight then continue, and the pause holds.

        Returns
        -------
        int
            How many samples are still in flight on what was paused.

        Raises
        ------
        SpecError
            If ``mode`` or ``timeout`` is invalid.
        UnknownChildError
            There is no such child.

        Examples
        --------
        >>> await sup.pause("llm/1", mode="abort")
        0
        >>> await sup.resume("llm/1")
        """
        return await operations.pause(self._running, path, mode=mode, timeout=timeout)

    async def resume(self, path: str = "") -> None:
        """Lift a pause; requests that were kept in flight continue. Holds of other kinds stay.

        Returns when the ``resume`` hooks of actors have been called, or have failed.
        """
        await operations.resume(self._running, path)

    async def mark_stale(self, path: str = "") -> None:
        """Mark engines with a gate as out of date: each passes its gate again before it serves.

        Until then they get no new requests; those in flight continue. The empty path is the whole tree.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        await operations.mark_stale(self._running, path)

    async def restart(self, path: str = "") -> None:
        """End a child, whatever its state, and start it again; this does not count as a restart.

        The empty path means all children of the root: ended in reverse order, then started in order. Requests
        to the pools in it wait meanwhile; none is lost.

        Raises
        ------
        UnknownChildError, ChildStartError, TemplateError
            It could not be started; a temporary child, and an instance of a template, cannot be started
            again.
        """
        await operations.restart(self._running, path)

    def recovery_instructions(self, path: str = "") -> tuple[str, ...]:
        """Return the instructions that the engines at or below ``path`` accept: ``retry`` for vLLM's."""
        return operations.recovery_instructions(self._running, path)

    async def set_recovery_instruction(
        self,
        instruction: str,
        path: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        request_id: str = "",
        timeout: float = 60.0,
    ) -> dict[str, dict[str, Any]]:
        """Send engines an instruction of their own fault tolerance, for example vLLM's ``retry``.

        Usually this is not necessary: the supervisor sends ``retry`` to an engine that reports a fault. An
        engine that does not know the instruction is not sent it, and vLLM's refuses one while it is healthy.

        Parameters
        ----------
        instruction
            One of [`recovery_instructions`][rayvisor.Supervisor.recovery_instructions].
        path
            Path of an engine, or of a supervisor: all engines below it, concurrently. The empty path is the
            whole tree.
        params
            Parameters of the instruction.
        request_id
            Id that each acknowledgement repeats.
        timeout
            Seconds each engine may take.

        Returns
        -------
        dict
            By engine: ``{"request_id", "success", "reason"}``.

        Raises
        ------
        SpecError
            No engine there knows the instruction.
        UnknownChildError
            There is no such child.
        """
        return await operations.set_recovery_instruction(
            self._running, instruction, path, params=params, request_id=request_id, timeout=timeout
        )

    async def stop(self) -> None:
        """End the tree in order, from any task: the ``async with`` block is cancelled.

        Returns immediately. The block is left without an exception, as if it had reached its end.
        """
        self._begun.stop()

    async def serve_web(self, port: int = 0, *, host: str = "127.0.0.1", metrics: bool = True) -> WebPage:
        """Serve the live page of this tree until it has ended: see [the how-to](docs/web.md).

        It shows the tree, charts, faults and metrics, and has buttons that pause, resume and restart. If it
        is called before the block is entered, the page shows the start, too; it is closed if entering fails.

        Parameters
        ----------
        port
            TCP port; 0: a free one.
        host
            Address to listen on. Any but loopback opens the page to other machines: its content is sent,
            unencrypted, to everyone with the token, which is part of the URL.
        metrics
            Whether ``/metrics`` is answered too. It needs no token: it has names of children and numbers,
            nothing that acts, for everyone who can reach the port ([metrics](docs/metrics.md)).

        Returns
        -------
        WebPage
            Open its ``url`` in a browser.

        Raises
        ------
        SpecError
            If ``port`` or ``host`` is invalid.
        ControlSocketError
            It cannot listen there.
        SupervisorStoppedError
            The tree has ended.

        Examples
        --------
        >>> page = await sup.serve_web()
        >>> page.url
        'http://127.0.0.1:40253/#9dY3...'
        """
        if self._has_ended:
            raise _stopped(self._session)
        page = WebPage(self, self._history, port, host, metrics=metrics, timeouts=self._timeouts.edges)
        self._servers.append(page)
        try:
            await page.start()
        except BaseException:
            if page in self._servers:
                self._servers.remove(page)
            raise
        if page not in self._servers:  # the tree has ended meanwhile
            await page.end()
            raise SupervisorStoppedError("")
        return page

    # --- OTP's verbs ----------------------------------------------------------------------------

    async def start_child(self, spec: ChildSpec | Instance | None = None, *, under: str = "") -> str | None:
        """Add a child to the supervisor at path ``under``, start it, and return its path.

        Under ``SIMPLE_ONE_FOR_ONE`` it starts an instance of the template: pass an
        [`Instance`][rayvisor.Instance], or nothing for one that is named by a number. Returns None if the
        start chose not to run (OTP: ``ignore``).

        Raises
        ------
        SpecError, AlreadyStartedError, AlreadyPresentError, ChildStartError
            The child is not kept then.
        """
        return cast("str | None", await self._call(m.Verb.START_CHILD, under, await self._ready(spec, under)))

    async def terminate_child(self, path: str) -> None:
        """End a child within its shutdown time; its spec is kept (unless it is temporary)."""
        await self._call(m.Verb.TERMINATE_CHILD, *split(path))

    async def restart_child(self, path: str) -> None:
        """Start a child that is down."""
        await self._call(m.Verb.RESTART_CHILD, *split(path))

    async def delete_child(self, path: str) -> None:
        """Drop the spec of a child that is down."""
        await self._call(m.Verb.DELETE_CHILD, *split(path))

    async def which_children(self, under: str = "") -> list[ChildStatus]:
        """Return the children of a supervisor, the last started first."""
        return cast("list[ChildStatus]", await self._call(m.Verb.WHICH_CHILDREN, under))

    async def count_children(self, under: str = "") -> ChildCounts:
        """Return how many specs, live children, supervisors and workers a supervisor has."""
        return cast("ChildCounts", await self._call(m.Verb.COUNT_CHILDREN, under))

    async def get_childspec(self, path: str) -> ChildSpec:
        """Return the spec of a child."""
        return cast("ChildSpec", await self._call(m.Verb.GET_CHILDSPEC, *split(path)))

    async def apply_spec(self, spec: SupervisorSpec, *, under: str = "") -> None:
        """Put another spec into force at the supervisor at path ``under`` (OTP: ``code_change``).

        It starts and ends nothing, and the restart history is kept. Flags apply from the next event on, a
        child's spec from its next start or end. A new child is down until ``restart_child``; a child that is
        no longer in the list keeps running, after the others. Later incarnations of the supervisor begin with
        this spec, except that the function of a [`subtree`][rayvisor.subtree] is called again.

        Raises
        ------
        SpecError
            The spec cannot follow the present one: that stays in force.
        UnknownChildError
            There is no such supervisor.
        """
        if not isinstance(spec, SupervisorSpec):
            raise SpecError("spec", spec, "must be a SupervisorSpec")
        session = self._running
        present = session.runtime.core.supervisors.get(under)
        of_pool = isinstance(spec, EnginePoolSpec)
        if present is not None and isinstance(present.spec, EnginePoolSpec) is not of_pool:
            raise SpecError(
                "spec", spec, "cannot follow: a pool stays one; engine_pool(...).start is the spec of a pool"
            )
        await session.open(spec)
        await self._call(m.Verb.APPLY_SPEC, under, spec)

    async def _ready(self, spec: ChildSpec | Instance | None, under: str) -> ChildSpec | Instance | None:
        """Check a child's spec and open the backends it needs, before its supervisor gets it."""
        session = self._running
        if isinstance(spec, Instance):
            spec = self._with_arguments(spec, under)
        if isinstance(spec, ChildSpec):
            await session.open(SupervisorSpec(children=[replace(spec, significant=False, backoff=None)]))
        elif isinstance(spec, Instance) and spec.start is not None:
            await session.open(SupervisorSpec(children=[ChildSpec(id=spec.id, start=spec.start)]))
        return spec

    def _with_arguments(self, instance: Instance, under: str) -> Instance:
        """Append an instance's own arguments to those of its template."""
        supervisor = self._running.runtime.core.supervisors.get(under)
        template = None if supervisor is None else supervisor.spec.template
        if not instance.args or template is None:
            return instance
        start: Any = template.start if instance.start is None else instance.start
        if not isinstance(start, (ActorStart, CoroutineStart, SupervisorStart)):
            raise SpecError(
                "args", instance.args, f"are for an actor or a function; a {type(start).__name__} takes none"
            )
        return instance._replace(start=replace(start, args=(*start.args, *instance.args)), args=())

    def _named(self, path: str) -> str:
        session = self._session
        if session is None or not session.begun:
            return path
        return introspection.counted_name(session, path)

    def _children(self) -> Collection[str]:
        session = self._session
        return () if session is None or not session.begun else session.runtime.core.children

    async def _call(self, verb: m.Verb, target: str, argument: object = None) -> object:
        session = self._running
        try:
            return await session.runtime.call(verb, target, argument)
        except SupervisorStoppedError as error:
            if session.ended is None or not session.ended.gave_up:
                raise
            raise _stopped(session) from error

    @property
    def _running(self) -> Session:
        session = self._session
        if session is None or not session.begun or session.closed.is_set():
            raise _stopped(session)
        return session

    @property
    def _begun(self) -> Session:
        if self._session is None or self._session.closed.is_set():
            raise _stopped(self._session)
        return self._session

    @property
    def _has_ended(self) -> bool:
        return self._session is not None and self._session.closed.is_set()


class _NoActor:
    """Stands in for the actors of a tree in a reference to a child of another kind: each use raises."""

    def __init__(self, error: Callable[[], ChildKindError]) -> None:
        self._error = error

    @property
    def address(self) -> tuple[str, str] | None:
        """Raise: another process cannot use the reference either."""
        raise self._error()

    def actor(self, child: str) -> NoReturn:
        """Raise: there is no actor."""
        del child
        raise self._error()

    def reference(self, child: str) -> NoReturn:
        """Raise: there is no actor."""
        del child
        raise self._error()

    def withheld(self, child: str) -> str:
        """Return nothing: ``actor`` raises."""
        del child
        return ""

    async def changed(self, child: str) -> NoReturn:
        """Raise: there is no actor."""
        del child
        raise self._error()


async def _close_all(closes: Sequence[Callable[[], Awaitable[object]]], timeout: float) -> None:
    """Close these side by side, within ``timeout`` seconds, even if cancelled, whichever of them fails."""

    async def run(close: Callable[[], Awaitable[object]]) -> None:
        try:
            await close()
        except Exception:
            log.exception("close.failed", what=getattr(close, "__qualname__", repr(close)))

    with anyio.CancelScope(shield=True), anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for close in closes:
                tasks.start_soon(run, close)


def _stopped(session: Session | None) -> SupervisorStoppedError:
    """Make the error of a call on a tree that does not run; it says why the tree ended, if it failed."""
    reason = None if session is None else reason_of(session)
    return SupervisorStoppedError("", str(reason) if isinstance(reason, RayvisorError) else "")


def _check_main_guard() -> None:
    """Raise in a process that an engine starts and that imports the program again."""
    # The attribute that multiprocessing itself checks when such a process starts another one.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UnguardedMainError(sys.argv[0])


def _other_tasks() -> list[str]:
    """Return the names of all tasks but this one."""
    here = asyncio.current_task()
    return sorted(task.get_name() for task in asyncio.all_tasks() if task is not here)
