"""A program without asyncio: the supervisor runs in a thread, and its methods are blocking calls.

The engine is simulated and runs without Ray. For a real engine, omit ``engine="sim"`` and ``local=True`` and
pass ``engine_args={"model": ...}``.
"""

from __future__ import annotations

import rayvisor as rv

SPEC = rv.SupervisorSpec(children=[rv.engine_pool("llm", engine="sim", engine_args={})])


def main() -> None:
    """Stream one request and send a batch."""
    with rv.run_in_thread(SPEC, local=True) as sup:
        for chunk in sup["llm"].generate("Once upon a time", {"temperature": 0, "max_tokens": 16}):
            print(chunk.text, end="", flush=True)
        print()
        for completion in sup["llm"].generate_many(["One", "Two", "Three"], {"temperature": 0}):
            print(completion.usage)


if __name__ == "__main__":
    main()
