"""vLLM's own fault tolerance on the CPU, in ``vllm serve``: loaded into its processes as a plugin of vLLM's.

As in ``rig.py``, the switch is set after the arguments have been checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["install", "register"]

ROOT = Path(__file__).resolve().parent.parent.parent


def install(folder: Path) -> dict[str, str]:
    """Make an installed plugin of this module, below ``folder``; the environment that has it found."""
    described = folder / "rayvisor_serving_rig-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: rayvisor-serving-rig\nVersion: 1\n")
    (described / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\nrayvisor_serving_rig = {__name__}:register\n"
    )
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), str(ROOT), known)))}


def register() -> None:
    """Have vLLM make its configuration with fault tolerance."""
    from vllm.engine.arg_utils import EngineArgs

    made = EngineArgs.create_engine_config

    def make(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.enable_fault_tolerance = False
        config = made(self, *args, **kwargs)
        parallel = config.parallel_config
        parallel.enable_fault_tolerance = True
        parallel.all2all_backend = "nixl_ep"
        parallel.fault_tolerance_config.engine_recovery_timeout_sec = 60
        return config

    EngineArgs.create_engine_config = make
