"""The parts of the vLLM engine that need no vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvisor._backends.host.engine import EngineError, EngineGoneError
from rayvisor._backends.vllm.vllm_engine import VllmEngine


async def test_an_engine_that_does_not_run_says_so_to_a_call(tmp_path: Path) -> None:
    engine = VllmEngine(1, {"model": "any"}, str(tmp_path / "engine.log"))
    with pytest.raises(EngineGoneError, match="the engine does not run"):
        await engine.ask("reset_prefix_cache", (), {})
    await engine.stop(0.0)
    with pytest.raises(EngineGoneError, match="the engine does not run"):
        await engine.ask("reset_prefix_cache", (), {})


async def test_a_method_that_may_not_be_called_is_refused_with_those_that_may(tmp_path: Path) -> None:
    engine = VllmEngine(1, {"model": "any"}, str(tmp_path / "engine.log"))
    with pytest.raises(EngineError, match=r"has no method 'shutdown'; it has add_lora, .*wake_up"):
        await engine.ask("shutdown", (), {})
    await engine.stop(0.0)
