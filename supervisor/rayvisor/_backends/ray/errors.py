"""Ray's exceptions as plain data.

An exception of Ray's is read by the name of its class and its attributes first. The text is used only for
facts that Ray gives in no other way. No class is looked up by importing its module, so that a foreign
exception (of vLLM above all) never makes the driver import the module that it came from.
"""

from __future__ import annotations

import re
from dataclasses import replace

from rayvisor._core.protocol.causes import plain_causes, shortened, text_cause
from rayvisor.errors import RayCallTimeout, WorkerPackageError
from rayvisor.faults import Cause, Termination

__all__ = [
    "RayCallTimeout",
    "WorkerPackageError",
    "end_of",
    "environment_failure",
    "init_failure",
    "is_ray_error",
    "out_of_memory",
    "without_advice",
    "worker_death",
]

_EXIT_TYPE = re.compile(r"[Ee]xit type: ([A-Z_]+)")
_EXIT_CODE = re.compile(r"exit code[ =:]+(-?\d+)")
_SIGNAL = re.compile(r"(?:signal|SIG)[ =:]+(\d+)")
_ADDRESS = re.compile(r"^\tip: (\S+)", re.MULTILINE)
_CREATION = "raised in its creation task"
_LOW_ON_MEMORY = re.compile(r"low on memory|memory monitor", re.IGNORECASE)
_KILLED = re.compile(r"killed by `?ray\.kill|ray\.kill\(|RAY_KILL", re.IGNORECASE)
_ADVICE = re.compile(r" (?:Some common causes include|There are some potential root causes)")
_INTENDED_TYPES = frozenset({"INTENDED_USER_EXIT", "INTENDED_SYSTEM_EXIT"})
_NODE_DEATH = re.compile(
    r"node (?:was|has been|is) (?:dead|terminated|lost|removed)|its node has died", re.IGNORECASE
)
_UNAVAILABLE = frozenset({"ActorUnavailableError"})


def _ray_names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] == "ray"}


def is_ray_error(error: BaseException) -> bool:
    """Return whether this is one of Ray's own errors."""
    return "RayError" in _ray_names(error)


def end_of(error: BaseException, *, node: str = "", log_file: str = "") -> Termination:
    """Convert the exception of a call to an actor into a record of the actor's end.

    Parameters
    ----------
    error
        The exception.
    node, log_file
        Known facts about the actor.
    """
    names = _ray_names(error)
    text = str(error)
    outer = Cause(type(error).__name__, _because(text))
    address = _ADDRESS.search(text)
    node = node or (address[1] if address else "")
    if names & _UNAVAILABLE:
        return Termination(causes=(outer,), unavailable=True, node=node, log_file=log_file)
    if "OutOfMemoryError" in names:
        return replace(out_of_memory(text, node=node), log_file=log_file)
    if "RuntimeEnvSetupError" in names:
        return replace(environment_failure(text, node=node), log_file=log_file)
    if "RayActorError" not in names:
        return Termination(
            causes=plain_causes(error),
            node_died=bool(names & {"NodeDiedError", "LocalRayletDiedError"}),
            node=node,
            log_file=log_file,
            traceback=str(getattr(error, "traceback_str", "")),
        )
    if getattr(error, "actor_init_failed", False) or _CREATION in text:
        return init_failure(text, node=node, log_file=log_file, outer=type(error).__name__)
    exit_type = _EXIT_TYPE.search(text)
    end = worker_death(outer, exit_type[1] if exit_type else "", text, node=node)
    return replace(
        end,
        traceback=text,
        intended=end.intended or (not _lost_its_group(text) and bool(_KILLED.search(text))),
        preempted=bool(getattr(error, "preempted", False)),
        node_died=bool(_NODE_DEATH.search(text)),
        log_file=log_file,
    )


def out_of_memory(text: str, *, node: str = "") -> Termination:
    """Record a worker that Ray's memory monitor killed: its reason, without the advice around it."""
    said = next((line for line in text.splitlines() if _LOW_ON_MEMORY.search(line)), "")
    cause = Cause("OutOfMemoryError", shortened(said) or "killed by Ray's memory monitor")
    return Termination(causes=(cause,), out_of_memory=True, signal=9, node=node, traceback=text)


def environment_failure(text: str, *, node: str = "") -> Termination:
    """Record an environment that could not be created; the reason is in a traceback, if there is one."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    raised = text_cause(text) if "Traceback (most recent call last)" in text else None
    why = () if raised is None or raised.type == "UnknownError" else (raised,)
    return Termination(
        causes=(Cause("RuntimeEnvSetupError", shortened(first)), *why), node=node, traceback=text
    )


def init_failure(
    text: str, *, node: str = "", log_file: str = "", outer: str = "ActorDiedError"
) -> Termination:
    """Record an actor whose ``__init__`` raised, with the exception from its traceback."""
    summary = Cause(outer, "the actor's __init__ raised")
    return Termination(
        causes=(summary, text_cause(text)),
        init_failed=True,
        node=node,
        log_file=log_file,
        traceback=text,
    )


def worker_death(outer: Cause, kind: str, detail: str, *, node: str = "") -> Termination:
    """Record the end of an actor's worker.

    Parameters
    ----------
    outer
        The cause that names the actor's end.
    kind
        Ray's exit type of the worker; empty if it is not known.
    detail
        Ray's description of the exit.
    node
        Address of its node.
    """
    code = _EXIT_CODE.search(detail)
    number = _SIGNAL.search(detail)
    # Ray calls this intended, but the supervisor did not intend it.
    lost_its_group = _lost_its_group(detail)
    if lost_its_group:
        kind = "PlacementGroupRemoved"
    return Termination(
        causes=(outer, Cause(kind, _detail(detail))) if kind else (outer,),
        exit_code=int(code[1]) if code else None,
        signal=int(number[1]) if number else None,
        intended=not lost_its_group and kind in _INTENDED_TYPES,
        out_of_memory=kind == "NODE_OUT_OF_MEMORY",
        node=node,
    )


def _lost_its_group(text: str) -> bool:
    return "its placement group was removed" in text


def without_advice(text: str) -> str:
    """Return a text of Ray's without the advice that follows it."""
    return shortened(_ADVICE.split(text, maxsplit=1)[0])


def _because(text: str) -> str:
    """Return the sentence with Ray's reason, without the table of names and ids above it."""
    lines = [line for line in text.splitlines() if line and not line.startswith("\t")]
    return shortened(lines[-1].partition(" Worker exit type:")[0]) if lines else ""


def _detail(text: str) -> str:
    """Return Ray's detail of the exit, without the advice that follows it."""
    _, _, detail = text.rpartition("xit detail: ")
    detail = _ADVICE.split(detail, maxsplit=1)[0]
    return shortened(detail.splitlines()[0]) if detail else ""
