"""The requests of the demo, and the faults that it can inject. Pure."""

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
"""Tokens of each request, so many that the fault comes in the middle of all of them."""


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault that the demo can inject, with the fault record that is expected."""

    victim: str
    """The last part of the process's name, or ``host``."""
    signal: Signals
    describe: str
    root: str
    """Pattern of the root cause (type and message)."""
    fault_class: FaultClass = FaultClass.FATAL

    def found(self, fault: Fault) -> bool:
        """Return whether a fault has the expected class and root cause."""
        return fault.fault_class is self.fault_class and re.match(self.root, str(fault.root)) is not None

    @property
    def root_pattern(self) -> str:
        """The root cause in readable form, with ``N`` for unknown numbers."""
        return re.sub(r"\\[dS][+*]", "N", self.root).replace("\\", "").partition("|")[0]


def _killed(name: str) -> str:
    return rf"ProcessKilled: {name} \(pid \d+\) was ended by SIGKILL"


def _stopped(name: str) -> str:
    return rf"ProcessStopped: {name} \(pid \d+\) is stopped \(SIGSTOP\)"


FAULTS: Mapping[str, Injection | None] = {
    "kill-core": Injection(
        "EngineCore", Signals.SIGKILL, "SIGKILL to the engine core", _killed("EngineCore")
    ),
    "kill-worker": Injection("Worker", Signals.SIGKILL, "SIGKILL to the engine's worker", _killed("Worker")),
    "kill-host": Injection(
        "host",
        Signals.SIGKILL,
        "SIGKILL to the actor that hosts the engine",
        # The node's agent nearly always reports first; Ray's own report is less specific.
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
"""The faults that the demo can inject; ``none`` is a run without a fault."""


def hangs(fault: str) -> bool:
    """Return whether the fault makes the engine or its host hang instead of exit."""
    found = FAULTS[fault]
    return found is not None and found.signal is not Signals.SIGKILL


def injection(fault: str) -> Injection | None:
    """Return the injection of a fault."""
    return FAULTS[fault]


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """One request of the demo."""

    number: int
    kind: str
    prompt: str
    params: Mapping[str, Any]


def make_requests(count: int, seed: int) -> list[DemoRequest]:
    """Make requests of several kinds in turn, which covers both ways to continue after a fault.

    Greedy requests continue from the delivered tokens. The others are generated again and compared, and the
    delivered tokens are skipped.
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
