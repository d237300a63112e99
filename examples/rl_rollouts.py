"""Reinforcement learning: rollouts with the weights of this step, also when an engine dies in the middle.

Two engines and a spare; the weights move between steps. With ``--engine vllm`` the engines are real (and
reload their checkpoint, where a training step would have written it).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import rayvisor as rv

REAL = "--engine vllm" in " ".join(sys.argv)
PROMPTS = [f"Question {number}: " for number in range(6)]
STEPS, LOSE_AN_ENGINE_IN = 3, 2
PARAMS = {"max_tokens": 48, "temperature": 1.0, "ignore_eos": True}


class Weights:
    """What the engines are to generate with."""

    version = 1

    async def sync(self, gate: rv.Gate) -> int:
        """Bring an engine that has come up, or was declared stale, up to date: the gate of the pool."""
        version = self.version
        if REAL:
            await gate.call("collective_rpc", "reload_weights")
            await gate.call("reset_prefix_cache")
            await gate.call("update_weight_version", str(version))
        else:
            await gate.call("update_weights", version)
        return version  # every chunk carries it from here on


def rollouts(sup: Any, *, kill: bool) -> list[tuple[int, ...]]:
    """Generate one sample for each prompt; says which weights each comes from."""
    streams = [sup["llm"].generate(prompt, PARAMS) for prompt in PROMPTS]
    samples: list[tuple[int, ...]] = []
    for stream in streams:
        for chunk in stream:
            if kill:
                kill = False
                process = next(each for role, each in sup.processes(chunk.child) if role == "engine")
                print(f"killing {process.name} of {chunk.child} in the middle of the step")
                os.kill(process.pid, signal.SIGKILL)
        samples.append(stream.completion.weight_versions)
    return samples


def main() -> None:
    """Train for three steps; lose an engine in the second one."""
    weights = Weights()
    if REAL:
        from rayvisor.demo.model import ensure_model

        engine: dict[str, Any] = {
            "engine_args": {
                "model": str(ensure_model()),
                "dtype": "float32",
                "enforce_eager": True,
                "max_model_len": 256,
                "kv_cache_memory_bytes": 1 << 28,
            },
            "num_cpus": 0.5,
        }
    else:
        engine = {"engine": "sim", "engine_args": {"tokens_per_second": 200}}
    pool = rv.engine_pool("llm", size=2, standby=1, gate=weights.sync, on_weights_changed="restart", **engine)
    with rv.run_in_thread(rv.SupervisorSpec(children=[pool]), local=not REAL) as sup:
        for step in range(1, STEPS + 1):
            samples = rollouts(sup, kill=step == LOSE_AN_ENGINE_IN)
            if set(samples) != {(step,)}:
                raise SystemExit(f"step {step} has samples of other weights: {samples}")
            print(f"step {step}: {len(samples)} samples, all from weights {step}")
            weights.version += 1  # the training step
            sup.stale("llm")  # nothing is generated before each engine has passed its gate again


if __name__ == "__main__":
    main()
