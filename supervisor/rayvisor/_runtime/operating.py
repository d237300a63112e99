"""What an operator, or the program, does to a running tree: pause, resume, restart, stop.

Each is made of the core's own verbs, and of what the pools' fronts can do with requests in flight.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import anyio

from rayvisor._checks import seconds
from rayvisor._core import messages as m
from rayvisor._engine.link import HostCallFailed
from rayvisor._runtime.hooks import HOOK_SECONDS
from rayvisor._runtime.looking import LookingVerbs
from rayvisor.errors import ChildUnavailableError, SpecError, UnknownChildError
from rayvisor.log import get_logger

if TYPE_CHECKING:
    from rayvisor._pool.pausing import Pausing
    from rayvisor.pool import EnginePool

__all__ = ["OperatorVerbs", "PauseMode", "split"]

PauseMode = Literal["wait", "keep", "abort"]
MODES = ("wait", "keep", "abort")
FREEZE_SECONDS = 10.0
"""How long an engine may take to hold still, or to go on."""
_KEEP = {"mode": "keep", "clear_cache": False}

log = get_logger("rayvisor.supervisor")


class OperatorVerbs(LookingVerbs, ABC):
    """The part of a supervisor that an operator uses, over its control socket as well."""

    async def pause(self, path: str = "", *, mode: PauseMode = "wait", deadline: float = 60.0) -> int:
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
        deadline
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
        if mode not in MODES:
            raise SpecError("mode", mode, f"must be one of {', '.join(map(repr, MODES))}")
        seconds("deadline", deadline)
        await self._hold(m.Verb.PAUSE, path)
        pools = self._engines(path)
        await self._freeze(pools, frozen=mode == "keep")
        await self._tell_servers(path, "pause_generation", {"mode": mode}, deadline)
        for pool, engines in pools:
            pool.pausing.keep(engines, kept=mode == "keep")
            if mode == "abort":
                pool.pausing.withdraw(engines)
        began = anyio.current_time()
        if mode == "wait":
            with anyio.move_on_after(deadline):
                for pool, engines in pools:
                    await pool.pausing.drained(engines)
        await self._running.hooks.settled(path, max(0.0, deadline - (anyio.current_time() - began)))
        return sum(pool.pausing.in_flight(engines) for pool, engines in pools)

    async def resume(self, path: str = "") -> None:
        """Take a pause back; what was kept in flight goes on. Holds of other kinds stay.

        Returns when the ``resume`` hooks of actors have been called, or have failed.
        """
        await self._freeze(self._engines(path), frozen=False)
        await self._tell_servers(path, "resume_generation", {}, FREEZE_SECONDS)
        await self._hold(m.Verb.RESUME, path)
        await self._running.hooks.settled(path, HOOK_SECONDS)
        for pool, engines in self._engines(path):
            pool.pausing.keep(engines, kept=False)

    async def stale(self, path: str = "") -> None:
        """Say that what engines with a gate serve with is out of date: each passes its gate again.

        Meanwhile they get no new requests; those in flight go on. The empty path is the whole tree.

        Raises
        ------
        UnknownChildError
            There is no such child.
        """
        await self._hold(m.Verb.STALE, path)

    async def restart(self, path: str = "") -> None:
        """End a child, wherever it is in its life, and start it anew; it does not count as a restart.

        The empty path means all children of the root: ended in reverse order, then started in order. Requests
        to the pools in it wait meanwhile; none is lost.

        Raises
        ------
        UnknownChildError, ChildStartError, TemplateError
            It could not be; a temporary child, and an instance of a template, cannot be started again.
        """
        runtime = self._running.runtime
        with self._running.pools.awaited(path, runtime), self._running.actors.restarting(path):
            await _restart(runtime.call, path)

    def instructions(self, path: str = "") -> tuple[str, ...]:
        """What the engines at or below ``path`` can be told: for vLLM with fault tolerance, ``retry``."""
        engines = self._running.engines
        infos = (engines.info(child, incarnation) for child, incarnation in self._incarnations(path))
        return tuple(sorted({name for info in infos if info is not None for name in info.instructions}))

    async def instruct(
        self,
        instruction: str,
        path: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        request_id: str = "",
        within: float = 60.0,
    ) -> dict[str, dict[str, Any]]:
        """Tell engines something that their own fault tolerance knows, for example vLLM's ``retry``.

        Nobody has to: an engine that reports a fault is told to retry by its supervisor. An engine that does
        not know the instruction is never sent it, and vLLM's refuses one while it is healthy.

        Parameters
        ----------
        instruction
            One of [`instructions`][rayvisor.Supervisor.instructions].
        path
            Of an engine, or of a supervisor: all engines below it, side by side. The empty path is the tree.
        params
            What goes with it.
        request_id
            Comes back with each acknowledgement.
        within
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
        known = self.instructions(path)
        if instruction not in known:
            there = ", ".join(known) or "none: are they without fault tolerance?"
            raise SpecError(
                "instruction", instruction, f"must be one that the engines know; they know {there}"
            )
        engines = self._running.engines
        request = {"instruction": instruction, "params": dict(params or {}), "request_id": request_id}
        answers: dict[str, dict[str, Any]] = {}

        async def tell(child: str, incarnation: int) -> None:
            try:
                answers[child] = await engines.ask(child, incarnation, "handle_fault", (request,), {}, within)
            except (ChildUnavailableError, HostCallFailed, TimeoutError) as error:
                answers[child] = {
                    "request_id": request_id,
                    "success": False,
                    "reason": f"{type(error).__name__}: {error}",
                }

        async with anyio.create_task_group() as tasks:
            for child, incarnation in self._incarnations(path):
                info = engines.info(child, incarnation)
                if info is not None and instruction in info.instructions:
                    tasks.start_soon(tell, child, incarnation)
        return answers

    async def stop(self) -> None:
        """End the tree in order, from wherever this is called: the ``async with`` block is cancelled.

        Returns at once. The block is left without an exception, as if it had come to its end.
        """
        self._begun.stop()

    async def _freeze(self, pools: Sequence[tuple[EnginePool, list[str]]], *, frozen: bool) -> None:
        """Have the engines themselves hold what they run, or go on, where they can.

        One that cannot computes on into its own buffers: the pool does not read what comes.
        """
        engines = self._running.engines

        async def tell(pausing: Pausing, child: str, incarnation: int) -> None:
            method, options = ("pause_generation", _KEEP) if frozen else ("resume_generation", {})
            try:
                await engines.ask(child, incarnation, method, (), options, FREEZE_SECONDS)
            except (ChildUnavailableError, HostCallFailed, TimeoutError) as error:
                log.warning(
                    "engine.not_asked", child=child, incarnation=incarnation, call=method, why=str(error)
                )
            else:
                if frozen:
                    pausing.frozen[child] = incarnation

        async with anyio.create_task_group() as tasks:
            for pool, children in pools:
                for child in children:
                    up = pool.pausing.incarnation(child) if frozen else pool.pausing.frozen.pop(child, None)
                    if up is not None and pool.pausing.frozen.get(child) != up:
                        tasks.start_soon(tell, pool.pausing, child, up)

    async def _tell_servers(self, path: str, method: str, options: Mapping[str, Any], seconds: float) -> None:
        """Have servers hold what they run, or go on: vLLM's own can in their development mode only."""
        engines = self._running.engines

        async def tell(child: str, incarnation: int) -> None:
            try:
                await engines.ask(child, incarnation, method, (), options, seconds)
            except (ChildUnavailableError, HostCallFailed, TimeoutError) as error:
                log.info("server.goes_on", child=child, incarnation=incarnation, call=method, why=str(error))

        servers = [each for each in self._below(path) if engines.url(each[0])]
        async with anyio.create_task_group() as tasks:
            for server in servers:
                tasks.start_soon(tell, *server)

    async def _hold(self, verb: m.Verb, path: str) -> None:
        await self._running.runtime.call(verb, *(split(path) if path else ("", None)))

    def _incarnations(self, path: str) -> list[tuple[str, int]]:
        """The children at or below ``path``, each with its incarnation."""
        children = self._running.runtime.core.children
        if path and path not in children:
            raise UnknownChildError(path, tuple(children))
        return self._below(path)

    def _below(self, path: str) -> list[tuple[str, int]]:
        return [
            (name, child.incarnation)
            for name, child in self._running.runtime.core.children.items()
            if not path or name == path or name.startswith(f"{path}/")
        ]

    def _engines(self, path: str) -> list[tuple[EnginePool, list[str]]]:
        """The engines at or below ``path``, by pool."""
        session = self._running
        found: dict[str, list[str]] = {}
        for child in session.runtime.core.children:
            if not path or child == path or child.startswith(f"{path}/"):
                found.setdefault(split(child)[0], []).append(child)
        pools = ((session.pools.get(above), engines) for above, engines in found.items())
        return [(pool, engines) for pool, engines in pools if pool is not None]


async def _restart(call: Callable[..., Awaitable[Any]], path: str) -> None:
    if path:
        await call(m.Verb.TERMINATE_CHILD, *split(path))
        await call(m.Verb.RESTART_CHILD, *split(path))
        return
    children = await call(m.Verb.WHICH_CHILDREN, "")
    for child in children:  # the last started first
        await call(m.Verb.TERMINATE_CHILD, "", child.id)
    left = {child.id for child in await call(m.Verb.WHICH_CHILDREN, "")}
    for child in reversed(children):
        if child.id in left:  # a temporary child's spec went with it
            await call(m.Verb.RESTART_CHILD, "", child.id)


def split(path: str) -> tuple[str, str]:
    """The supervisor a child is under, and its id there."""
    above, _, identity = path.rpartition("/")
    return above, identity
