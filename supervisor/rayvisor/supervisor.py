"""The supervisor: a tree of children that are kept running for as long as a block of code lasts.

    async with rv.Supervisor(spec) as sup:
        async for chunk in sup["llm"].generate("Once upon a time", {"max_tokens": 64}):
            print(chunk.text, end="")

Entering
    starts the children in order and returns when all are up.
Leaving
    ends them in the reverse order, each within its shutdown time, however the block is left: at its end,
    by an exception, by cancellation, by SIGINT (Ctrl-C) or SIGTERM. A second signal ends everything at
    once. Only a child whose shutdown is ``Shutdown.INFINITY`` is waited for without bound.
Giving up
    When the tree cannot be kept up, the block is cancelled and
    [`SupervisorGaveUpError`][rayvisor.SupervisorGaveUpError] is raised, root cause first. An exception of the
    block's own goes first; but one of rayvisor's that only follows from the end of the tree (a request
    that finds no engine any more) becomes the ``__cause__`` of ``SupervisorGaveUpError``.

A blocking program uses [`run_in_thread`][rayvisor.run_in_thread]. A test that wants no Ray gives
``local=True``: engines (best of all simulated ones) then run below this very process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import anyio

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
from rayvisor._version import __version__
from rayvisor.errors import (
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
    ServerStart,
    SupervisorSpec,
    SupervisorStart,
)
from rayvisor.status import Node, walk
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from rayvisor._core.protocol.wire import EngineInfo, ProcessId
    from rayvisor._core.supervision.calls import ChildCounts, ChildStatus
    from rayvisor._runtime.lifecycle import Hook
    from rayvisor._runtime.operations import PauseMode
    from statecharts import Drawing

__all__ = ["Supervisor"]

log = get_logger("rayvisor.supervisor")

RESIST_SECONDS = 5.0
"""How long a task that ignores its cancellation is waited for at the very end."""


class Supervisor:
    """Runs a tree of children while its ``async with`` block lasts. It is used once.

    Parameters
    ----------
    spec
        The root supervisor and its children.
    address
        Ray cluster to attach to. None: the Ray this process is connected to, ``RAY_ADDRESS``, or a local
        Ray started for the time. Only a Ray started here is ever shut down.
    ray_options
        More arguments for ``ray.init``, for example ``{"num_cpus": 4}``; what only a Ray that is started can
        be told, as this, is left out where one is attached to.
    local
        Run engines without Ray, below this process: for tests. Actor children are refused then.
    seed
        Seed of the jitter and of sampling seeds; None: from the system.
    call_limit
        How many calls may wait for the supervisor's answer.
    handle_signals
        Whether SIGINT and SIGTERM end the tree in order; only possible in the main thread. After SIGINT
        the program ends as asyncio has it: the main task is cancelled, and ``asyncio.run`` (or
        ``anyio.run``) raises KeyboardInterrupt. After SIGTERM the block raises SystemExit (status 143).
    control
        Path of a Unix socket on which the running tree is talked to (``rayvisor status`` and its like); True
        for one that the commands find by themselves. Its folder must be one that only you can enter.
    publish
        Address of a ZeroMQ PUB socket on which every record is published as JSON, a topic per child:
        ``"tcp://127.0.0.1:5570"`` (port 0: a free one) or ``"ipc://PATH"``; True for a free port of the
        loopback interface. Nobody else can reach that one; an address that others reach has to be named.
        Needs pyzmq (the extra ``publish``); what is sent is described in docs/events.md.

    Raises
    ------
    SpecError
        When the spec is no SupervisorSpec, or ``publish`` no address.
    ControlSocketError
        On entering, before anything is started: the control socket cannot be opened.
    UnguardedMainError
        On entering: the program starts the tree when a process of an engine imports it.
    PublishError
        On entering, before anything is started: nothing can be published at that address.
    StartFailedError
        On entering: a child could not be started; those that were have been stopped again.
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
    ) -> None:
        if not isinstance(spec, SupervisorSpec):
            raise SpecError("spec", spec, "must be a SupervisorSpec")
        self.spec = spec
        self._environment = Environment(address, ray_options, local=local)
        self._environment.check(spec)
        self._random = Random(seed)
        self._call_limit = call_limit
        self._handle_signals = handle_signals
        # Made here, so that a watch, or a hook, may begin before the tree does and see its start.
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
        self._control = ControlServer(self, control, self._history) if control else None
        self._pages: tuple[WebPage, ...] = ()
        self._publisher = None if publish in (None, False) else Publisher(publish)

    # --- the block ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise SupervisorStoppedError("")
        # What multiprocessing itself looks at when such a process starts another one.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise UnguardedMainError(sys.argv[0])
        await self._open_outside()
        self._session = session = Session(
            self.spec,
            environment=self._environment,
            rng=self._random,
            broadcaster=self._broadcaster,
            reporter=self._reporter,
            machines=self._machines,
            call_limit=self._call_limit,
            handle_signals=self._handle_signals,
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
        # The block's own cancellation, by the end of the tree, ends here.
        left = None if body.__exit__(kind, error, traceback) else error
        cancelled = await self._leave(session)
        if left is None and cancelled is not None:
            raise cancelled
        await self._raise_for_end(session, left)
        return error is not None and left is None

    async def _open_outside(self) -> None:
        """Open what is talked to, and listened to, from outside."""
        if self._publisher is not None:
            await self._publisher.start()
            self._broadcaster.attach(self._publisher.put)
        if self._control is not None:
            try:
                await self._control.start()
            except BaseException:
                await self._end_publishing()
                raise

    async def _end_publishing(self) -> None:
        if self._publisher is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(RESIST_SECONDS):
                await self._publisher.end()

    async def kill(self) -> None:
        """End everything at once, without waiting for shutdown times: what a second signal does."""
        if self._session is not None:
            self._session.kill()

    @staticmethod
    async def _guard_body(session: Session, body: anyio.CancelScope) -> None:
        """Cancel the block when the tree has ended by itself, or a signal came."""
        await session.dismissed.wait()
        body.cancel()

    async def _leave(self, session: Session) -> BaseException | None:
        """End the tree and give everything back; return the cancellation that came meanwhile, if any."""
        session.halt()
        # Bounded by the shutdown times of the children, and by deadlines of everything that follows.
        cancelled = await outlast(session.given_back, session.kill)
        with anyio.CancelScope(shield=True), anyio.move_on_after(RESIST_SECONDS):
            if self._control is not None:
                await self._control.end()
            await self._end_pages()
            await session.closed.wait()
        await self._end_publishing()
        if not session.closed.is_set():
            log.error("tasks.resist", seconds=RESIST_SECONDS, tasks=_others())
        return cancelled

    @staticmethod
    async def _raise_for_end(session: Session, error: BaseException | None) -> None:
        """Raise what the end of the tree asks for; the block's own error goes first."""
        reason = reason_of(session)
        if reason is None or (error is not None and not only_follows(error)):
            return
        if isinstance(reason, KeyboardInterrupt) and session.closed.is_set():
            await signals.hand_on(signal.SIGINT)
        raise reason from error

    # --- looking ------------------------------------------------------------------------------

    def __getitem__(self, path: str) -> Any:
        """Return what stands for the child at ``path``.

        An [`EnginePool`][rayvisor.EnginePool], a [`ServerRef`][rayvisor.ServerRef], or a
        [`ChildRef`][rayvisor.ChildRef].

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        session = self._running
        pool = session.pools.get(path)
        if pool is not None:
            return pool
        children = session.runtime.core.children
        if path not in children:
            raise UnknownChildError(path, tuple(children))
        if isinstance(children[path].spec.start, ServerStart):
            return ServerRef(path, self)
        return ChildRef(path, session.actors)

    def status(self, path: str = "") -> Node:
        """The tree below ``path`` as it is now, as plain data; the empty path is all of it.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        session = self._begun
        if not session.begun and not path:
            return Node(path="", kind="supervisor", state="STARTING", leaf="")
        return introspection.status(self._running, path)

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
        return drawing_of(self.status(path), self._history)

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
        session = self._begun
        root, wall = self.status(), self._history.wall
        schedulers = (
            {} if not session.begun else {node.path: session.pools.get(node.path) for node in walk(root)}
        )
        publisher = self._publisher
        return exposition(
            TreeMetrics(
                root,
                {node.path: self._named(node.path) for node in walk(root)},
                self._counters,
                {path: scheduler.stats() for path, scheduler in schedulers.items() if scheduler is not None},
                version=__version__,
                began=session.began + wall,
                now=time.monotonic() + wall,
                lag=session.runtime.watchdog.lag if session.begun else (0.0, 0),
                dropped=self._broadcaster.missed,
                overflows=None if publisher is None else publisher.overflows,
            )
        )

    def engine_info(self, path: str) -> EngineInfo | None:
        """What the engine at ``path`` said of itself when it came up; None while none is up there."""
        return introspection.engine_info(self._running, path)

    def processes(self, path: str) -> list[tuple[str, ProcessId]]:
        """Processes of the engine at ``path`` and of its host, each with its role: ``host`` or ``engine``."""
        return self._running.engines.processes(path)

    def watch(self) -> RecordStream:
        """Return an async iterator of records: of all that happens from now on, until the tree has ended.

        May be called before the block is entered: the start is seen, too. A watcher that reads slowly
        loses the oldest records, and gets a ``RecordsMissed`` in their place.
        """
        return self._broadcaster.watch()

    def on_enter(self, place: str, hook: Hook, *, chart: str = "engine") -> None:
        """Call ``hook`` whenever a child enters a state or leaf of its chart.

        It is a plain function and gets a change: ``change.model`` is the child (``.child``,
        ``.incarnation``, ``.state``), ``change.event``, ``change.before`` and ``change.after`` say what
        happened. It runs inside the transition and must not block; one that raises is recorded. May be
        called before the block is entered.

        Parameters
        ----------
        place
            A state (``"ALIVE"``) or a leaf (``"SERVING"``).
        hook
            What to call.
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
        """Where records are published, with the port that was free; None if nowhere, or before entering."""
        return None if self._publisher is None else self._publisher.address

    # --- operating ----------------------------------------------------------------------------

    async def pause(self, path: str = "", *, mode: PauseMode = "wait", timeout: float = 60.0) -> int:
        """Give a child, or everything under a supervisor, no new work until it is resumed.

        A pause outlives restarts: what comes up again comes up paused. Requests to a paused pool wait, and so
        do calls by [`ChildRef`][rayvisor.ChildRef]; an actor's ``pause`` hook is called, and waited for.

        Parameters
        ----------
        path
            Of the child; the empty path is the whole tree.
        mode
            What becomes of requests in flight on engines. ``"wait"``: they finish where they are, and this
            returns when they have. ``"keep"``: they are held where they are until ``resume``, while their own
            deadlines go on. ``"abort"``: they are taken off the engine, and go on on another one, or on this
            one after ``resume``; none is lost, and no attempt is counted. One that cannot be moved (its
            prompt is embeddings, and tokens of it were delivered) stays and finishes.
        timeout
            Seconds that ``"wait"`` waits; what is in flight then goes on, and the pause holds.

        Returns
        -------
        int
            How many samples are still in flight on what was paused.

        Raises
        ------
        SpecError
            For a mode, or a deadline, that is none.
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
        """Take a pause back; what was kept in flight goes on. Holds of other kinds stay.

        Returns when the ``resume`` hooks of actors have been called, or have failed.
        """
        await operations.resume(self._running, path)

    async def mark_stale(self, path: str = "") -> None:
        """Say that what engines with a gate serve with is out of date: each passes its gate again.

        Meanwhile they get no new requests; those in flight go on. The empty path is the whole tree.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        await operations.mark_stale(self._running, path)

    async def restart(self, path: str = "") -> None:
        """End a child, wherever it is in its life, and start it anew; it does not count as a restart.

        The empty path means all children of the root: ended in reverse order, then started in order. Requests
        to the pools in it wait meanwhile; none is lost.

        Raises
        ------
        UnknownChildError, ChildStartError, TemplateError
            It could not be; a temporary child, and an instance of a template, cannot be started again.
        """
        await operations.restart(self._running, path)

    def recovery_instructions(self, path: str = "") -> tuple[str, ...]:
        """What the engines at or below ``path`` can be told: for vLLM with fault tolerance, ``retry``."""
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
        """Tell engines something that their own fault tolerance knows, for example vLLM's ``retry``.

        Nobody has to: an engine that reports a fault is told to retry by its supervisor. An engine that does
        not know the instruction is never sent it, and vLLM's refuses one while it is healthy.

        Parameters
        ----------
        instruction
            One of [`instructions`][rayvisor.Supervisor.recovery_instructions].
        path
            Of an engine, or of a supervisor: all engines below it, side by side. The empty path is the tree.
        params
            What goes with it.
        request_id
            Comes back with each acknowledgement.
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
        """End the tree in order, from wherever this is called: the ``async with`` block is cancelled.

        Returns at once. The block is left without an exception, as if it had come to its end.
        """
        self._begun.stop()

    async def serve_web(self, port: int = 0, *, host: str = "127.0.0.1", metrics: bool = True) -> WebPage:
        """Serve the live page of this tree until it has ended: see [the how-to](docs/web.md).

        It shows the tree, charts, faults and figures, and has buttons that pause, resume and restart. May be
        called before the block is entered: the start is seen, too.

        Parameters
        ----------
        port
            TCP port; 0: a free one.
        host
            Address to listen on. Any but loopback opens the page to others: what is in it goes, unencrypted,
            to who has the token, which is part of the URL.
        metrics
            Whether ``/metrics`` is answered too. It needs no token: names of children and numbers, nothing
            that acts, for who can reach the port ([metrics](docs/metrics.md)).

        Returns
        -------
        WebPage
            Its ``url`` is what to open.

        Raises
        ------
        SpecError
            For a port or a host that cannot be.
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
            raise SupervisorStoppedError("")
        page = WebPage(self, self._history, port, host, metrics=metrics)
        await page.start()
        self._pages = (*self._pages, page)
        return page

    # --- OTP's verbs ----------------------------------------------------------------------------

    async def start_child(self, spec: ChildSpec | Instance | None = None, *, under: str = "") -> str | None:
        """Add a child to the supervisor at path ``under`` and start it; returns its path.

        Under ``SIMPLE_ONE_FOR_ONE`` it makes an instance of the template: give an
        [`Instance`][rayvisor.Instance], or nothing for one with a number for its name. None if the start
        chose not to run (OTP: ``ignore``).

        Raises
        ------
        SpecError, AlreadyStartedError, AlreadyPresentError, ChildStartError
            Nothing is kept of it then.
        """
        return cast("str | None", await self._call(m.Verb.START_CHILD, under, await self._ready(spec, under)))

    async def terminate_child(self, path: str) -> None:
        """End a child by its shutdown; its spec stays (unless it is temporary)."""
        await self._call(m.Verb.TERMINATE_CHILD, *operations.split(path))

    async def restart_child(self, path: str) -> None:
        """Start a child that is down."""
        await self._call(m.Verb.RESTART_CHILD, *operations.split(path))

    async def delete_child(self, path: str) -> None:
        """Drop the spec of a child that is down."""
        await self._call(m.Verb.DELETE_CHILD, *operations.split(path))

    async def which_children(self, under: str = "") -> list[ChildStatus]:
        """The children of a supervisor, the last started first."""
        return cast("list[ChildStatus]", await self._call(m.Verb.WHICH_CHILDREN, under))

    async def count_children(self, under: str = "") -> ChildCounts:
        """How many specs, live children, supervisors and workers a supervisor has."""
        return cast("ChildCounts", await self._call(m.Verb.COUNT_CHILDREN, under))

    async def get_childspec(self, path: str) -> ChildSpec:
        """The spec of a child."""
        return cast("ChildSpec", await self._call(m.Verb.GET_CHILDSPEC, *operations.split(path)))

    async def apply_spec(self, spec: SupervisorSpec, *, under: str = "") -> None:
        """Put another spec into force at the supervisor at path ``under`` (OTP: ``code_change``).

        Nothing is started or ended by it, and no restart is forgotten. Flags apply from the next event on,
        a child's spec from its next start or end. A child that is new is down until ``restart_child``; one
        that is in the list no more goes on, after the others. Its later incarnations begin with this spec,
        but for a [`subtree`][rayvisor.subtree] made by a function, which is asked again.

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
        """Check a child's spec and open what it needs, before its supervisor hears of it."""
        session = self._running
        if isinstance(spec, Instance):
            spec = self._with_arguments(spec, under)
        if isinstance(spec, ChildSpec):
            await session.open(SupervisorSpec(children=[replace(spec, significant=False, backoff=None)]))
        elif isinstance(spec, Instance) and spec.start is not None:
            await session.open(SupervisorSpec(children=[ChildSpec(id=spec.id, start=spec.start)]))
        return spec

    def _with_arguments(self, instance: Instance, under: str) -> Instance:
        """Put an instance's own arguments behind those of its template."""
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

    async def _end_pages(self) -> None:
        for page in self._pages:
            await page.end()

    def _named(self, path: str) -> str:
        session = self._session
        if session is None or not session.begun:
            return path
        return introspection.counted_name(session, path)

    def _children(self) -> Collection[str]:
        session = self._session
        return () if session is None or not session.begun else session.runtime.core.children

    async def _call(self, verb: m.Verb, target: str, argument: object = None) -> object:
        return await self._running.runtime.call(verb, target, argument)

    @property
    def _running(self) -> Session:
        session = self._session
        if session is None or not session.begun or session.closed.is_set():
            raise SupervisorStoppedError("")
        return session

    @property
    def _begun(self) -> Session:
        if self._session is None or self._session.closed.is_set():
            raise SupervisorStoppedError("")
        return self._session

    @property
    def _has_ended(self) -> bool:
        return self._session is not None and self._session.closed.is_set()


def _others() -> list[str]:
    """Names of the tasks that are there besides this one."""
    here = asyncio.current_task()
    return sorted(task.get_name() for task in asyncio.all_tasks() if task is not here)
