"""One sample of a request: its delivered tokens, and which part of an engine's output is new.

A sample outlives its engines. Each attempt either continues behind the delivered tokens, or generates
everything again; then the tokens and the characters delivered before are compared and skipped. The two are
counted separately, since text lags behind tokens (a character may need several tokens, and text that may turn
out to be a stop string is held back).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, Prompt
from rayvisor._core.requests.continuation import Continuation, Plan
from rayvisor._core.requests.results import Divergence, GenerationChunk, SampleResult, TokenLogprobs

__all__ = ["Accepted", "Origin", "Sample"]

_SPLICE_STEP = 0x9E3779B97F4A7C15  # odd and large: neighbouring positions get unrelated seeds
_SEED_SPACE = 2**63


@dataclass(frozen=True, slots=True)
class Origin:
    """The engine a chunk comes from."""

    child: str
    incarnation: int
    weight_version: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The new part of an engine's chunk.

    Parameters
    ----------
    chunk
        The chunk to deliver; None if nothing in it was new.
    divergence
        A difference found in this chunk. After one in the tokens the attempt is useless: ``splice`` or give
        up.
    """

    chunk: GenerationChunk | None
    divergence: Divergence | None = None


class Sample:
    """State of one sample.

    Parameters
    ----------
    key
        Its id on the wire.
    index
        Its number within the request.
    prompt
        The prompt as the caller gave it.
    params
        Its own parameters, with ``n`` = 1 and a seed.
    plan
        How it continues elsewhere.
    """

    __slots__ = (
        "_position",
        "_restarted",
        "_sent_text",
        "_text",
        "_text_position",
        "_unreported",
        "attempt",
        "characters",
        "cumulative_logprob",
        "delivered",
        "divergences",
        "finish_reason",
        "index",
        "key",
        "logprobs",
        "params",
        "plan",
        "prompt",
        "prompt_logprobs",
        "prompt_token_ids",
        "spliced",
        "started",
        "stop_reason",
        "versions",
    )

    def __init__(self, key: str, index: int, prompt: Prompt, params: dict[str, Any], plan: Plan) -> None:
        self.key = key
        self.index = index
        self.prompt = prompt
        self.params = params
        self.plan = plan
        self.attempt = 0
        self.started = False  # whether the current attempt has sent anything
        self.delivered: list[int] = []
        self.characters = 0
        self.logprobs: list[TokenLogprobs] | None = None
        self.cumulative_logprob: float | None = None
        self.prompt_token_ids: tuple[int, ...] | None = None
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.divergences: list[Divergence] = []
        self.spliced = False
        self.versions: list[int] = []  # of the weights that the delivered tokens come from, in order
        self._restarted = False
        self._text: list[str] = []
        self._sent_text = ""  # the delivered text that the current attempt is compared with
        self._position = 0  # tokens seen in the current attempt, those before its start included
        self._text_position = 0  # the same for characters
        self._unreported: Divergence | None = None

    @property
    def finished(self) -> bool:
        """Whether its last chunk has been delivered."""
        return self.finish_reason is not None

    @property
    def replaying(self) -> bool:
        """Whether the current attempt still repeats tokens that were delivered before."""
        return self._position < len(self.delivered)

    @property
    def _prefix(self) -> tuple[int, ...] | None:
        """The tokens of the prompt if the next attempt can continue behind them and the delivered ones."""
        behind = self.spliced or self.plan.continuation is Continuation.PREFIX
        return self.prompt_token_ids if behind and self.delivered else None

    def order(self) -> GenerateCommand:
        """Begin the next attempt; items of earlier attempts are void from here on."""
        self.attempt += 1
        self.started = False
        prefix = self._prefix
        if prefix is not None:
            self._position = len(self.delivered)
            self._text_position = self.characters
            return GenerateCommand(
                self.key,
                self.attempt,
                prefix,
                self._params_behind(),
                tuple(self.delivered),
                self.characters,
            )
        self._position = self._text_position = 0
        self._sent_text = "".join(self._text)
        self._text = [self._sent_text]
        return GenerateCommand(self.key, self.attempt, self.prompt, self.params)

    def _params_behind(self) -> dict[str, Any]:
        # The engine itself subtracts the delivered tokens from max_tokens and similar limits.
        seed = self.params.get("seed")
        if seed is None or not self.plan.sampled:
            return self.params
        # The random numbers of the first tokens must not be repeated for later ones.
        return {**self.params, "seed": (seed + _SPLICE_STEP * len(self.delivered)) % _SEED_SPACE}

    def accept(self, chunk: Chunk, origin: Origin) -> Accepted | None:
        """Process a chunk, and return what is new in it; None if it is of an earlier attempt, or too late."""
        if chunk.attempt != self.attempt or self.finished:
            return None
        self.started = True
        if self.prompt_token_ids is None and chunk.prompt_token_ids is not None:
            self.prompt_token_ids = chunk.prompt_token_ids
        if self.prompt_logprobs is None and chunk.prompt_logprobs is not None and not self.delivered:
            self.prompt_logprobs = chunk.prompt_logprobs
        tokens, text, logprobs = chunk.token_ids, chunk.text, chunk.logprobs
        found = None
        if self.replaying:
            found = self._compare_tokens(chunk)
            if found is not None:
                return Accepted(None, self._record(found))
            skipped = min(len(self.delivered) - self._position, len(tokens))
            self._position += skipped
            tokens = tokens[skipped:]
            logprobs = None if logprobs is None else logprobs[skipped:]
        if self._text_position < self.characters:
            found = self._compare_text(text, ended=chunk.finish_reason is not None)
            if found is not None:
                self._record(found)
            skipped = min(self.characters - self._text_position, len(text))
            self._text_position += skipped
            text = text[skipped:]
        if not tokens and not text and chunk.finish_reason is None:
            return Accepted(None, found)
        return Accepted(self._deliver(tokens, text, logprobs, chunk, origin), found)

    def _compare_tokens(self, chunk: Chunk) -> Divergence | None:
        start, tokens = self._position, chunk.token_ids
        expected = self.delivered[start : start + len(tokens)]
        if expected != list(tokens[: len(expected)]):
            offset = next(i for i, token in enumerate(expected) if token != tokens[i])
            return Divergence(self.index, start + offset, expected[offset], tokens[offset])
        end = start + len(tokens)
        if chunk.finish_reason is not None and end < len(self.delivered):
            return Divergence(self.index, end, self.delivered[end], None, "end")
        return None

    def _compare_text(self, text: str, *, ended: bool) -> Divergence | None:
        if self.divergences and self.divergences[-1].what == "text":
            return None  # reported once
        start, end = self._text_position, self._text_position + len(text)
        expected = self._sent_text[start:end]
        if text.startswith(expected):
            if ended and end < self.characters:
                return Divergence(self.index, end, self._sent_text[end], None, "text")
            return None
        offset = next(i for i, character in enumerate(expected) if character != text[i])
        return Divergence(self.index, start + offset, expected[offset], text[offset], "text")

    def _record(self, divergence: Divergence) -> Divergence:
        self.divergences.append(divergence)
        self._unreported = divergence
        return divergence

    def _deliver(
        self,
        tokens: tuple[int, ...],
        text: str,
        logprobs: tuple[TokenLogprobs, ...] | None,
        end: Chunk | None,
        origin: Origin,
    ) -> GenerationChunk:
        self._position += len(tokens)
        self._text_position += len(text)
        self.delivered.extend(tokens)
        self.characters += len(text)
        if text:
            self._text.append(text)
        if tokens and self.versions[-1:] != [origin.weight_version]:
            self.versions.append(origin.weight_version)
        if logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(logprobs)
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + sum(
                candidates[0].logprob for candidates in logprobs if candidates
            )
        if end is not None and end.finish_reason is not None:
            self.finish_reason, self.stop_reason = end.finish_reason, end.stop_reason
        reported, self._unreported = self._unreported, None
        restarted, self._restarted = self._restarted, False
        return GenerationChunk(
            self.index, tokens, text, logprobs, self.finish_reason, self.stop_reason,
            origin.child, origin.incarnation, origin.weight_version, reported, restarted,
        )  # fmt: skip

    def finish_if_due(self, info: EngineInfo, origin: Origin) -> GenerationChunk | None:
        """End the sample here if all its tokens are delivered and only its finish was lost with the engine.

        The rules and their order are vLLM's: EOS, stop tokens, then length. With stop strings nothing is
        decided: text may have been held back, so the sample is generated again.
        """
        due = self.due(info)
        if due is None or self.finished:
            return None
        self.finish_reason, self.stop_reason = due
        return self._deliver((), "", None, None, origin)

    def due(self, info: EngineInfo) -> tuple[str, int | str | None] | None:
        """Return the finish and stop reason if only these are missing; None otherwise."""
        plan, done = self.plan, len(self.delivered)
        if not done or plan.stop_strings:
            return None
        last = self.delivered[-1]
        if done >= plan.min_tokens:
            if not plan.ignore_eos and info.eos_token_ids and last == info.eos_token_ids[0]:
                return "stop", None
            # vLLM treats the generation config's further EOS ids as stop tokens.
            if last in plan.stop_token_ids or (not plan.ignore_eos and last in info.eos_token_ids):
                return "stop", last
        prompt = len(self.prompt_token_ids or ())
        if (plan.max_tokens is not None and done >= plan.max_tokens) or (
            prompt and prompt + done >= info.max_model_len
        ):
            return "length", None
        return None

    def restart(self) -> None:
        """Start again with the next attempt: the delivered tokens are void, and the reader is told."""
        self.delivered.clear()
        self.versions.clear()
        self.divergences.clear()
        self._text.clear()
        self.characters, self._sent_text = 0, ""
        self.logprobs = self.cumulative_logprob = self.prompt_logprobs = self._unreported = None
        self.spliced, self._restarted = False, True

    def splice(self) -> bool:
        """Continue behind the delivered tokens from now on. False if the prompt's tokens are not known."""
        self.spliced = self.prompt_token_ids is not None
        return self.spliced

    def result(self, attempts: int) -> SampleResult:
        """Return the result of the finished sample."""
        return SampleResult(
            index=self.index,
            text="".join(self._text),
            token_ids=tuple(self.delivered),
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            cumulative_logprob=self.cumulative_logprob,
            finish_reason=self.finish_reason or "",
            stop_reason=self.stop_reason,
            seed=self.params.get("seed") if self.plan.sampled else None,
            attempts=attempts,
            divergences=tuple(self.divergences),
            weight_versions=tuple(self.versions),
        )
