"""Errors: each builds its own message, root cause first, and survives a pickle."""

from __future__ import annotations

import pickle

import pytest

import rayvisor as rv
from rayvisor import errors, pool

CAUSE = rv.Cause("ValueError", "no such model")
FAULT = rv.Fault(
    child="llm/1", incarnation=2, at=1.0, fault_class=rv.FaultClass.FATAL, source="engine", causes=(CAUSE,)
)
MADE: tuple[rv.RayvisorError, ...] = (
    rv.SpecError("intensity", -1, "must be more", term="invalid_intensity"),
    rv.SpecFileError("tree.toml", "intensity", -1, "must be more"),
    rv.StartFailedError("llm/1", FAULT),
    rv.StrategyError("Quorum", "llm/1", "raised", "Traceback"),
    rv.ClusterUnavailableError("local", "busy"),
    rv.WorkerPackageError(None, "1.0", ("/src",), "no module"),
    rv.RayCallTimeout("ray.nodes", 5.0, blocked=["ray.kill"], hint="no node has GPU=1"),
    rv.ControlSocketError("/run/x", "in use"),
    rv.UnguardedMainError("driver.py"),
    rv.PublishError("tcp://*:1", "in use"),
    rv.TaskTimeoutError("load", 60.0, forced=True, gone=False),
    rv.SupervisorGaveUpError("llm", "intensity exceeded", FAULT),
    rv.UnknownChildError("x", ("a", "b")),
    rv.AlreadyStartedError("a"),
    rv.AlreadyPresentError("a"),
    rv.ChildRunningError("a"),
    rv.ChildRestartingError("a"),
    rv.TemplateError("a"),
    rv.ChildStartError("a", FAULT),
    rv.ChildUnavailableError("a", "lost", cause=CAUSE),
    rv.EngineCallError("llm/1", "fly", (CAUSE,), "Traceback"),
    rv.ChildKindError("llm/1", "engine", "actor", "use sup.pool('llm')"),
    rv.SupervisorBusyError("a", 10),
    rv.SupervisorStoppedError("a"),
    pool.InvalidRequestError("prompt", "", "must not be empty"),
    pool.QueueFullError(10, 10, 1),
    pool.NoEngineError("llm-1", FAULT),
    pool.DeadlineExceededError("llm-1", timeout=1.0, delivered=3, where="in flight", fault=FAULT),
    pool.AttemptsExhaustedError("llm-1", attempts=5, delivered=3, reason="gone", fault=FAULT),
    pool.PoisonRequestError("llm-1", strikes=3, fault=FAULT),
    pool.UnmovableRequestError("llm-1", delivered=3, reason="embeddings", fault=FAULT),
    pool.WeightsChangedError("llm-1", before=1, after=2, delivered=3),
    pool.ReplayDivergedError(
        "llm-1", divergence=pool.Divergence(0, 1, 5, 6, "token"), reason="sampled", fault=FAULT
    ),
    pool.GenerationClosedError("llm-1"),
    pool.GenerationInUseError("llm-1", "is read twice"),
)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_pickle_with_all_its_data(error: rv.RayvisorError) -> None:
    error.add_note("on the way")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_a_message_begins_with_the_root_cause_if_a_fault_is_behind_it(error: rv.RayvisorError) -> None:
    causes = [getattr(error, "fault", None), getattr(error, "cause", None), *getattr(error, "causes", ())]
    if any(cause is not None for cause in causes):
        assert str(error).startswith("ValueError: no such model")


def test_every_public_error_is_tried_here() -> None:
    abstract = {"RayvisorError", "CallError", "RequestError"}
    named = {*errors.__all__, *(name for name in pool.__all__ if name.endswith("Error"))}
    assert {type(error).__name__ for error in MADE} == named - abstract
