"""vLLM's own fault tolerance on the CPU, in ``vllm serve``; its processes load it as a plugin of vLLM.

As in ``rig.py``, the switch is set after the arguments have been validated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["install", "register"]

ROOT = Path(__file__).resolve().parent.parent.parent


def install(folder: Path) -> dict[str, str]:
    """Install this module as a plugin below ``folder``. Return the environment in which vLLM finds it."""
    described = folder / "rayvisor_serving_rig-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: rayvisor-serving-rig\nVersion: 1\n")
    (described / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\nrayvisor_serving_rig = {__name__}:register\n"
    )
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), str(ROOT), known)))}


def register() -> None:
    """Make vLLM create its configuration with fault tolerance."""
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_engine_config

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.enable_fault_tolerance = False
        config = original(self, *args, **kwargs)
        parallel = config.parallel_config
        parallel.enable_fault_tolerance = True
        parallel.all2all_backend = "nixl_ep"
        parallel.fault_tolerance_config.engine_recovery_timeout_sec = 60
        return config

    EngineArgs.create_engine_config = create_engine_config
