"""The wire protocol between the driver and an engine host: plain data, no object of Ray or vLLM.

The items are named tuples, because a batch of them pickles small and fast; a host sends one batch per tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rayvisor._core.protocol.causes import Causes
from rayvisor._public import shown_as
from rayvisor.faults import Evidence, Termination

__all__ = [
    "Chunk",
    "Condition",
    "EngineInfo",
    "GenerateCommand",
    "HostDescription",
    "HostItem",
    "LogprobEntry",
    "Lost",
    "Phase",
    "ProcessId",
    "ProcessObservation",
    "Prompt",
    "Refused",
    "Suspicion",
    "Terminated",
    "Worked",
]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A prompt: text, token ids, or chat messages (mappings with ``role`` and ``content``)."""


class ProcessId(NamedTuple):
    """The identity of a process, safe against reuse of its pid and against steps of the wall clock."""

    pid: int
    start_ticks: int
    """Its start, in the kernel's clock ticks since boot."""
    boot_id: str
    """The kernel's id of that boot; empty where the kernel has none."""
    name: str
    """Its title or command. It may change, and is not part of the identity."""


class ProcessObservation(NamedTuple):
    """The state of one process at one moment."""

    process: ProcessId
    state: str
    """As in ``/proc``: ``R`` runs, ``S`` sleeps, ``T`` is stopped, ``t`` by a debugger; empty: gone."""
    load: float
    """Share of one core that it used, or waited for, since the observation before."""

    @property
    def stopped(self) -> bool:
        """Whether it is stopped by a signal or a debugger."""
        return self.state in {"T", "t"}

    @property
    def who(self) -> str:
        """Its name and pid, for messages."""
        return f"{self.process.name.rpartition('::')[2] or 'a process'} (pid {self.process.pid})"


class EngineInfo(NamedTuple):
    """The facts that a started engine reports about itself."""

    engine: str
    """``"vllm"``, ``"sim"`` or ``"server"``."""
    version: str
    max_model_len: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]
    """Ids that end a text, from the model and its generation config."""
    processes: tuple[ProcessId, ...]
    """The engine's process tree below the host, the host not included."""
    startup_seconds: float
    instructions: tuple[str, ...] = ()
    """Recovery instructions that it accepts after a fault of its own; empty without fault tolerance."""
    recovery_timeout: float = 0.0
    """Seconds that it waits for an instruction before it exits by itself."""
    url: str = ""
    """Base URL of its HTTP server; empty if it has none."""


class GenerateCommand(NamedTuple):
    """One sample for an engine to generate. ``n`` is always 1: the pool splits samples."""

    request: str
    attempt: int
    """Fence: every answer carries it back, and answers of an older attempt are dropped."""
    prompt: Prompt
    params: Mapping[str, Any]
    """Fields of vLLM's ``SamplingParams``, as plain data."""
    delivered: tuple[int, ...] = ()
    """If not empty, continue after these tokens (greedy prefix mode); ``prompt`` is then token ids."""
    characters: int = 0
    """How many characters of the text of ``delivered`` have been delivered."""


class LogprobEntry(NamedTuple):
    token_id: int
    logprob: float
    rank: int | None
    text: str | None


class Chunk(NamedTuple):
    """Tokens of one request, in order. The last one has ``finish_reason``."""

    request: str
    attempt: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[tuple[LogprobEntry, ...], ...] | None = None
    """For each token the requested candidates; the sampled token first."""
    finish_reason: str | None = None
    """``"stop"`` or ``"length"``; an abort never comes as a chunk, see ``Lost``."""
    stop_reason: int | str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    """With the first chunk of an attempt only."""
    prompt_logprobs: tuple[tuple[LogprobEntry, ...] | None, ...] | None = None


class Refused(NamedTuple):
    """The engine refused this request (a CLIENT fault); the engine itself is fine."""

    request: str
    attempt: int
    causes: Causes


class Lost(NamedTuple):
    """The engine ended a request without being asked to (vLLM's ``abort``)."""

    request: str
    attempt: int
    reason: str


class Phase(NamedTuple):
    """Progress of an engine's start."""

    incarnation: int
    phase: str
    """``importing``, ``launching``, ``loading``, ``compiling``, ``ready``."""
    detail: str
    elapsed: float
    """Seconds since the start began."""


class Terminated(NamedTuple):
    """The engine ended by itself."""

    incarnation: int
    termination: Termination


class Condition(NamedTuple):
    """The health that an engine with fault tolerance reports; repeated while it is unhealthy."""

    incarnation: int
    status: str
    """``"healthy"`` or ``"unhealthy"``; an engine that reports itself dead comes as ``Terminated``."""
    evidence: Evidence = Evidence()


class Suspicion(NamedTuple):
    """The engine may hang; without causes, a previous suspicion is withdrawn."""

    incarnation: int
    causes: Causes


class Worked(NamedTuple):
    """The engine has done useful work that did not come through its host; sent once."""

    incarnation: int


class HostDescription(NamedTuple):
    """The facts that a host process reports about itself."""

    process: ProcessId
    node: str
    """Address of the machine it runs on."""
    stack_file: str = ""
    """File to which a host that does not answer writes its stack; empty if there is none."""


HostItem = Chunk | Refused | Lost | Phase | Terminated | Suspicion | Condition | Worked


shown_as("rayvisor", EngineInfo, LogprobEntry, ProcessId)
