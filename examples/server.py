"""An OpenAI-compatible server as a child that is killed and returns at the same URL.

The server is simulated and runs without Ray. For the real ``vllm serve``, omit ``engine="sim"`` and pass the
name or the folder of a model.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.request

import anyio

import rayvisor as rv
from rayvisor.testing import wait_for_state

SPEC = rv.SupervisorSpec(intensity=3, period=900.0, children=[rv.server("web", model="sim", engine="sim")])


def ask(url: str, prompt: str) -> str:
    """Send a request as any OpenAI client does."""
    body = {"model": "sim", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(  # noqa: S310 - the URL of our own server
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - the URL of our own server
        return str(json.load(answer)["choices"][0]["text"])


async def main() -> None:
    """Send a request, kill the engine, and send another request."""
    async with rv.Supervisor(SPEC, local=True) as sup:
        url = await sup["web"].serving()
        print("before:", repr(await anyio.to_thread.run_sync(ask, url, "Once upon a time")))
        core = next(process for _, process in sup.processes("web") if "EngineCore" in process.name)
        os.kill(core.pid, signal.SIGKILL)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=60.0)
        print("same URL:", await sup["web"].serving() == url)
        print("after:", repr(await anyio.to_thread.run_sync(ask, url, "Once upon a time")))
        fault = sup.status("web").fault
        print("cause:", fault.root if fault is not None else "nothing")


if __name__ == "__main__":
    anyio.run(main)
