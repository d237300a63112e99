"""Two ranks that live and recover together, with and without instructions from an orchestrator.

    python examples/recovery.py                 # simulated engines: seconds
    python examples/recovery.py --engine vllm   # two real vLLM engines with fault tolerance, on the CPU

The orchestrator uses two addresses only, those of the published events and of the control socket, so it could
be another process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import anyio
import zmq.asyncio

import rayvisor as rv
from rayvisor.testing import fail_next_step, rehearse

REAL = "--engine vllm" in " ".join(sys.argv)
TIMEOUT = 8.0 if REAL else 3.0
RANKS, SERVING = 2, "ALIVE.SERVING"
PROMPTS = [f"Once upon a time, {number}" for number in range(4)]
LINE = "{:30} {:12} {:20} {:16} {:>10}"
ACTS = {"exception, instructed to retry": "", "exception, no instruction": "", "worker killed": "Worker"}
PARAMS = {"max_tokens": 120, "temperature": 0.0, "ignore_eos": True}


class Orchestrator:
    """Reads the published events and answers a fault with an instruction, unless it is silent."""

    def __init__(self, events: str, control: str) -> None:
        self.control, self.silent, self.seen = control, False, list[dict[str, Any]]()
        self.socket = zmq.asyncio.Context.instance().socket(zmq.SUB)
        self.socket.connect(events)
        self.socket.subscribe("rayvisor.llm/")

    async def run(self) -> None:
        """Read events forever."""
        with self.socket:
            while True:
                _, body = await self.socket.recv_multipart()
                self.seen.append(json.loads(body))
                fault = self.seen[-1].get("fault", {})
                if fault.get("fault_class") == "RECOVERABLE" and not self.silent:
                    await self.instruct({"instruction": "retry", "params": {"path": "llm"}})

    async def instruct(self, instruction: dict[str, Any]) -> None:
        """Send an instruction to the control socket."""
        body = json.dumps(instruction)
        head = (
            f"POST /fault_tolerance/apply HTTP/1.1\r\nHost: rayvisor\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with await anyio.connect_unix(self.control) as stream:
            await stream.send((head + body).encode())
            await stream.receive()

    def first(self, record: str, **fields: str) -> dict[str, Any]:
        """Return the first matching record of this act."""
        wanted = {"record": record, **fields}
        return next(each for each in self.seen if all(each.get(key) == wanted[key] for key in wanted))


async def act(sup: rv.Supervisor, orchestrator: Orchestrator, name: str, kill: str = "") -> list[str]:
    """Inject a fault in the middle of four streams; print the published response and return the texts."""
    orchestrator.silent, orchestrator.seen = "no instruction" in name, []
    before, tokens = sup.status("llm/1").incarnation, sup["llm"].stats().tokens
    texts: dict[str, str] = {}

    async def read(prompt: str) -> None:
        texts[prompt] = (await sup["llm"].generate(prompt, PARAMS).result()).text

    async with anyio.create_task_group() as streams:
        for prompt in PROMPTS:
            streams.start_soon(read, prompt)
        while name and sup["llm"].stats().tokens < tokens + 40:  # noqa: ASYNC110 - a pool has no event for it
            await anyio.sleep(0.002)
        if kill:
            worker = next(process for _, process in sup.processes("llm/1") if kill in process.name)
            os.kill(worker.pid, signal.SIGKILL)
        elif name:
            await fail_next_step(sup, "llm/1")
    if not name:
        return [texts[prompt] for prompt in PROMPTS]
    served: dict[str, float] = {}
    while len(served) < RANKS:
        await anyio.sleep(0.05)  # the last published events may still be in transit
        served = {each["child"]: each["at"] for each in orchestrator.seen if each.get("after") == SERVING}
    fault = orchestrator.first("FaultSeen")["fault"]
    healthy = orchestrator.first("StateChanged", child="llm/2")["after"]
    how = "restart of both" if sup.status("llm/1").incarnation > before else "in place"
    seconds = max(served.values()) - fault["at"]
    print(LINE.format(name, fault["fault_class"], healthy, how, f"{seconds:.2f} s"), flush=True)
    print(f"    {fault['root']}", flush=True)
    return [texts[prompt] for prompt in PROMPTS]


async def main() -> None:
    """Run three acts; compare the texts with those without a fault."""
    engine: dict[str, Any] = {"engine": "sim", "engine_args": {}}
    if REAL:
        from rayvisor.demo.model import ensure_model

        model = {
            "model": str(ensure_model()),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
        }
        engine = {"engine_args": {**model, "kv_cache_memory_bytes": 1 << 28}, "num_cpus": 0.5}
    engine |= {"recovery_timeout": TIMEOUT, "backoff": rv.Backoff(initial=0.0, maximum=0.0)}
    ranks = rv.engine_group("llm", ranks=RANKS, instructed_by="operator", **engine)
    spec = rv.SupervisorSpec(children=[rehearse(ranks)])
    async with (
        rv.Supervisor(spec, local=not REAL, control=True, publish=True) as sup,
        anyio.create_task_group() as tasks,
    ):
        orchestrator = Orchestrator(str(sup.publish_address), str(sup.control))
        tasks.start_soon(orchestrator.run)
        expected = await act(sup, orchestrator, "")
        print(LINE.format("", "fault", "healthy rank", "recovery", "both serve"))
        for name, kill in ACTS.items():
            if await act(sup, orchestrator, name, kill) != expected:
                raise SystemExit("a text differs from the run without a fault")
        print("all texts are the same as without a fault")
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
