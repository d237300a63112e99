"""A real vLLM engine in a host on Ray: what its process tree does when the host gets SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rayvisor._engine.link import ActorOptions
from rayvisor._engine.wire import Died, EngineInfo
from rayvisor._process.tree import alive, marked
from rayvisor._ray.hosts import RayPlace

pytestmark = [pytest.mark.ray, pytest.mark.engine]

MODEL = """
import runpy, sys
from pathlib import Path
tools = runpy.run_path(sys.argv[1])
print(tools["make_tiny_model"](Path(sys.argv[2])))
"""


def tiny_model() -> str:
    """Have the model made by another process: this one must never import torch."""
    maker = Path(__file__).parents[1] / "engine" / "tiny_model.py"
    folder = Path(tempfile.gettempdir()) / f"rayvisor-tests-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MODEL, str(maker), str(folder)],
        check=True,
        capture_output=True,
        timeout=240,
    )
    return made.stdout.decode().splitlines()[-1]


async def test_engine_core_and_workers_are_gone_within_seconds_of_their_hosts_sigkill(
    place: RayPlace, eventually: Callable[..., Awaitable[None]]
) -> None:
    options = ActorOptions(env_vars={"VLLM_CPU_KVCACHE_SPACE": "1"})
    host = await place.create(child="llm/1", epoch=1, engine="vllm", options=options)
    arguments = {
        "model": tiny_model(),
        "enforce_eager": True,
        "max_model_len": 256,
        "dtype": "float32",
        "max_num_seqs": 8,
    }
    info = await host.ensure_started(1, arguments, 240)
    assert not isinstance(info, Died), info
    assert isinstance(info, EngineInfo)
    pid = (await host.ready(90)).process.pid
    assert len(info.processes) >= 2
    os.kill(info.processes[-1].pid, signal.SIGSTOP)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    end = await host.ended()
    assert end.root.type == "SYSTEM_ERROR"
    await eventually(lambda: not any(alive(process) for process in info.processes))
    assert time.monotonic() - began < 20  # on a machine that is busy with other things
    assert (await host.end(30)).verified
    assert marked(host.key) == ()
