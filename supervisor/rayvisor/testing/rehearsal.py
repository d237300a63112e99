"""Rehearsals of engine faults: vLLM's fault tolerance on the CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from rayvisor.errors import SpecError
from rayvisor.specs import ChildSpec, EngineStart, SupervisorSpec

if TYPE_CHECKING:
    from rayvisor.supervisor import Supervisor

__all__ = ["fail_next_step", "hang_next_step", "rehearse"]


def rehearse(pool: ChildSpec, *, recovery_timeout: float = 120.0) -> ChildSpec:
    """Enable fault tolerance on the CPU in the engines of a pool or group, to test the response to faults.

    vLLM's fault tolerance requires data parallelism, a mixture of experts, and a GPU, but the part of it that
    handles a fault runs without them. This function enables that part and prepares the worker for
    [`fail_next_step`][rayvisor.testing.fail_next_step] and
    [`hang_next_step`][rayvisor.testing.hang_next_step]. vLLM's own code pauses, waits and retries, but the
    ranks are independent of each other. Not for production.

    The ``engine_args`` of such an engine, real or simulated, may contain further faults:
    ``fault_tolerance=False`` (an exception in a step ends the engine), ``retry`` (the result of the
    instruction: ``"recover"``, ``"fail"``, ``"ignore"`` or ``"fault_again"``), ``fail_start`` (a message that
    its start raises), ``compile_seconds`` and ``prefill_seconds`` (processor time of a start and of each
    prompt), ``crash_on_prompt`` and ``raise_on_prompt`` (a prompt that contains this text kills one of its
    processes, or raises). A real engine also takes ``memory_bytes``, the memory that a worker may still
    allocate when it loads.

    Parameters
    ----------
    pool
        The result of [`engine_pool`][rayvisor.engine_pool] or [`engine_group`][rayvisor.engine_group], with
        ``engine="vllm"`` on the CPU or ``engine="sim"``.
    recovery_timeout
        Seconds that an engine with a fault waits for an instruction before it exits.

    Raises
    ------
    SpecError
        If it is not a pool of such engines.

    Examples
    --------
    >>> from rayvisor import engine_group
    >>> group = rehearse(engine_group("llm", engine="sim", engine_args={}, ranks=2))
    >>> group.start.children[0].start.arguments["fault_tolerance"]
    True
    """
    spec = pool.start
    starts = [each.start for each in spec.children] if isinstance(spec, SupervisorSpec) else []
    engines = [
        start for start in starts if isinstance(start, EngineStart) and start.engine in {"sim", "vllm"}
    ]
    if not isinstance(spec, SupervisorSpec) or not engines or len(engines) < len(starts):
        raise SpecError("pool", pool.id, "must be a pool or group of engine_pool() or engine_group()")
    children = [
        replace(child, start=_tolerant(start, recovery_timeout))
        for child, start in zip(spec.children, engines, strict=True)
    ]
    return replace(pool, start=replace(spec, children=children))


def _tolerant(start: EngineStart, recovery_timeout: float) -> EngineStart:
    given: Mapping[str, object] = {**start.arguments, "recovery_timeout": recovery_timeout}
    if start.engine == "sim":
        return replace(start, arguments={"fault_tolerance": True, **given})
    return replace(start, engine="vllm-rehearsal", arguments=given)


async def fail_next_step(
    supervisor: Supervisor, child: str, message: str = "a step was asked to fail"
) -> None:
    """Make the next step of a rehearsing engine raise a ``RuntimeError``. Steps happen only with a request.

    Parameters
    ----------
    supervisor
        A running supervisor.
    child
        Path of an engine prepared by [`rehearse`][rayvisor.testing.rehearse].
    message
        Message of the error; the simulated engine uses its own.

    Raises
    ------
    ChildUnavailableError
        If the engine does not serve.
    """
    await _ask_worker(supervisor, child, "arm", message, of_simulated=("EngineCore", signal.SIGUSR1))


async def hang_next_step(supervisor: Supervisor, child: str) -> None:
    """Make the next step of a rehearsing engine never return. Steps happen only with a request.

    Its processes live and make no progress, as in a collective operation whose peer is gone.

    Parameters
    ----------
    supervisor
        A running supervisor.
    child
        Path of an engine prepared by [`rehearse`][rayvisor.testing.rehearse].

    Raises
    ------
    ChildUnavailableError
        If the engine does not serve.
    """
    await _ask_worker(supervisor, child, "hang", of_simulated=("Worker", signal.SIGUSR1))


async def _ask_worker(
    supervisor: Supervisor, child: str, method: str, *args: str, of_simulated: tuple[str, signal.Signals]
) -> None:
    info = supervisor.engine_info(child)
    if info is not None and info.engine == "sim":
        name, number = of_simulated
        target = next(process for _, process in supervisor.processes(child) if name in process.name)
        os.kill(target.pid, number)
        return
    incarnation = supervisor.status(child).incarnation
    session = supervisor._running  # noqa: SLF001 - not public; a gate's hook can make the same call
    engines, timeout = session.engines, session.timeouts.commands.rehearsal
    await engines.ask(child, incarnation, "collective_rpc", (method,), {"args": args}, timeout)
