"""What the demo asks of its engine, and which fault it injects. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from rayvisor.demo.text import prompts

__all__ = ["FAULTS", "DemoRequest", "Victim", "make_requests", "victim"]

TOKENS = 360
"""Tokens of each request: enough to be in the middle of them when the fault comes."""


@dataclass(frozen=True, slots=True)
class Victim:
    """Which process a fault ends."""

    name: str
    """Part of the process's name."""
    describe: str


FAULTS: Mapping[str, Victim | None] = {
    "kill-core": Victim("EngineCore", "SIGKILL to the engine core"),
    "kill-worker": Victim("Worker", "SIGKILL to the engine's worker"),
    "kill-host": Victim("host", "SIGKILL to the actor that hosts the engine"),
    "none": None,
}
"""The faults the demo can inject; ``none`` is the run without one."""


def victim(fault: str) -> Victim | None:
    """Return what ``fault`` ends."""
    return FAULTS[fault]


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """One request of the demo."""

    number: int
    kind: str
    prompt: str
    params: Mapping[str, Any]


def make_requests(count: int, seed: int) -> list[DemoRequest]:
    """Make requests of four kinds in turn, so that both ways of going on are seen.

    Greedy ones go on from the delivered tokens; the others are generated again, compared, and what was
    delivered is skipped.
    """
    random = Random(seed)
    kinds: list[tuple[str, Mapping[str, Any]]] = [
        ("greedy", {"temperature": 0.0}),
        ("sampled", {"temperature": 0.7, "seed": random.getrandbits(31)}),
        ("penalty", {"temperature": 0.0, "presence_penalty": 0.4}),
        ("greedy", {"temperature": 0.0, "logprobs": 1}),
        ("unseeded", {"temperature": 1.0}),
    ]
    requests = []
    for number, prompt in enumerate(prompts(count, seed=seed)):
        kind, params = kinds[number % len(kinds)]
        requests.append(DemoRequest(number, kind, prompt, {"max_tokens": TOKENS, **params}))
    return requests
