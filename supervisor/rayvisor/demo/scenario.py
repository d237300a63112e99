"""What the demo asks of its engine, and which fault it injects. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from signal import Signals
from typing import Any

from rayvisor.demo.text import prompts
from rayvisor.faults import Fault, FaultClass

__all__ = ["FAULTS", "DemoRequest", "Injection", "hangs", "injection", "make_requests"]

TOKENS = 360
"""Tokens of each request: enough to be in the middle of them when the fault comes."""


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault that the demo can inject, and what has to be found."""

    victim: str
    """The last part of the process's name, or ``host``."""
    signal: Signals
    describe: str
    root: str
    """A pattern of the root cause: type and message."""
    fault_class: FaultClass = FaultClass.FATAL

    def found(self, fault: Fault) -> bool:
        """Whether a fault is this one: its class and its root cause."""
        return fault.fault_class is self.fault_class and re.match(self.root, str(fault.root)) is not None

    @property
    def root_pattern(self) -> str:
        """The root cause as people read it, with ``N`` for what is not known before."""
        return re.sub(r"\\[dS][+*]", "N", self.root).replace("\\", "").partition("|")[0]


def _killed(who: str) -> str:
    return rf"ProcessKilled: {who} \(pid \d+\) was ended by SIGKILL"


def _stopped(who: str) -> str:
    return rf"ProcessStopped: {who} \(pid \d+\) is stopped \(SIGSTOP\)"


FAULTS: Mapping[str, Injection | None] = {
    "kill-core": Injection(
        "EngineCore", Signals.SIGKILL, "SIGKILL to the engine core", _killed("EngineCore")
    ),
    "kill-worker": Injection("Worker", Signals.SIGKILL, "SIGKILL to the engine's worker", _killed("Worker")),
    "kill-host": Injection(
        "host",
        Signals.SIGKILL,
        "SIGKILL to the actor that hosts the engine",
        # Its node says so first, nearly always; Ray's own word is less clear.
        _killed("the host") + "|SYSTEM_ERROR: Worker unexpectedly exits",
    ),
    "stop-core": Injection(
        "EngineCore", Signals.SIGSTOP, "SIGSTOP to the engine core, which then hangs", _stopped("EngineCore")
    ),
    "stop-worker": Injection(
        "Worker", Signals.SIGSTOP, "SIGSTOP to the engine's worker, which then hangs", _stopped("Worker")
    ),
    "stop-host": Injection(
        "host", Signals.SIGSTOP, "SIGSTOP to the actor that hosts the engine", _stopped("the host")
    ),
    "endless-step": Injection(
        "Worker",
        Signals.SIGUSR1,
        "a model step in the worker that never returns",
        r"EngineStalled: no token for \S+ s with \d+ requests queued",
    ),
    "none": None,
}
"""The faults the demo can inject; ``none`` is the run without one."""


def hangs(fault: str) -> bool:
    """Whether the engine or its host hangs of it, instead of ending."""
    found = FAULTS[fault]
    return found is not None and found.signal is not Signals.SIGKILL


def injection(fault: str) -> Injection | None:
    """Return how ``fault`` is injected."""
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
