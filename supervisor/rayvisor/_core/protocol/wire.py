"""What crosses between the driver and an engine host: plain data, nothing of Ray's or vLLM's.

Named tuples, since a batch of them pickles small and fast: the host sends one batch a tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Chunk",
    "Condition",
    "Died",
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
    """One process, as it was seen."""

    process: ProcessId
    state: str
    """As in ``/proc``: ``R`` runs, ``S`` sleeps, ``T`` is stopped, ``t`` by a debugger; empty: gone."""
    load: float
    """Share of a core that it took, or wanted, since it was looked at before."""

    @property
    def stopped(self) -> bool:
        """Whether it does nothing because it was told to stop."""
        return self.state in {"T", "t"}

    @property
    def who(self) -> str:
        """Its name, for people."""
        return f"{self.process.name.rpartition('::')[2] or 'a process'} (pid {self.process.pid})"


class EngineInfo(NamedTuple):
    """What a started engine says about itself."""

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
    weight_version: int = 0
    instructions: tuple[str, ...] = ()
    """What it can be told to do about a fault of its own; empty without fault tolerance."""
    recovery_timeout: float = 0.0
    """Seconds that it waits for an instruction before it ends by itself."""
    url: str = ""
    """Where it is talked to over HTTP; empty where it is not."""


class GenerateCommand(NamedTuple):
    """One sample for an engine to generate. ``n`` is always 1: the pool splits samples."""

    request: str
    attempt: int
    """Fence: every answer carries it back, and answers of an older attempt are dropped."""
    prompt: Prompt
    params: Mapping[str, Any]
    """Fields of vLLM's ``SamplingParams``, as plain data."""
    delivered: tuple[int, ...] = ()
    """Not empty: go on after these tokens (greedy prefix mode); ``prompt`` is then token ids."""
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
    """For each token the candidates asked for; the sampled token first."""
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
    causes: tuple[tuple[str, str], ...]
    """(type name, message), outermost first."""


class Lost(NamedTuple):
    """The engine ended a request that nobody asked it to end (vLLM's ``abort``)."""

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


class Died(NamedTuple):
    """The engine ended by itself: its last words, as plain data."""

    incarnation: int
    causes: tuple[tuple[str, str], ...]
    """(type name, message), outermost first; the last one is the root cause."""
    traceback: str
    exit_code: int | None
    signal: int | None
    phase: str
    log_tail: str
    """The end of the engine's log, at most 8 KB."""
    log_file: str = ""
    permanent: bool = False
    """The cause is in the configuration: no start with the same arguments can succeed."""


class Condition(NamedTuple):
    """What an engine with fault tolerance says of itself; while it is unhealthy, again and again."""

    incarnation: int
    status: str
    """``"healthy"`` or ``"unhealthy"``; one that says that it is dead is a ``Died``."""
    causes: tuple[tuple[str, str], ...] = ()
    """(type name, message), outermost first; the last one is the root cause."""
    traceback: str = ""
    log_file: str = ""


class Suspicion(NamedTuple):
    """The engine may hang, or, without causes, is found not to."""

    incarnation: int
    causes: tuple[tuple[str, str], ...]


class Worked(NamedTuple):
    """The engine has done useful work that did not come through its host; said once."""

    incarnation: int


class HostDescription(NamedTuple):
    """What a host process says about itself."""

    child: str
    epoch: int
    engine: str
    """Kind of engine it starts: ``"vllm"`` or ``"sim"``."""
    process: ProcessId
    node: str
    """Address of the machine it runs on."""
    version: str
    """Version of rayvisor there."""
    log_file: str
    """The log of the newest engine, empty before the first start."""
    incarnation: int
    """The newest incarnation whose start was asked for, 0 before the first."""
    serving: bool
    phases: tuple[Phase, ...]
    """How the newest start went."""
    stack_file: str = ""
    """Where a host that does not answer leaves its stack; empty: nowhere."""


HostItem = Chunk | Refused | Lost | Phase | Died | Suspicion | Condition | Worked
