from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from rayvisor._backends.process.engine_tree import TAG

# Functions that are registered first run last.
_ENDS = """
import atexit, gc, multiprocessing, sys
from rayvisor._backends.vllm.plugin import register

def end():
    atexit.register(lambda: print(gc.get_freeze_count(), flush=True))
    register()

if __name__ == "__main__":
    if sys.argv[1] == "host":
        end()
    else:
        child = multiprocessing.get_context("spawn").Process(target=end)
        child.start()
        child.join()
"""


def _frozen_at_its_end(folder: Path, role: str, **environment: str) -> int:
    script = folder / "ends.py"
    script.write_text(_ENDS)
    inherited = {name: value for name, value in os.environ.items() if name != TAG}
    ended = subprocess.run(
        [sys.executable, str(script), role],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(ended.stdout)


def test_a_process_of_an_engine_ends_without_a_last_collection(tmp_path: Path) -> None:
    assert _frozen_at_its_end(tmp_path, "engine", **{TAG: "1-2"}) > 0


def test_the_host_ends_as_ever(tmp_path: Path) -> None:
    assert _frozen_at_its_end(tmp_path, "host", **{TAG: "1-2"}) == 0


def test_a_process_of_somebody_elses_vllm_is_left_alone(tmp_path: Path) -> None:
    assert _frozen_at_its_end(tmp_path, "engine") == 0


def test_vllm_finds_it_by_its_entry_point() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="rayvisor")
    assert found.load().__module__ == "rayvisor._backends.vllm.plugin"
