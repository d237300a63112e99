"""Ray tasks: submitting them, watching their end and their attempts, and cancelling them."""

from __future__ import annotations

import atexit
import inspect
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rayvisor._backends.ray.errors import is_ray_error
from rayvisor._core.protocol.causes import plain_causes, text_cause
from rayvisor._core.tasks.lifecycle import Outcome, OutcomeKind
from rayvisor._log import get_logger
from rayvisor.errors import ClusterUnavailableError, SpecError
from rayvisor.specs import TaskAttempt, TaskPolicy
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = [
    "AttemptReader",
    "Readiness",
    "cancel",
    "cancelled",
    "fetch",
    "get",
    "outcome_of",
    "prepare",
    "require_ray",
    "retries_of",
    "submit",
    "unwrap",
]

log = get_logger("rayvisor.tasks")

_EAGER_BYTES = 1 << 20
"""Values up to this size are brought to the driver as soon as they are ready."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SYSTEM: Mapping[str, str] = {
    "WorkerCrashedError": "WORKER_DIED",
    "NodeDiedError": "NODE_DIED",
    "LocalRayletDiedError": "LOCAL_RAYLET_DIED",
    "OutOfMemoryError": "OUT_OF_MEMORY",
    "ObjectLostError": "OBJECT_LOST",
    "RaySystemError": "RAY_SYSTEM_ERROR",
}


def prepare(function: Any, policy: TaskPolicy) -> tuple[Any, str]:
    """Return the caller's function as one of Ray's remote functions, with ``max_calls``, and its name.

    Raises
    ------
    SpecError
        It is not a function.
    """
    import ray

    kind = type(function).__name__
    remote: Any = function
    if kind != "RemoteFunction":
        if not inspect.isfunction(function):
            raise SpecError(
                "function",
                function,
                "must be a function, or one made by ray.remote; options go into the policy",
            )
        remote = ray.remote(function) if policy.max_calls is None else None
    if policy.max_calls is not None:
        plain = function._function if kind == "RemoteFunction" else function  # noqa: SLF001 - there is no public way
        options = dict(function._default_options) if kind == "RemoteFunction" else {}  # noqa: SLF001 - as above
        # Ray accepts it only when the function is made remote.
        remote = ray.remote(**{**options, "max_calls": policy.max_calls})(plain)
    return remote, str(getattr(remote, "_function_name", "")).rpartition(".")[2] or "task"


def retries_of(remote: Any, policy: TaskPolicy) -> int:
    """Return the number of retries of a task, in Ray's order of precedence."""
    from ray._private.ray_constants import DEFAULT_TASK_MAX_RETRIES

    own = remote._default_options.get("max_retries")  # noqa: SLF001 - there is no public way
    for value in (policy.max_retries, own, os.environ.get("RAY_TASK_MAX_RETRIES")):
        if value is not None:
            return int(value)
    return int(DEFAULT_TASK_MAX_RETRIES)


def require_ray() -> None:
    """Check that Ray is still connected: otherwise a call in one of our threads would start another Ray.

    Raises
    ------
    ClusterUnavailableError
        Ray was shut down.
    """
    import ray

    if not ray.is_initialized():
        raise ClusterUnavailableError("this process's", "Ray was shut down")


