"""The systems that rayvisor is compared with when processes die: plain Ray, and vLLM's plain AsyncLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import anyio
import anyio.to_thread

__all__ = ["actor_death_seen", "engine_death_seen"]

_RESTARTS: Mapping[str, Mapping[str, int]] = {
    "no restart": {"max_restarts": 0, "max_task_retries": 0},
    "restart": {"max_restarts": -1, "max_task_retries": 0},
    "restart and retry": {"max_restarts": -1, "max_task_retries": -1},
}


@cache
def _actor_class() -> Any:
    import ray

    class Waiting:
        async def pid(self) -> int:
            return os.getpid()

        async def wait(self, before: int) -> int:
            """Return immediately, except in the process with this pid, where it never returns."""
            if os.getpid() == before:
                await asyncio.Event().wait()
            return os.getpid()

    remote: Any = ray.remote
    return remote(num_cpus=0)(Waiting)


async def actor_death_seen(how: str) -> float:
    """Kill an actor during a call; return the milliseconds until the call ends, by an answer or an error.

    Parameters
    ----------
    how
        Ray's options: ``"no restart"``, ``"restart"`` or ``"restart and retry"``.
    """
    import ray

    make = partial(_actor_class().options(**_RESTARTS[how]).remote)
    actor = await anyio.to_thread.run_sync(make)
    pid = await actor.pid.remote()
    pending = asyncio.ensure_future(_settled(actor.wait.remote(pid)))
    await actor.pid.remote()  # by now the pending call has started
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    ended = await pending
    await anyio.to_thread.run_sync(ray.kill, actor)
    return (ended - began) * 1000.0


async def _settled(ref: Any) -> float:
    from ray.exceptions import RayActorError

    try:
        await ref
    except RayActorError:
        return time.monotonic()
    return time.monotonic()


async def engine_death_seen(arguments: Mapping[str, Any], runs: int) -> list[float]:
    """Kill the EngineCore of a plain ``AsyncLLM``; return the milliseconds until its stream raises."""
    command = [sys.executable, __file__, json.dumps(dict(arguments))]
    once = partial(subprocess.run, command, check=True, capture_output=True, text=True, timeout=600)
    values = []
    for _ in range(runs):
        done = await anyio.to_thread.run_sync(once)
        values.append(float(done.stdout.splitlines()[-1]))
    return values


async def _engine_death(arguments: Mapping[str, Any]) -> float:
    import psutil
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    below = psutil.Process().children(recursive=True)
    core = next(each for each in below if "EngineCore" in " ".join(each.cmdline()))
    params = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
    began = 0.0
    try:
        async for _ in llm.generate("alpha", params, "one"):
            if not began:
                began = time.monotonic()
                core.kill()
    except EngineDeadError:
        return (time.monotonic() - began) * 1000.0
    finally:
        llm.shutdown()
        for each in below:  # vLLM sometimes leaves a worker behind
            if each.is_running():
                each.kill()
    raise RuntimeError("the stream ended without an error although the engine was killed")


if __name__ == "__main__":
    print(asyncio.run(_engine_death(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # do not wait for remaining threads of vLLM
