from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

from rayvisor._engine.processes import TAG

_ENDS = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # registered first, so it runs last
from rayvisor._vllm.plugin import register
register()
"""


def _frozen_at_its_end(**environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if name != TAG}
    ended = subprocess.run(
        [sys.executable, "-c", _ENDS],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(ended.stdout)


def test_a_process_of_an_engine_ends_without_a_last_collection() -> None:
    assert _frozen_at_its_end(**{TAG: "1-2"}) > 0


def test_a_process_of_somebody_elses_vllm_is_left_alone() -> None:
    assert _frozen_at_its_end() == 0


def test_vllm_finds_it_by_its_entry_point() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="rayvisor")
    assert found.load().__module__ == "rayvisor._vllm.plugin"
