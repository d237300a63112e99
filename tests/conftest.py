"""Shared by all tests: one Ray, the demo's models, and the groups of tests that run in one process.

``make test`` runs the tests in several processes (pytest-xdist). A Ray or an engine takes seconds to start
and is started in each process that needs it. The tests that need the same one are therefore a group, which
runs in one process, in order.
"""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rayvisor._backends.ray.cluster import start_or_join
from rayvisor.demo.model import ensure_model, ensure_random_model

# Ray runs its workers at low priority; beside other tests they would wait seconds to be scheduled.
os.environ.setdefault("RAY_worker_niceness", "0")
# Every Ray checks every 5 s whether the cluster has to grow, which here wastes a sixteenth of the machine.
os.environ.setdefault("AUTOSCALER_UPDATE_INTERVAL_S", "3600")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a shell SIGINT is ignored, and every program under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Without this limit an engine takes nearly all memory for its cache, or fails to start beside another one.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

_TESTS = Path(__file__).parent

# The same examples in every run, on slow machines too; random searches are run by hand.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def _group(item: pytest.Item) -> str | None:
    """Return the group that a test runs in; None if it may run in any process."""
    needed = _fixtures(item)
    kind = getattr(item, "callspec", None)
    if "keeper" in needed and kind is not None:
        return f"engine contract, {kind.params['kind']}"
    if item.get_closest_marker("engine") is not None or "trained_model" in needed:
        return "engines under a supervisor, and training their model"
    if "cluster_address" in needed:
        # A process keeps its Ray for every such group it runs, so small groups balance the processes.
        return f"Ray, {item.path.parent.name}/{item.path.stem}"
    return None


def _is_real(item: pytest.Item, group: str | None) -> bool:
    """Return whether a test runs real Ray or real vLLM."""
    marked = any(item.get_closest_marker(name) is not None for name in ("engine", "ray"))
    return marked or (group is not None and group != "engine contract, sim")


def _fixtures(item: pytest.Item) -> frozenset[str]:
    return frozenset(getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "trained_model" in _fixtures(item):
            item.add_marker(pytest.mark.timeout(1200), append=False)  # the first one trains it
        group = _group(item)
        if _is_real(item, group):
            # On a shared machine real Ray and real vLLM may pause for longer than any timeout allows. Such a
            # test is run once more; the summary counts these reruns and shows why the first run failed.
            item.add_marker(pytest.mark.flaky(reruns=1))
        if group is not None and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """Start the Ray that the tests of this process share unless they need their own; yield its address."""
    import ray

    local = {"address": "local", "num_cpus": 4, "resources": {"slot": 4}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's warnings about future defaults
        context = start_or_join({**local, "include_dashboard": False, "log_to_driver": False})
        gc.collect()  # a retried start leaves processes that were never waited for
    yield str(context.address_info["address"])
    ray.shutdown()


@pytest.fixture(scope="session")
def trained_model() -> Path:
    """Return a Llama that recites the demo's passage; it is sure of every token and hides sampling errors."""
    return ensure_model()


@pytest.fixture(scope="session")
def random_model() -> Path:
    """Return a Llama of the same shape with random weights, which reveals sampling errors."""
    return ensure_random_model()
