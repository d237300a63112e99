"""A tree with two children: a pool of engines, and a custom actor that is restarted when it dies.

The engines are simulated, so the example runs in seconds. For real engines, omit ``engine="sim"`` and pass
``engine_args={"model": ...}``.
"""

from __future__ import annotations

import os

import anyio

import rayvisor as rv


class Router:
    """Chooses the sampling parameters of a prompt."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def params(self, prompt: str) -> dict[str, float]:
        """Return the sampling parameters of a prompt."""
        return {"temperature": 0, "max_tokens": min(self.longest, 8 * len(prompt.split()))}

    def crash(self) -> None:
        """Exit the actor's process, as a bug in native code would."""
        os._exit(1)


SPEC = rv.SupervisorSpec(
    strategy=rv.Strategy.ONE_FOR_ONE,
    intensity=3,
    period=900.0,
    children=[
        rv.engine_pool("llm", engine="sim", engine_args={}, size=2, num_cpus=0),
        rv.actor("router", Router, args=[64], restart=rv.Restart.TRANSIENT, num_cpus=0),
    ],
)


async def main() -> None:
    """Answer a prompt, lose the router, answer another one."""
    async with rv.Supervisor(SPEC) as sup:
        for prompt in ("What is a supervisor for", "And what is a supervisor of supervisors for"):
            # The call is idempotent, so it may be repeated with the router's next incarnation.
            params = await sup["router"].options(idempotent=True, timeout=30.0).call("params", prompt)
            completion = await sup["llm"].generate(prompt, params).result()
            print(f"{prompt}: {completion.usage.completion_tokens} tokens")
            sup["router"].handle().crash.remote()


if __name__ == "__main__":
    anyio.run(main)
