"""Engine hosts as Ray actors: `RayHost` is the link to one.

A host is an actor with ``max_restarts=0``. A call that never returns while it lives (the sentinel) reports
its death about ten milliseconds later, with the cause, and Ray does not compete with the supervisor in
restarting it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

from rayvisor._backends.ray import package
from rayvisor._backends.ray.anti_affinity import HostLocation
from rayvisor._backends.ray.cleanup import kill_actor
from rayvisor._backends.ray.errors import RayCallTimeout, end_of, is_ray_error
from rayvisor._backends.ray.host_actor import Failure, HostHello
from rayvisor._core.protocol.links import CleanupReport, HostCallFailedError, HostGoneError, HostView
from rayvisor._core.protocol.wire import EngineInfo, GenerateCommand, HostDescription, HostItem
from rayvisor._core.tasks.attempts import Attempts, Limits
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs import ActorOptions, Backoff, StallLimits
from rayvisor.specs.limits import PATIENT

if TYPE_CHECKING:
    from rayvisor._backends.ray.agents import NodeAgents
    from rayvisor._backends.ray.cluster import RayCluster
    from rayvisor._backends.ray.nodes import NodeWatch
    from rayvisor.timeouts import RayTimeouts

__all__ = ["RayHost", "package_env"]

log = get_logger("rayvisor.ray")

_UNREAD_BATCHES = 64
"""Batches that may wait for a driver that does not read them; then the host waits."""


T = TypeVar("T")
_START_LIMITS = Limits(max_attempts=4, backoff=Backoff(initial=0.5, maximum=4.0, first_delay_zero=False))


async def _retry_unavailable(call: Callable[[], Awaitable[T]]) -> T:
    """Make an idempotent call of a start, and repeat it while Ray cannot reach the host.

    The call is repeated on the same host: another one would waste minutes of loading, and leave two hosts.
    """
    attempts = Attempts(_START_LIMITS, Random(), time.monotonic())
    while True:
        try:
            return await call()
        except HostGoneError as error:
            if not error.end.unavailable:
                raise
            wait = attempts.failed(str(error), time.monotonic())
            if wait is None:
                raise
        await asyncio.sleep(wait)


class HostServices(Protocol):
    """The services that a host uses of the factory that created it."""

    cluster: RayCluster
    agents: NodeAgents
    nodes: NodeWatch
    timeouts: RayTimeouts

    async def why_pending(self, options: ActorOptions) -> str:
        """Return why an actor with these options does not start; empty if the cluster does not show it."""
        ...

    def forget(self, host: RayHost, *, verified: bool) -> None:
        """Drop a host that has ended."""
        ...


class RayHost:
    """The link to one host actor; `RayHostFactory.create` makes it."""

    def __init__(
        self,
        services: HostServices,
        actor: Any,
        key: str,
        location: HostLocation,
        epoch: int,
        options: ActorOptions,
    ) -> None:
        self._services = services
        self._timeouts = services.timeouts
        self._actor = actor
        self._options = options
        self._hello: HostHello | None = None
        self._describing = asyncio.Lock()
        self._ending = False
        self._verified = False
        self._location = location
        self.key = key
        self.child = location.child
        self.epoch = epoch
        self._sentinel = self._arm()
        self._released: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._reported: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._process_watch: asyncio.Task[None] | None = None
        self._node_watch: asyncio.Task[None] | None = None

    @property
    def reaper(self) -> int:
        """Pid of the reaper that guards the host on its node; 0 if there is none or it is not known yet."""
        return self._hello.reaper if self._hello is not None else 0

    @property
    def node_id(self) -> str:
        """Ray's id of the node that the host runs on; empty while it is not known."""
        return self._hello.node_id if self._hello is not None else ""

    @property
    def settled(self) -> bool:
        """Whether Ray has reported the host's end, so that no task of this link is left."""
        return self._sentinel.done()

    def on_settled(self, callback: Callable[[], object]) -> None:
        """Call back once Ray has reported the host's end."""
        self._sentinel.add_done_callback(lambda _: callback())

    async def ready(self, timeout: float) -> HostDescription:
        """Wait until the host answers, has the driver's version of rayvisor, and its processes are watched.

        Raises
        ------
        WorkerPackageError
            The worker has no rayvisor, or another version of it.
        HostGoneError, TimeoutError
            As for all calls.
        """
        began = time.monotonic()

        async def describe() -> Any:
            left = max(0.1, timeout - (time.monotonic() - began))
            return await self._call("describe", self._actor.describe.remote(), left)

        async with self._describing:
            answer = await _retry_unavailable(describe)
            if not isinstance(answer, HostHello):
                package.check(*answer)
                raise HostCallFailedError(
                    "describe", (Cause("TypeError", f"unexpected answer {answer!r}"),), ""
                )
            known, self._hello = self._hello, answer
            self._location.found(answer.node_id)
            if known is None:
                self._node_watch = asyncio.create_task(
                    self._await_node_loss(answer), name=f"node of {self.child}, epoch {self.epoch}"
                )
                await self._adopt(answer, max(0.1, timeout - (time.monotonic() - began)))
        return answer.description

    async def ensure_started(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        timeout: float,
        limits: StallLimits = PATIENT,
    ) -> EngineInfo | Termination:
        """Start an engine in the host, see `HostLink.ensure_started`."""
        began = time.monotonic()
        if self._hello is None:
            await self.ready(timeout)

        async def ask() -> Any:
            left = max(0.1, timeout - (time.monotonic() - began))
            # The host itself ends the start in time, and names the phase; ours is for a host that hangs.
            ref = self._actor.call.remote("ensure_started", incarnation, dict(arguments), left, limits)
            return await self._call("ensure_started", ref, limits.longest(left) + self._timeouts.host_slack)

        answer: EngineInfo | Termination = await _retry_unavailable(ask)
        if isinstance(answer, EngineInfo) and self._hello is not None:
            await self._services.agents.record(self._hello.node_id, self.key, answer.processes)
            if self._process_watch is None or self._process_watch.done():
                # The host is large now: Ray notices its death only once all its memory is released.
                self._process_watch = asyncio.create_task(
                    self._await_process_end(self._hello),
                    name=f"process of {self.child}, epoch {self.epoch}",
                )
        return answer

    async def stop_engine(self, incarnation: int, grace: float) -> None:
        """End the engine, see `HostLink.stop_engine`."""
        ref = self._actor.call.remote("stop_engine", incarnation, grace)
        await self._call("stop_engine", ref, grace + self._timeouts.host_answer)

    async def submit(self, incarnation: int, orders: Sequence[GenerateCommand]) -> None:
        """Submit requests to the engine."""
        ref = self._actor.call.remote("submit", incarnation, list(orders))
        await self._call("submit", ref, self._timeouts.host_answer)

    async def abort(self, requests: Sequence[tuple[str, int]]) -> None:
        """End requests in the engine."""
        ref = self._actor.call.remote("abort", list(requests))
        await self._call("abort", ref, self._timeouts.host_answer)

    async def flow(self, request: str, attempt: int, *, is_open: bool) -> None:
        """Stop or resume reading a request's output."""
        ref = self._actor.call.remote("flow", request, attempt, is_open)
        await self._call("flow", ref, self._timeouts.host_answer)

    async def ask(
        self, incarnation: int, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float
    ) -> Any:
        """Have the engine carry out a call, see `HostLink.ask`."""
        ref = self._actor.call.remote("ask", incarnation, method, tuple(args), dict(kwargs), timeout)
        return await self._call(method, ref, timeout + self._timeouts.host_slack)

    async def stream(self) -> AsyncIterator[list[HostItem]]:
        """Iterate over the host's items, a batch a tick; HostGoneError is raised when the host ends."""
        generator = self._actor.stream.options(
            num_returns="streaming", _generator_backpressure_num_objects=_UNREAD_BATCHES
        ).remote()
        try:
            async for ref in generator:
                yield _unwrap("stream", await ref)
        except Exception as error:
            if not is_ray_error(error):
                raise
            raise HostGoneError(self.child, self.epoch, self._account(error)) from None
        finally:
            if not self._sentinel.done():
                self._services.cluster.post("ray.cancel of a stream", lambda: _cancel(generator))

    async def view(self, timeout: float) -> HostView:
        """Have the node agent look at the host, see `HostLink.view`."""
        if self._hello is None:
            return HostView(())
        node, stack_file = self._hello.node_id, self._hello.description.stack_file
        view = await self._services.agents.view(node, self.key, stack_file, timeout)
        return view._replace(node=self._hello.description.node, log_file=self._hello.log_file)

    async def ended(self) -> Termination:
        """Wait until the host has ended, see `HostLink.ended`."""
        reports = (self._released, self._reported)
        for known in reports:
            if known.done():
                return known.result()
        if self._is_unconfirmed():
            if self._verified:  # its node has proven what Ray has not reported
                await self.release()
                return self._released.result()
            self._sentinel = self._arm()  # a ref that raised keeps raising: only a new call shows more
        # The sentinel is last: releasing the host cancels it.
        ways: list[asyncio.Future[Termination]] = [*reports, self._sentinel]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        return next(way for way in ways if way.done()).result()

    async def end(self, timeout: float) -> CleanupReport:
        """Kill the host and its whole process tree, and return the proof, see `HostLink.end`."""
        self._ending = True
        until = time.monotonic() + timeout
        kill = partial(kill_actor, self._actor)
        try:
            await self._services.cluster.call(
                f"ray.kill of the host of {self.child}", kill, timeout=min(timeout, self._timeouts.host_kill)
            )
        except RayCallTimeout:
            pass  # a stopped process is ended by the agent's SIGKILL instead
        except Exception:
            # The agent kills it all the same.
            log.exception("host.kill.failed", child=self.child, epoch=self.epoch)
        left = max(0.1, until - time.monotonic())
        if self._hello is not None:
            report = await self._services.agents.end(self._hello.node_id, self.key, left)
        else:
            report = await self._end_unanswered(left)
        self._location.end()
        if report.verified:
            self._verified = True
            await self._stop_watching()
        self._services.forget(self, verified=report.verified)
        log.info(
            "host.ended",
            child=self.child,
            epoch=self.epoch,
            verified=report.verified,
            killed=[f"{process.name} ({process.pid})" for process in report.killed],
            left=[f"{process.name} ({process.pid})" for process in report.left],
        )
        return report

    async def release(self) -> None:
        """Stop watching the host, which has been ended, and wake those that wait for its end."""
        self._location.end()
        await self._stop_watching()
        if (self._sentinel.done() and not self._is_unconfirmed()) or self._released.done():
            return
        cause = Cause("HostEnded", "the host was ended; Ray has not reported yet how")
        self._released.set_result(Termination(causes=(cause,), intended=True))
        self._sentinel.cancel()
        await asyncio.gather(self._sentinel, return_exceptions=True)

    def _is_unconfirmed(self) -> bool:
        """Return whether the sentinel has failed without a report of the host's end."""
        sentinel = self._sentinel
        failed = not sentinel.done() or sentinel.cancelled() or sentinel.exception() is not None
        return not failed and sentinel.result().unavailable

    async def _stop_watching(self) -> None:
        """End the watches of the host's node and process: a node that never dies would keep them forever."""
        watches = [watch for watch in (self._process_watch, self._node_watch) if watch is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def _end_unanswered(self, timeout: float) -> CleanupReport:
        """End a host that has never answered: it has no engine, so Ray's report of its end is proof."""
        with anyio.move_on_after(timeout):
            end = await self.ended()
            return CleanupReport((), (), verified=not end.unavailable)
        return CleanupReport((), (), verified=False)

    async def _adopt(self, hello: HostHello, timeout: float) -> None:
        process = hello.description.process
        try:
            await self._services.agents.adopt(
                hello.node_id,
                self.key,
                process,
                package_env(self._options),
                min(timeout, self._timeouts.host_adoption),
            )
        except Exception as error:
            if not isinstance(error, TimeoutError) and not is_ray_error(error):
                raise
            # The reaper guards the host meanwhile, and the next agent adopts it.
            log.warning("host.not_adopted", child=self.child, epoch=self.epoch, error=str(error)[:500])

    async def _call(self, name: str, ref: Awaitable[Any], timeout: float) -> Any:
        what = f"{name} of the host of {self.child} (epoch {self.epoch})"
        try:
            with anyio.fail_after(timeout):
                answer = await ref
        except TimeoutError:
            hint = await self._services.why_pending(self._options) if self._hello is None else ""
            raise RayCallTimeout(what, timeout, hint=hint) from None
        except Exception as error:
            if not is_ray_error(error):
                raise
            raise HostGoneError(self.child, self.epoch, self._account(error)) from None
        return _unwrap(what, answer)

    def _arm(self) -> asyncio.Task[Termination]:
        return asyncio.create_task(
            self._watch(self._actor), name=f"sentinel of {self.child}, epoch {self.epoch}"
        )

    async def _watch(self, actor: Any) -> Termination:
        try:
            await actor.watch.remote()
        except Exception as error:
            if not is_ray_error(error):
                raise
            end = self._account(error)
            log.info(
                "host.sentinel",
                child=self.child,
                epoch=self.epoch,
                unavailable=end.unavailable,
                root=end.root.type,
            )
            return end
        return Termination(causes=(), intended=True)

    async def _await_process_end(self, hello: HostHello) -> None:
        """Wait until the node agent reports that the host has ended by a signal or with an error.

        Ray knows more about any other end, and about why another party ended it.
        """
        how = await self._services.agents.host_ended(hello.node_id, self.key)
        code, number = how or (None, None)
        if not code and not number:
            return
        description = hello.description
        who = f"the host (pid {description.process.pid})"
        cause = Cause("ProcessExited", f"{who} ended with exit code {code}")
        if number:
            names = {each.value: each.name for each in signal.Signals}
            cause = Cause("ProcessKilled", f"{who} was ended by {names.get(number, f'signal {number}')}")
        log.info("host.ended_on_node", child=self.child, epoch=self.epoch, exit_code=code, signal=number)
        if not self._reported.done():
            self._reported.set_result(
                Termination(
                    causes=(cause,),
                    exit_code=code,
                    signal=number,
                    intended=self._ending,
                    node=description.node,
                    log_file=hello.log_file,
                )
            )

    async def _await_node_loss(self, hello: HostHello) -> None:
        """Wait until the cluster reports that the host's node is lost: no actor can answer there any more."""
        why = await self._services.nodes.lost(hello.node_id)
        if not self._reported.done():
            node = hello.description.node
            cause = Cause("NodeDiedError", f"node {hello.node_id[:12]} ({node}) has gone: {why}")
            self._reported.set_result(
                Termination(
                    causes=(cause,),
                    intended=self._ending,
                    node_died=True,
                    node=node,
                    log_file=hello.log_file,
                )
            )

    def _account(self, error: BaseException) -> Termination:
        hello = self._hello
        end = end_of(
            error,
            node=hello.description.node if hello else "",
            log_file=hello.log_file if hello else "",
        )
        return replace(end, intended=True) if self._ending and not end.unavailable else end


def package_env(options: ActorOptions) -> dict[str, Any]:
    """Return the runtime environment in which a node agent finds rayvisor as the host does."""
    return {key: value for key, value in options.runtime_env.items() if key != "env_vars"}


def _unwrap(what: str, answer: Any) -> Any:
    if isinstance(answer, Failure):
        raise HostCallFailedError(what, answer.causes, answer.traceback)
    return answer


def _cancel(generator: Any) -> None:
    import ray

    ray.cancel(generator)
