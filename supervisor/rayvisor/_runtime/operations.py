"""Operations on a running tree: pause, resume, restart, recovery instructions.

Each combines calls to the core with what the pools can do about requests in flight.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import anyio

from rayvisor._core.paths import split
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._validation import one_of, seconds
from rayvisor.errors import CallError, SpecError, UnknownChildError

if TYPE_CHECKING:
    from rayvisor._core.supervision.core import Core
    from rayvisor._core.supervision.nodes import Child
    from rayvisor._runtime.pool.pause_control import PauseControl
    from rayvisor._runtime.pool.runtime import PoolRuntime
    from rayvisor._runtime.session import Session

__all__ = [
    "PauseMode",
    "mark_stale",
    "pause",
    "recovery_instructions",
    "restart",
    "resume",
    "set_recovery_instruction",
]

PauseMode = Literal["wait", "keep", "abort"]
MODES = ("wait", "keep", "abort")
_KEEP = {"mode": "keep", "clear_cache": False}

log = get_logger("rayvisor.supervisor")


async def pause(session: Session, path: str, *, mode: PauseMode, timeout: float) -> int:
    """Give a child, or everything under a supervisor, no new work until it is resumed."""
    one_of("mode", mode, MODES)
    seconds("timeout", timeout)
    await _call_on_child(session, m.Verb.PAUSE, path)
    pools = _engines_by_pool(session, path)
    await _freeze(session, pools, frozen=mode == "keep")
    await _ask_servers(session, path, "pause_generation", {"mode": mode}, timeout)
    for pool, engines in pools:
        pool.pausing.keep(engines, kept=mode == "keep")
        if mode == "abort":
            pool.pausing.withdraw(engines)
    began = anyio.current_time()
    if mode == "wait":
        with anyio.move_on_after(timeout):
            for pool, engines in pools:
                await pool.pausing.drained(engines)
    await session.pause_hooks.settled(path, max(0.0, timeout - (anyio.current_time() - began)))
    return sum(pool.pausing.in_flight(engines) for pool, engines in pools)


async def resume(session: Session, path: str) -> None:
    """Lift a pause; requests that were kept in flight continue."""
    await _freeze(session, _engines_by_pool(session, path), frozen=False)
    await _ask_servers(session, path, "resume_generation", {}, session.timeouts.runtime.freeze)
    await _call_on_child(session, m.Verb.RESUME, path)
    await session.pause_hooks.settled(path, session.timeouts.runtime.pause_hook)
    for pool, engines in _engines_by_pool(session, path):
        pool.pausing.keep(engines, kept=False)


async def mark_stale(session: Session, path: str) -> None:
    """Send engines with a gate through their gate again."""
    await _call_on_child(session, m.Verb.STALE, path)


async def restart(session: Session, path: str) -> None:
    """Stop a child and start it again, without counting it as a restart."""
    runtime = session.runtime
    with session.pools.restarting(path, runtime), session.actors.restarting(path):
        await _restart(runtime.call, path)


def recovery_instructions(session: Session, path: str) -> tuple[str, ...]:
    """Return the recovery instructions that the engines at or below ``path`` accept."""
    engines = session.engines
    infos = (engines.info(child, incarnation) for child, incarnation in _incarnations(session, path))
    return tuple(sorted({name for info in infos if info is not None for name in info.instructions}))


async def set_recovery_instruction(
    session: Session,
    instruction: str,
    path: str,
    *,
    params: Mapping[str, Any] | None,
    request_id: str,
    timeout: float,
) -> dict[str, dict[str, Any]]:
    """Send engines an instruction of their own fault tolerance; return each engine's answer."""
    known = recovery_instructions(session, path)
    if instruction not in known:
        there = ", ".join(known) or "none: are they without fault tolerance?"
        raise SpecError("instruction", instruction, f"must be one that the engines know; they know {there}")
    engines = session.engines
    request = {"instruction": instruction, "params": dict(params or {}), "request_id": request_id}
    answers: dict[str, dict[str, Any]] = {}

    async def send(child: str, incarnation: int) -> None:
        try:
            answers[child] = await engines.ask(child, incarnation, "handle_fault", (request,), {}, timeout)
        except (CallError, TimeoutError) as error:
            answers[child] = {
                "request_id": request_id,
                "success": False,
                "reason": f"{type(error).__name__}: {error}",
            }

    async with anyio.create_task_group() as tasks:
        for child, incarnation in _incarnations(session, path):
            info = engines.info(child, incarnation)
            if info is not None and instruction in info.instructions:
                tasks.start_soon(send, child, incarnation)
    return answers


