from __future__ import annotations

import pickle
from typing import Any

import ray.exceptions

from rayvisor._backends.ray.errors import (
    RayCallTimeout,
    WorkerPackageError,
    end_of,
    is_ray_error,
)
from rayvisor._core.protocol.causes import plain_causes
from rayvisor.faults import Cause

exceptions: Any = ray.exceptions  # half of them have no types

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Host
\tactor_id: 4cb3b53fb1c2bfde3ff0661e01000000
\tpid: 4711
\tip: 10.0.0.7
The actor is dead because its worker process has died.\
 Worker exit type: {kind} Worker exit detail: {detail}"""


def died(kind: str, detail: str, *, preempted: bool = False) -> Any:
    error = exceptions.ActorDiedError()
    error.error_msg = DIED.format(kind=kind, detail=detail)
    error._preempted = preempted
    return error


def task_error(cause: Exception) -> Any:
    text = f"Traceback (most recent call last):\n  File 'x.py', line 1\n{type(cause).__name__}: {cause}"
    return exceptions.RayTaskError("method", text, cause, proctitle="x", pid=1, ip="10.0.0.7")


def test_a_death_keeps_rays_sentence_and_exit_type_without_its_advice() -> None:
    end = end_of(died("SYSTEM_ERROR", "Worker unexpectedly exits. Some common causes include: (1) ..."))
    assert end.causes == (
        Cause("ActorDiedError", "The actor is dead because its worker process has died."),
        Cause("SYSTEM_ERROR", "Worker unexpectedly exits."),
    )
    assert end.node == "10.0.0.7"
    assert not any((end.intended, end.unavailable, end.init_failed, end.out_of_memory, end.preempted))


def test_an_exit_code_and_a_signal_are_read_where_ray_says_them() -> None:
    assert end_of(died("USER_ERROR", "Worker exits with exit code 3.")).exit_code == 3
    assert end_of(died("SYSTEM_ERROR", "killed by signal 11")).signal == 11


def test_leaving_on_purpose_is_intended() -> None:
    assert end_of(died("INTENDED_USER_EXIT", "exit_actor() was called")).intended
    error = exceptions.ActorDiedError()
    error.error_msg = "The actor is dead because it was killed by `ray.kill`."
    assert end_of(error).intended


def test_preemption_and_running_out_of_memory_are_told() -> None:
    assert end_of(died("NODE_DIED", "gone", preempted=True)).preempted
    assert end_of(died("NODE_OUT_OF_MEMORY", "memory monitor")).out_of_memory
    end = end_of(exceptions.OutOfMemoryError("the worker was killed by the memory monitor"))
    assert end.out_of_memory
    assert end.signal == 9


LOW = (
    "1 worker(s) were killed due to the node running low on memory. 4.55GB used / 23.54GB limit\n"
    "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n"
    "Refer to the documentation on how to address the out of memory issue."
)
BROKEN = (
    "Failed to set up runtime environment.\nCould not create the actor.\n"
    "[Node 192.0.2.2] Traceback (most recent call last):\n"
    '  File "protocol.py", line 269, in open_file\n    return open(uri, mode)\n'
    "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/place.zip'\n"
)


def test_what_the_memory_monitor_saw_is_said_without_its_table_and_advice() -> None:
    end = end_of(exceptions.OutOfMemoryError(LOW))
    assert end.causes[-1] == Cause("OutOfMemoryError", LOW.splitlines()[0])
    assert end.traceback == LOW


def test_an_environment_that_cannot_be_made_says_first_why_not() -> None:
    end = end_of(exceptions.RuntimeEnvSetupError(BROKEN))
    assert [cause.type for cause in end.causes] == ["RuntimeEnvSetupError", "FileNotFoundError"]
    assert end.causes[-1].message == "[Errno 2] No such file or directory: '/no/such/place.zip'"
    (told,) = end_of(exceptions.RuntimeEnvSetupError("no such package")).causes
    assert told.type == "RuntimeEnvSetupError"


def test_unavailable_is_no_verdict() -> None:
    end = end_of(exceptions.ActorUnavailableError("gRPC 14", None))
    assert end.unavailable
    assert not end.intended


def test_a_failing_init_tells_the_exception_behind_it() -> None:
    error = exceptions.ActorDiedError(task_error(ValueError("model='nowhere': no such folder")))
    end = end_of(error)
    assert end.init_failed
    assert end.root == Cause("ValueError", "model='nowhere': no such folder")


def test_a_lost_node_is_told() -> None:
    assert end_of(exceptions.NodeDiedError("its node has died")).node_died


def test_rays_wrapping_around_a_tasks_error_is_taken_off() -> None:
    inner = ValueError("bad")
    inner.__cause__ = KeyError("name")
    assert plain_causes(task_error(inner).as_instanceof_cause()) == (
        Cause("ValueError", "bad"),
        Cause("KeyError", "'name'"),
    )


def test_a_task_error_that_came_as_text_only_is_read_off_its_traceback() -> None:
    error = task_error(ValueError("x"))
    error.cause = None
    error.traceback_str = (
        "Traceback (most recent call last):\n  File 'y'\nvllm.v1.EngineDeadError: gone\nfor good"
    )
    assert plain_causes(error) == (Cause("EngineDeadError", "gone\nfor good"),)


def test_only_what_ray_raises_itself_is_a_ray_error() -> None:
    assert is_ray_error(exceptions.ActorUnavailableError("x", None))
    assert not is_ray_error(ValueError("x"))


def test_our_own_errors_travel() -> None:
    timeout = RayCallTimeout("ray.nodes", 5, blocked=["ray.kill"], hint="no node has GPU=1")
    package = WorkerPackageError(None, "0.1.0", ("/src/rayvisor",), "no module")
    for error in (timeout, package):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)


def test_an_actor_whose_placement_group_was_removed_did_not_mean_to_end() -> None:
    detail = "Destroying worker since its placement group was removed. Placement group id: 4f00"
    end = end_of(died("INTENDED_SYSTEM_EXIT", detail))
    assert not end.intended
    assert end.root == Cause("PlacementGroupRemoved", detail)
