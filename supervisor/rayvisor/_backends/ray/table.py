"""Ray's table of actors as plain data: where an actor is, how often Ray restarted it, and how it ended.

A row is structured: the kind of death, the exit type of its worker, preemption, a context for running out
of memory. An exception that a caller gets has the same in a sentence; where there is a row, the row counts.
Reading the table needs Ray's private client.
"""

from __future__ import annotations

import time
from dataclasses import replace
from enum import IntEnum
from typing import Any, NamedTuple

from rayvisor._backends.ray.errors import (
    environment_failure,
    init_failure,
    out_of_memory,
    without_advice,
    worker_death,
)
from rayvisor.faults import Cause, Termination

__all__ = ["ActorState", "Row", "actor_end", "look_up", "read_row", "worker_end"]

_INTENDED = frozenset({"RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED"})
_NIL = b"\xff"
"""The byte that Ray's nil ids consist of."""
_PREEMPTED = "AUTOSCALER_DRAIN_PREEMPTED"


class ActorState(IntEnum):
    """The state of an actor according to Ray, in the order in which an incarnation goes through them."""

    RESTARTING = 0
    """Also an actor that is not created yet."""
    ALIVE = 1
    DEAD = 2


class Row(NamedTuple):
    """The row of an actor in Ray's table."""

    state: ActorState
    restarts: int
    """Number of restarts by Ray."""
    max_restarts: int
    """Number of restarts that Ray may make; -1: unlimited."""
    worker: bytes
    """Id of its worker; empty while it has none."""
    last_worker: bytes
    """Id of the worker of its incarnation before, where the row has it."""
    pid: int
    node: str
    """Address of its node."""
    data: Any
    """The record itself."""

    @property
    def restartable(self) -> bool:
        """Whether Ray would restart it once more."""
        return self.max_restarts < 0 or self.restarts < self.max_restarts

    @property
    def lost_its_node(self) -> bool:
        """Whether it ended with its node: then Ray has no record of how its worker ended."""
        cause = self.data.death_cause
        context = cause.actor_died_error_context
        told: bool = cause.WhichOneof("context") == "actor_died_error_context"
        return told and bool(context.Reason.Name(context.reason) == "NODE_DIED")


def read_row(data: Any) -> Row:
    """Convert a record of the table."""
    names = {3: ActorState.RESTARTING, 2: ActorState.ALIVE, 4: ActorState.DEAD}
    return Row(
        state=names.get(data.state, ActorState.RESTARTING),
        restarts=data.num_restarts,
        max_restarts=data.max_restarts,
        worker=data.address.worker_id.strip(_NIL) and data.address.worker_id,
        last_worker=data.previous_incarnations[-1].worker_id if data.previous_incarnations else b"",
        pid=data.pid,
        node=data.address.ip_address,
        data=data,
    )


def look_up(actor_id: Any) -> Row | None:
    """Return an actor's row; None if Ray knows no such actor. This blocks."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    found = state.get_actor_info(actor_id)
    table: Any = gcs_pb2.ActorTableData  # type: ignore[attr-defined]  # made by protobuf's compiler
    return None if found is None else read_row(table.FromString(found))


def worker_end(worker: bytes, node: str) -> Termination | None:
    """Return how a worker ended; None if Ray does not record it within a second. This blocks."""
    from ray import WorkerID
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    table: Any = gcs_pb2.WorkerTableData  # type: ignore[attr-defined]  # as above
    kinds: Any = common_pb2.WorkerExitType  # type: ignore[attr-defined]  # as above
    for pause in (0.02, 0.1, 0.3, 0.5, 0.0):
        accessor = state._connect_and_get_accessor()  # noqa: SLF001 - there is no public one
        found = accessor.get_worker_info(WorkerID(worker))
        row = None if found is None else table.FromString(found)
        if row is not None and not row.is_alive:
            kind = kinds.Name(row.exit_type)
            return worker_death(
                Cause("ActorDiedError", "its worker process has died"), kind, row.exit_detail, node=node
            )
        time.sleep(pause)
    return None


def actor_end(row: Row, worker: Termination | None) -> Termination:
    """Return how an actor ended whose row is DEAD.

    Parameters
    ----------
    row
        The row.
    worker
        How its worker ended, where that is known.
    """
    cause = row.data.death_cause
    kind = cause.WhichOneof("context")
    text = ""
    if kind is not None:
        context = getattr(cause, kind)
        text = getattr(context, "error_message", "")
        if kind == "creation_task_failure_context":
            return init_failure(context.formatted_exception_string, node=row.node)
        if kind == "oom_context":
            return out_of_memory(text, node=row.node)
        if kind == "runtime_env_failed_context":
            return environment_failure(text, node=row.node)
        if kind == "actor_unschedulable_context":
            return Termination(causes=(Cause("ActorUnschedulableError", text),), node=row.node)
    return _died(row, text, worker)


def _died(row: Row, text: str, worker: Termination | None) -> Termination:
    context = row.data.death_cause.actor_died_error_context
    reason = context.Reason.Name(context.reason)
    preempted = bool(row.data.preempted)
    outer = Cause("ActorDiedError", without_advice(text).partition(" Worker exit type:")[0])
    if reason == "NODE_DIED":
        node = context.node_death_info
        why = node.Reason.Name(node.reason)
        said = node.reason_message or outer.message
        return Termination(
            causes=(outer, Cause("NODE_DIED", f"it was preempted: {said}" if why == _PREEMPTED else said)),
            node_died=True,
            preempted=preempted or why == _PREEMPTED,
            node=row.node,
            traceback=text,
        )
    if reason in {"WORKER_DIED", "UNSPECIFIED"}:
        if worker is None:
            _, _, tail = text.partition("Worker exit type: ")
            kind, _, detail = tail.partition(" Worker exit detail: ")
            worker = worker_death(outer, kind, detail, node=row.node)
        causes = (outer, *worker.causes[1:])
        return replace(worker, causes=causes, preempted=preempted, node=row.node, traceback=text)
    return Termination(
        causes=(outer, Cause(reason, outer.message)),
        intended=reason in _INTENDED,
        preempted=preempted,
        node=row.node,
        traceback=text,
    )