async def _freeze(session: Session, pools: Sequence[tuple[PoolRuntime, list[str]]], *, frozen: bool) -> None:
    """Have the engines themselves stop or resume computing, where they can.

    An engine that cannot continues to compute into its own buffers: the pool does not read its output.
    """
    engines, timeout = session.engines, session.timeouts.runtime.freeze

    async def ask(pausing: PauseControl, child: str, incarnation: int) -> None:
        method, options = ("pause_generation", _KEEP) if frozen else ("resume_generation", {})
        try:
            await engines.ask(child, incarnation, method, (), options, timeout)
        except (CallError, TimeoutError) as error:
            log.warning("engine.not_asked", child=child, incarnation=incarnation, call=method, why=str(error))
        else:
            if frozen:
                pausing.frozen[child] = incarnation

    async with anyio.create_task_group() as tasks:
        for pool, children in pools:
            for child in children:
                up = pool.pausing.incarnation(child) if frozen else pool.pausing.frozen.pop(child, None)
                if up is not None and pool.pausing.frozen.get(child) != up:
                    tasks.start_soon(ask, pool.pausing, child, up)


async def _ask_servers(
    session: Session, path: str, method: str, options: Mapping[str, Any], timeout: float
) -> None:
    """Have servers stop or resume computing; vLLM's own servers can in their development mode only."""
    engines = session.engines

    async def ask(child: str, incarnation: int) -> None:
        try:
            await engines.ask(child, incarnation, method, (), options, timeout)
        except (CallError, TimeoutError) as error:
            log.info("server.goes_on", child=child, incarnation=incarnation, call=method, why=str(error))

    core = session.runtime.core
    servers = [child for child in _at_or_below(core, path) if engines.url(child.path)]
    async with anyio.create_task_group() as tasks:
        for server in servers:
            tasks.start_soon(ask, server.path, server.incarnation)


async def _call_on_child(session: Session, verb: m.Verb, path: str) -> None:
    """Call a verb that takes the tree (the empty path) as well as a child."""
    await session.runtime.call(verb, *(split(path) if path else ("", None)))


def _incarnations(session: Session, path: str) -> list[tuple[str, int]]:
    """Return the children at or below ``path``, each with its incarnation."""
    core = session.runtime.core
    if path and path not in core.children:
        raise UnknownChildError(path, tuple(core.children))
    return [(child.path, child.incarnation) for child in _at_or_below(core, path)]


def _at_or_below(core: Core, path: str) -> Iterator[Child]:
    """Yield the children at or below ``path``, each before those below it."""
    if path:
        child = core.children.get(path)
        pending = [] if child is None else [child]
    else:
        pending = list(reversed(core.root.children.values()))
    while pending:
        child = pending.pop()
        yield child
        if child.subtree is not None:
            pending.extend(reversed(child.subtree.children.values()))


def _engines_by_pool(session: Session, path: str) -> list[tuple[PoolRuntime, list[str]]]:
    """Return the engines at or below ``path``, by pool."""
    found: dict[str, list[str]] = {}
    for child in _at_or_below(session.runtime.core, path):
        found.setdefault(split(child.path)[0], []).append(child.path)
    pools = ((session.pools.get(parent), engines) for parent, engines in found.items())
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
        if child.id in left:  # the spec of a temporary child is dropped with it
            await call(m.Verb.RESTART_CHILD, "", child.id)