def submit(remote: Any, policy: TaskPolicy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Submit the task once.

    Raises
    ------
    SpecError
        It returns more than one ref.
    """
    import ray

    options = dict(policy.options)
    if policy.backoff is not None:
        options |= {"max_retries": 0, "retry_exceptions": False}  # we make the attempts
    else:
        if policy.max_retries is not None:
            options["max_retries"] = policy.max_retries
        kinds = policy.retry_exceptions
        options["retry_exceptions"] = kinds if isinstance(kinds, bool) else list(kinds)
    ref = remote.options(**options).remote(*args, **kwargs)
    if not isinstance(ref, ray.ObjectRef):
        raise SpecError("function", remote, "must return one value: not several, and no stream of them")
    return ref


def cancel(ref: Any, *, force: bool) -> None:
    """Interrupt the task, or kill its worker. A task that has ended is not changed."""
    import ray

    require_ray()
    ray.cancel(ref, force=force)


def cancelled(name: str) -> BaseException:
    """Return Ray's error for a task that was cancelled before Ray had reported anything."""
    from ray.exceptions import TaskCancelledError

    return TaskCancelledError(error_message=f"{name} was cancelled")


def get(ref: Any, timeout: float | None) -> Any:
    """Return the value of a ref, blocking this thread."""
    import ray

    return ray.get(ref, timeout=timeout)


async def fetch(ref: Any) -> tuple[bool, Any]:
    """Return (True, the value) of a ready ref; (False, None) if the value is large and on another node."""
    from ray.experimental import get_local_object_locations

    where = get_local_object_locations([ref]).get(ref, {})
    if where.get("node_ids") and (where.get("object_size") or 0) > _EAGER_BYTES:
        return False, None
    return True, await ref


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome that an exception stands for, without Ray's wrapping."""
    causes = plain_causes(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    if not is_ray_error(error):
        return Outcome(OutcomeKind.REFUSED, error, type(error).__name__, causes)
    if "TaskCancelledError" in names:
        return Outcome(OutcomeKind.CANCELLED, error, "TASK_CANCELLED", causes)
    if "RayTaskError" in names:
        return Outcome(OutcomeKind.ERROR, unwrap(error), "TASK_EXECUTION_EXCEPTION", causes)
    for name, error_type in _SYSTEM.items():
        if name in names:
            return Outcome(OutcomeKind.SYSTEM, error, error_type, causes)
    return Outcome(OutcomeKind.REFUSED, error, type(error).__name__, causes)


def unwrap(error: BaseException) -> BaseException:
    """Return the exception of the task's function, with its remote traceback in a note; others unchanged."""
    inner = error
    while is_ray_error(inner):
        cause = getattr(inner, "cause", None)
        if not isinstance(cause, BaseException) or cause is inner:
            break
        inner = cause
    if inner is error:
        return error
    text = _COLOUR.sub("", str(error)).strip()  # Ray puts the traceback there
    inner.add_note(f"raised in a Ray task:\n{text}")
    if inner.__cause__ is None:
        inner.__cause__ = error
    return inner


class Readiness:
    """Reports when refs are ready, without bringing their values here. One thread serves all of them.

    It polls, since Ray ends a process that is inside one of its calls during its shutdown, or hangs in that
    call. At exit it stops before Ray does.

    Parameters
    ----------
    timeouts
        Interval between two polls, and for the stop at exit.
    """

    def __init__(self, *, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray) -> None:
        self._timeouts = timeouts
        self._exiting = threading.Event()
        self._registered = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: dict[Any, Callable[[BaseException | None], None]] = {}
        self._thread: threading.Thread | None = None

    def call_when_ready(self, ref: Any, ready: Callable[[BaseException | None], None]) -> None:
        """Call ``ready`` once the ref is ready, with None, or with the error that prevents an answer."""
        with self._changed:
            self._waiting[ref] = ready
            if not self._registered:
                self._registered = True
                atexit.register(self._stop)  # registered after Ray's own, so it runs before it
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rayvisor-tasks-ready", daemon=True)
                self._thread.start()

    def forget(self, ref: Any) -> None:
        """Stop waiting for a ref."""
        with self._changed:
            self._waiting.pop(ref, None)

    def fail(self, error: BaseException) -> None:
        """Report this error for every ref: Ray is gone, and may block the thread forever."""
        with self._changed:
            waiting, self._waiting = self._waiting, {}
            self._thread = None
        for call in waiting.values():
            call(error)

    def _stop(self) -> None:
        self._exiting.set()
        thread = self._thread
        if thread is not None:
            thread.join(self._timeouts.task_stop)

    def _work(self) -> None:
        import ray

        while True:
            with self._changed:
                refs = list(self._waiting)
                if self._thread is not threading.current_thread():
                    return
                if not refs:
                    self._thread = None
                    return
            if self._exiting.wait(self._timeouts.task_poll):
                return
            failure: BaseException | None = None
            try:
                require_ray()
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            except Exception as error:  # noqa: BLE001 - it is reported to the waiters
                ready, failure = refs, error
            for ref in ready:
                with self._changed:
                    call = self._waiting.pop(ref, None)
                if call is not None:
                    call(failure)


class AttemptReader:
    """Reads the attempts of tasks from the cluster's state.

    It reads the store behind Ray's state API directly, since the API itself needs a dashboard. Where that
    fails, it uses the API.

    Parameters
    ----------
    timeouts
        For one read.
    """

    def __init__(self, *, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray) -> None:
        self._timeouts = timeouts
        self._lock = threading.Lock()
        self._stub: tuple[str, Any, Any] | None = None

    def read(self, ref: Any) -> list[TaskAttempt]:
        """Return the attempts; empty without an answer. This blocks for milliseconds, at most seconds."""
        try:
            require_ray()
            return self._from_store(ref.task_id().binary())
        except Exception as error:  # noqa: BLE001 - a private interface may fail in any way; the API is next
            first = f"{type(error).__name__}: {error}"[:200]
        try:
            require_ray()
            return self._from_state_api(ref.task_id().hex())
        except Exception as error:  # noqa: BLE001 - the history then consists of the errors raised
            log.debug(
                "task.attempts.unknown", store=first, state_api=f"{type(error).__name__}: {error}"[:200]
            )
            return []

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._stub is not None:
                self._stub[1].close()
                self._stub = None

    def _from_store(self, task_id: bytes) -> list[TaskAttempt]:
        import ray
        from ray._private.gcs_utils import create_gcs_channel
        from ray.core.generated import common_pb2, gcs_service_pb2, gcs_service_pb2_grpc

        # These modules are generated by protobuf's compiler: mypy sees no names in them.
        common: Any = common_pb2
        service: Any = gcs_service_pb2
        grpc_service: Any = gcs_service_pb2_grpc
        address = ray.get_runtime_context().gcs_address
        with self._lock:
            if self._stub is None or self._stub[0] != address:
                channel: Any = create_gcs_channel(address)
                self._stub = (address, channel, grpc_service.TaskInfoGcsServiceStub(channel))
            stub = self._stub[2]
        request = service.GetTaskEventsRequest(limit=1000)
        wanted = request.filters.task_filters.add()
        wanted.task_id = task_id
        wanted.predicate = service.FilterPredicate.EQUAL
        reply = stub.GetTaskEvents(request, timeout=self._timeouts.task_read)
        rows = []
        for event in reply.events_by_task:
            updates = event.state_updates
            times = {common.TaskStatus.Name(key): at / 1e9 for key, at in updates.state_ts_ns.items()}
            failed = "FAILED" in times
            message = updates.error_info.error_message
            rows.append(
                TaskAttempt(
                    number=event.attempt_number,
                    state=_latest(times),
                    error_type=common.ErrorType.Name(updates.error_info.error_type) if failed else "",
                    causes=(text_cause(_COLOUR.sub("", message)),) if failed and message else (),
                    started=times.get("RUNNING", times.get("SUBMITTED_TO_WORKER")),
                    ended=times.get("FINISHED", times.get("FAILED")),
                    worker_pid=updates.worker_pid,
                    node_id=updates.node_id.hex(),
                    source="ray",
                )
            )
        return rows

    def _from_state_api(self, task_id: str) -> list[TaskAttempt]:
        import ray
        from ray.util.state import list_tasks

        rows: Any = list_tasks(
            address=ray.get_runtime_context().gcs_address,
            filters=[("task_id", "=", task_id)],
            detail=True,
            timeout=int(self._timeouts.task_read),
            raise_on_missing_output=False,
        )
        return [
            TaskAttempt(
                number=row.attempt_number,
                state=row.state,
                error_type=row.error_type or "",
                causes=(text_cause(_COLOUR.sub("", row.error_message)),) if row.error_message else (),
                started=row.start_time_ms / 1000 if row.start_time_ms else None,
                ended=row.end_time_ms / 1000 if row.end_time_ms else None,
                worker_pid=row.worker_pid or 0,
                node_id=row.node_id or "",
                source="ray",
            )
            for row in rows
        ]


def _latest(times: Mapping[str, float]) -> str:
    for state in ("FINISHED", "FAILED", "RUNNING", "SUBMITTED_TO_WORKER", "PENDING_NODE_ASSIGNMENT"):
        if state in times:
            return state
    return max(times, key=lambda state: times[state], default="PENDING")
