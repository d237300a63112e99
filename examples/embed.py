"""Streams from a supervised engine (the README's program)."""

from __future__ import annotations

import anyio

import rayvisor as rv
from rayvisor.demo.model import ensure_model


async def main() -> None:
    """Stream one request."""
    engine = {
        "model": str(ensure_model()),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 1 << 28,
    }
    pool = rv.engine_pool("llm", engine_args=engine, num_cpus=1)
    async with rv.Supervisor(rv.SupervisorSpec(intensity=3, period=900.0, children=[pool])) as sup:
        prompt = "Alice was beginning to get very tired of"
        async for chunk in sup["llm"].generate(prompt, {"temperature": 0, "max_tokens": 300}):
            print(chunk.text, end="", flush=True)


if __name__ == "__main__":
    anyio.run(main)
