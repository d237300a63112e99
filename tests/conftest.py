"""What every area of the tests shares: one Ray, the demo's models, and which tests run in one process.

``make test`` runs the tests in several processes (pytest-xdist). What takes seconds to start is started in
each process that needs it, so the tests that need it are a group: they run in one process, in order.
"""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from rayvisor._backends.ray.cluster import start_or_join
from rayvisor.demo.model import ensure_model, ensure_random_model

# Ray has its workers run at low priority: beside other tests they would wait seconds for their turn.
os.environ.setdefault("RAY_worker_niceness", "0")
# Every Ray looks every 5 s whether it has to grow: for nothing, and a sixteenth of the machine.
os.environ.setdefault("AUTOSCALER_UPDATE_INTERVAL_S", "3600")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs this in the background has it ignored, and so would every program under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Without it an engine takes nearly all memory for its cache, or refuses to start beside another one.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

_TESTS = Path(__file__).parent

# The same examples each time, however slow the machine: what is found by chance is looked for by hand.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def _group(item: pytest.Item) -> str | None:
    """The group that a test runs in; None is for tests that may run anywhere."""
    needed = _fixtures(item)
    kind = getattr(item, "callspec", None)
    if "keeper" in needed and kind is not None:
        return f"engine contract, {kind.params['kind']}"
    if item.get_closest_marker("engine") is not None or "trained_model" in needed:
        return "engines under a supervisor, and training their model"
    if "cluster_address" in needed:
        # A process that has a Ray keeps it for every such group that comes its way: small ones end together.
        return f"Ray, {item.path.parent.name}/{item.path.stem}"
    return None


def _is_real(item: pytest.Item, group: str | None) -> bool:
    """Whether a test runs real Ray or real vLLM."""
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
            # Real Ray and real vLLM on a shared machine may pause for longer than any timeout allows. Such
            # a test is run once more; the summary counts these reruns and shows why the first run failed.
            item.add_marker(pytest.mark.flaky(reruns=1))
        if group is not None and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def structlog_unconfigured() -> Iterator[None]:
    """Undo what a test has configured: ``capture_logs`` leaves structlog configured behind."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """Address of the one Ray of this process, which all tests share that need no Ray of their own."""
    import ray

    local = {"address": "local", "num_cpus": 4, "resources": {"slot": 4}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its future defaults
        context = start_or_join({**local, "include_dashboard": False, "log_to_driver": False})
        gc.collect()  # of a start that was tried again processes are left that nobody has waited for
    yield str(context.address_info["address"])
    ray.shutdown()


@pytest.fixture(scope="session")
def trained_model() -> Path:
    """A Llama that knows the demo's passage by heart; sure of every token, it hides sampling mistakes."""
    return ensure_model()


@pytest.fixture(scope="session")
def random_model() -> Path:
    """A Llama of the same shape with random weights: it shows them."""
    return ensure_random_model()
