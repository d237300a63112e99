"""Results of a request: chunks while it runs, a completion at its end. Plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from rayvisor._core.protocol.wire import LogprobEntry
from rayvisor._public import shown_as

__all__ = ["Completion", "Divergence", "GenerationChunk", "SampleResult", "TokenLogprobs", "Usage"]

TokenLogprobs = tuple[LogprobEntry, ...]
"""The candidates at one position, the sampled token first."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A difference between a sample that was generated again and what had been delivered of it.

    Parameters
    ----------
    index
        Number of the sample.
    position
        Position of a token, or of a character if ``what`` is ``"text"``.
    expected
        What had been delivered there.
    got
        What was generated this time; None if the sample ended there.
    what
        ``"token"``, ``"text"`` (equal tokens, different characters) or ``"end"`` (it ended early).
    """

    index: int
    position: int
    expected: int | str
    got: int | str | None
    what: str = "token"

    def __str__(self) -> str:
        came = "the end" if self.got is None else repr(self.got)
        unit = "character" if self.what == "text" else "token"
        return (
            f"differed when it was generated again: sample {self.index}, {unit} {self.position} was "
            f"{self.expected!r} and is {came}"
        )


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """The next tokens of one sample of a request, in order, each token exactly once.

    Parameters
    ----------
    index
        Number of the sample, 0 to n - 1.
    token_ids
        New tokens; empty in a chunk that only ends the sample or adds text of earlier tokens.
    text
        New text. It can lag behind the tokens: a character may need several of them.
    logprobs
        The requested candidates for each token of ``token_ids``, or None.
    finish_reason
        With the last chunk of a sample: ``"stop"``, ``"length"``, ``"repetition"``, or another one of vLLM's.
    stop_reason
        The stop string or stop token that ended it, if one did.
    child, incarnation
        The engine that generated it.
    weight_version
        Version of the weights it was generated with, as the gate's hook returned it; 0 without one.
    divergence
        A difference found since the last chunk; see [`Divergence`][rayvisor.pool.Divergence].
    restarted
        Whether the weights have changed and the sample starts again: its earlier chunks are void.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    child: str = ""
    incarnation: int = 0
    weight_version: int = 0
    divergence: Divergence | None = None
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: the prompt and each generated token once, however often engines died."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One finished sample.

    Parameters
    ----------
    seed
        The seed it was sampled with; None if it is greedy, or if seeds are switched off.
    cumulative_logprob
        Sum over all its tokens; None without ``logprobs``.
    attempts
        How many engines it was tried on; 1 without a fault.
    divergences
        Every difference found when it was generated again.
    weight_versions
        Versions of the weights that its tokens come from, in order: one, unless they changed meanwhile and
        the sample continued (``on_weights_changed="splice"``).
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    cumulative_logprob: float | None
    finish_reason: str
    stop_reason: int | str | None
    seed: int | None
    attempts: int
    divergences: tuple[Divergence, ...] = ()
    weight_versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: its samples in order, and its usage.

    ``text``, ``token_ids``, ``finish_reason`` and ``cumulative_logprob`` are those of the first sample,
    the only one unless ``n`` was given.
    """

    request: str
    samples: tuple[SampleResult, ...]
    prompt_token_ids: tuple[int, ...] | None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    usage: Usage

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self.samples[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the first sample."""
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why the first sample ended."""
        return self.samples[0].finish_reason

    @property
    def weight_versions(self) -> tuple[int, ...]:
        """Versions of the weights that the first sample's tokens come from, in order."""
        return self.samples[0].weight_versions

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the log-probabilities of the first sample's tokens."""
        return self.samples[0].cumulative_logprob


shown_as("rayvisor.pool", Completion, Divergence, GenerationChunk, SampleResult, Usage)
