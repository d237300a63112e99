"""Engines for the contract tests: one of each kind, shared, and restarted after a test has stopped it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rayvisor._backends.host.engine import Engine, SharesResources, load_engine
from tests.backends.driving import REAL, Served
from tests.backends.tiny_model import make_tiny_model

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Tests that end the engine run last, so that all others share one start.
    items.sort(key=lambda item: item.path.name == "test_life.py" and item.path.parent == HERE / "host")


@pytest.fixture(scope="session")
def tiny_model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.config.cache.mkdir("rayvisor-tiny-model")
    return make_tiny_model(folder)


@pytest.fixture(params=["sim", REAL], scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def arguments(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of a small engine of this kind."""
    if kind == "sim":
        return {"max_model_len": 256, "max_num_seqs": 8}
    return {
        "model": str(request.getfixturevalue("tiny_model")),
        "enforce_eager": True,
        "max_model_len": 256,
        "dtype": "float32",
        "max_num_seqs": 8,
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def keeper(
    kind: str, arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """The engine of this kind; tests use it through ``served``."""
    folder = tmp_path_factory.mktemp(f"engine-{kind}")
    started = 0
    shared: list[Callable[[], None]] = []

    def make() -> Engine:
        nonlocal started
        started += 1
        engine = load_engine(kind, started, arguments, str(folder / f"{started}.log"))
        if not shared and isinstance(engine, SharesResources):
            shared.append(engine.acquire_shared())  # as a host does
        return engine

    served = Served(kind, make)
    yield served
    await served.end()
    for release in shared:
        release()
    gc.collect()


@pytest_asyncio.fixture(loop_scope="session")
async def served(keeper: Served) -> Served:
    """A running engine."""
    await keeper.begin()
    return keeper


@pytest.fixture
def make_engine(kind: str, keeper: Served, tmp_path: Path) -> Callable[[dict[str, Any]], Engine]:
    """Make an engine with the given arguments, without starting it."""

    def make(arguments: dict[str, Any]) -> Engine:
        assert keeper.engine is None or kind == "sim", "one real engine at a time"
        return load_engine(kind, 1, arguments, str(tmp_path / "engine.log"))

    return make
