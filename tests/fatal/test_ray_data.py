"""The example for Ray Data, with a child process in the place of vLLM's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"


@pytest.mark.ray
def test_every_row_comes_out_once_though_engines_are_killed_and_without_the_guard_they_do_not(
    cluster_address: str,
) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "RAY_ADDRESS": cluster_address},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {match[1]: match.groups()[1:] for match in re.finditer(_ROWS, done.stdout)}
    unique, in_all, texts, processes, crashes = rows["Guarded"]
    assert (unique, in_all, texts, crashes) == ("240", "240", "the same text", "2"), done.stdout
    assert int(processes) > 2
    assert int(rows["Plain"][0]) < 240  # each batch that a broken actor was given is lost
    assert (rows["Plain"][2], rows["Plain"][4]) == ("the same text", "2")
    for expected in _EXITS:
        assert re.search(expected, done.stdout), done.stdout


_ROWS = r"(\w+): (\d+) of 240 rows, (\d+) in all, (.+)\n    from (\d+) processes; crashes so far: (\d+)"
_EXITS = (
    r"os\._exit\(1\) +r= 0 t= 0  caller: ActorDiedError +ran 1x  later call: ActorDiedError",
    r"os\._exit\(1\) +r=-1 t= 0  caller: ActorUnavailableError +ran 1x  later call: an answer",
    r"os\._exit\(1\) +r=-1 t=-1  caller: an answer +ran 2x  later call: an answer",
    r"exit_actor\(\) +r=-1 t=-1  caller: ActorDiedError +ran 1x  later call: ActorDiedError",
    r"raise +r=-1 t=-1  caller: RayTaskError\(ValueError\) +ran 1x  later call: an answer",
)
