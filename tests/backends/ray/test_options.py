from __future__ import annotations

import pytest

from rayvisor._backends.ray import options as subject
from rayvisor._backends.ray.options import engine_gpus, explain_pending, ray_options, runtime_env
from rayvisor.specs import ActorOptions, NodePin, PlacementOptions


def test_nothing_is_asked_for_that_was_not_asked_for() -> None:
    assert ray_options(ActorOptions(), name="x") == {"name": "x", "max_restarts": 0, "max_task_retries": 0}


def test_everything_asked_for_is_passed_through() -> None:
    options = ActorOptions(
        num_cpus=2,
        num_gpus=0,
        resources={"slot": 1},
        memory=1 << 30,
        runtime_env={"pip": ["x"], "env_vars": {"A": "1", "B": "1"}},
        env_vars={"B": "2"},
        scheduling="SPREAD",
    )
    found = ray_options(options, name="x")
    assert found["num_cpus"] == 2
    assert found["num_gpus"] == 0
    assert found["resources"] == {"slot": 1}
    assert found["memory"] == 1 << 30
    assert found["runtime_env"] == {"pip": ["x"], "env_vars": {"A": "1", "B": "2"}}
    assert found["scheduling_strategy"] == "SPREAD"


def test_a_pin_names_the_node() -> None:
    pin = ray_options(ActorOptions(scheduling=NodePin("ab" * 28, soft=True)), name="x")["scheduling_strategy"]
    assert pin.node_id == "ab" * 28
    assert pin.soft is True


def test_nodes_are_avoided_unless_a_scheduling_was_asked_for() -> None:
    strategy = ray_options(ActorOptions(), name="x", avoid=["ab" * 28])["scheduling_strategy"]
    assert not strategy.hard
    assert [(each.key, each.operator.values) for each in strategy.soft] == [("ray.io/node-id", ["ab" * 28])]
    own = ray_options(ActorOptions(scheduling="SPREAD"), name="x", avoid=["ab" * 28])
    assert own["scheduling_strategy"] == "SPREAD"


def test_the_users_environment_is_not_changed_by_merging() -> None:
    given = {"env_vars": {"A": "1"}}
    runtime_env(ActorOptions(runtime_env=given, env_vars={"A": "2"}))
    assert given == {"env_vars": {"A": "1"}}


@pytest.mark.parametrize(
    ("arguments", "device", "expected"),
    [
        ({}, "cuda", 1),
        ({"tensor_parallel_size": 4}, "cuda", 4),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, "cuda", 6),
        ({"tensor_parallel_size": 4}, "cpu", 0),
        ({"tensor_parallel_size": 4, "device": "cpu"}, None, 0),
        ({"tensor_parallel_size": 2, "device": "cuda"}, None, 2),
    ],
)
def test_an_engines_gpus_follow_from_its_parallel_sizes(
    arguments: dict[str, object], device: str | None, expected: int
) -> None:
    assert engine_gpus(arguments, device) == expected


@pytest.mark.parametrize(("is_cpu_build", "expected"), [(True, 0), (False, 2)])
def test_a_vllm_built_for_the_cpu_needs_no_gpu(
    monkeypatch: pytest.MonkeyPatch, expected: int, *, is_cpu_build: bool
) -> None:
    monkeypatch.setattr(subject, "_is_cpu_build", lambda: is_cpu_build)
    assert engine_gpus({"tensor_parallel_size": 2}) == expected


def test_what_fits_on_some_node_is_not_explained() -> None:
    nodes = [{"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert explain_pending(ActorOptions(num_cpus=4, num_gpus=1), nodes) == ""
    assert "no single node" in explain_pending(
        ActorOptions(num_cpus=1, num_gpus=1, resources={"CPU": 4}),
        [
            {"CPU": 4.0},
            {"GPU": 1.0},
        ],
    )


def test_a_bundle_that_fits_nowhere_is_named() -> None:
    options = ActorOptions(placement=PlacementOptions(({"CPU": 1}, {"GPU": 8})))
    assert (
        explain_pending(options, [{"CPU": 2.0, "GPU": 4.0}]) == "no node has GPU=8: the largest has 4 in all"
    )
