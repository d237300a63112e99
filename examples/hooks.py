"""Hooks: functions that are called whenever a child enters or leaves a state.

A hook runs inside the transition, so it must be quick, and it cannot influence the transition. The engine is
simulated and runs without Ray.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import anyio

import rayvisor as rv

SPEC = rv.SupervisorSpec(children=[rv.engine_pool("llm", engine="sim", engine_args={})])


def log(change: Any) -> None:
    """Print the transition of a child."""
    child = change.model
    print(
        f"{child.child} incarnation {child.incarnation}: {change.before} -> {change.after} ({change.event})"
    )


async def main() -> None:
    """Kill an engine and observe its restart."""
    supervisor = rv.Supervisor(SPEC, local=True)
    for place in ("ALIVE", "RESTARTING", "DEAD"):
        supervisor.on_enter(place, log)
    async with supervisor as sup:
        victim = next(process for role, process in sup.processes("llm/1") if role == "engine")
        os.kill(victim.pid, signal.SIGKILL)
        completion = await sup["llm"].generate("still there?", {"max_tokens": 4}).result()
        print(f"{completion.usage.completion_tokens} tokens after the kill")


if __name__ == "__main__":
    anyio.run(main)
