"""An OpenAI-compatible server as a child: it is killed, and comes back at the same place.

The server is simulated and runs without Ray; for the real ``vllm serve``, leave ``engine="sim"`` out and give
the name or the folder of a model.
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
    """Ask as any client of OpenAI's interface does."""
    body = {"model": "sim", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(  # noqa: S310 - a server of our own
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
        return str(json.load(answer)["choices"][0]["text"])


async def main() -> None:
    """Ask, kill, ask again."""
    async with rv.Supervisor(SPEC, local=True) as sup:
        url = await sup["web"].serving()
        print("before:", repr(await anyio.to_thread.run_sync(ask, url, "Once upon a time")))
        core = next(process for _, process in sup.processes("web") if "EngineCore" in process.name)
        os.kill(core.pid, signal.SIGKILL)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=60.0)
        print("at the same place:", await sup["web"].serving() == url)
        print("after:", repr(await anyio.to_thread.run_sync(ask, url, "Once upon a time")))
        fault = sup.status("web").fault
        print("because of:", fault.root if fault is not None else "nothing")


if __name__ == "__main__":
    anyio.run(main)
