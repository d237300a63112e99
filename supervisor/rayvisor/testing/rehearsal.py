"""A rehearsal of engine faults: what an engine with fault tolerance does where there is no GPU for it."""

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

ARM_SECONDS = 30.0


def rehearse(pool: ChildSpec, *, recovery_timeout: float = 120.0) -> ChildSpec:
    """Give the engines of a pool or group fault tolerance on the CPU, to try out what becomes of faults.

    vLLM's fault tolerance asks for data parallelism, a mixture of experts, and a GPU; the part of it that
    handles a fault runs without. Here that part is switched on, with the worker prepared for
    [`fail_next_step`][rayvisor.testing.fail_next_step] and
    [`hang_next_step`][rayvisor.testing.hang_next_step]. It is vLLM's code that pauses, waits and retries;
    but no rank has anything to do with another. Not for production.

    Among its ``engine_args`` such an engine takes more faults, real or simulated alike:
    ``fault_tolerance=False`` (an exception in a step ends it), ``retry`` (what the instruction leads to:
    ``"recover"``, ``"fail"``, ``"ignore"`` or ``"fault_again"``), ``fail_start`` (a message that its start
    raises), ``compile_seconds`` and ``prefill_seconds`` (processor time of a start, and of each prompt),
    ``crash_on_prompt`` and ``raise_on_prompt`` (a prompt that holds this text kills a process of it, or
    raises). A real one also takes ``memory_bytes``: so much may a worker still ask for when it loads.

    Parameters
    ----------
    pool
        What [`engine_pool`][rayvisor.engine_pool] or [`engine_group`][rayvisor.engine_group] made, of
        ``engine="vllm"`` on the CPU or ``engine="sim"``.
    recovery_timeout
        Seconds that an engine with a fault waits for an instruction before it gives itself up.

    Raises
    ------
    SpecError
        It is no pool of such engines.

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
        raise SpecError("pool", pool.id, "must be what engine_pool() or engine_group() made")
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
    """Have the next step of a rehearsing engine raise a ``RuntimeError``; it needs a request to step for.

    Parameters
    ----------
    supervisor
        One that runs.
    child
        Path of the engine; of one that [`rehearse`][rayvisor.testing.rehearse] has prepared.
    message
        The error's; the simulated engine has its own.

    Raises
    ------
    ChildUnavailableError
        It does not serve.
    """
    await _ask_worker(supervisor, child, "arm", message, of_simulated=("EngineCore", signal.SIGUSR1))


async def hang_next_step(supervisor: Supervisor, child: str) -> None:
    """Have the next step of a rehearsing engine never return; it needs a request to step for.

    Its processes live and do nothing, as with a collective whose partner is gone.

    Parameters
    ----------
    supervisor
        One that runs.
    child
        Path of the engine; of one that [`rehearse`][rayvisor.testing.rehearse] has prepared.

    Raises
    ------
    ChildUnavailableError
        It does not serve.
    """
    await _ask_worker(supervisor, child, "hang", of_simulated=("Worker", signal.SIGUSR1))


async def _ask_worker(
    supervisor: Supervisor, child: str, method: str, *args: str, of_simulated: tuple[str, signal.Signals]
) -> None:
    info = supervisor.engine_info(child)
    if info is not None and info.engine == "sim":
        name, number = of_simulated
        asked = next(process for _, process in supervisor.processes(child) if name in process.name)
        os.kill(asked.pid, number)
        return
    incarnation = supervisor.status(child).incarnation
    engines = supervisor._running.engines  # noqa: SLF001 - a gate's hook has this call as well
    await engines.ask(child, incarnation, "collective_rpc", (method,), {"args": args}, ARM_SECONDS)
