"""Input and output of the simulated engine: validation, tokens and text. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from rayvisor._backends.sim.model import EOS, VOCABULARY
from rayvisor._core.protocol.wire import GenerateCommand, LogprobEntry, Prompt

__all__ = ["TextStream", "check_params", "logprob_entries", "tokenize"]

_PARAMS = frozenset(
    {
        "allowed_token_ids", "bad_words", "detokenize", "extra_args", "flat_logprobs", "frequency_penalty",
        "ignore_eos", "include_stop_str_in_output", "logit_bias", "logprobs", "max_tokens", "min_p",
        "min_tokens", "n", "presence_penalty", "prompt_logprobs", "repetition_penalty", "seed",
        "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids",
        "structured_outputs", "temperature", "top_k", "top_p",
    }
)  # fmt: skip

_LOWEST: Mapping[str, float] = {
    "temperature": 0.0,
    "min_tokens": 0,
    "max_tokens": 1,
    "min_p": 0.0,
    "top_k": -1,
}
_MAX_PENALTY = 2.0


def tokenize(prompt: Prompt) -> list[int]:
    """Convert a prompt of any form to token ids: each byte is a token."""
    if isinstance(prompt, str):
        return list(prompt.encode())
    if all(isinstance(item, Mapping) for item in prompt) and prompt:
        lines = [f"{item['role']}: {item['content']}\n" for item in prompt]  # type: ignore[index]
        return list("".join([*lines, "assistant: "]).encode())
    ids = list(prompt)
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise TypeError(f"prompt must be text, token ids or chat messages; it holds {token!r}")
        if not 0 <= token < VOCABULARY:
            raise ValueError(f"prompt: token id {token} is out of vocabulary")
    return ids  # type: ignore[return-value]


def check_params(params: Mapping[str, Any]) -> None:
    """Refuse sampling parameters that vLLM would refuse.

    Raises
    ------
    TypeError
        There is no such parameter; the message names it.
    ValueError
        A value is out of its range.
    """
    for name, value in params.items():
        if name not in _PARAMS:
            raise TypeError(f"Unexpected keyword argument {name!r}")
        lowest = _LOWEST.get(name)
        if lowest is not None and value is not None and value < lowest:
            raise ValueError(f"{name} must be at least {lowest:g}, got {value}.")
    _check_numbers(params)
    _check_constraints(params)


def _check_numbers(params: Mapping[str, Any]) -> None:
    if params.get("n", 1) != 1:
        raise ValueError(f"n must be 1: a command is one sample, got {params['n']}.")
    if not 0.0 < params.get("top_p", 1.0) <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {params['top_p']}.")
    for name in ("presence_penalty", "frequency_penalty"):
        if abs(params.get(name, 0.0)) > _MAX_PENALTY:
            raise ValueError(f"{name} must be in [-2, 2], got {params[name]}.")
    most = params.get("max_tokens", 16)
    if most is not None and params.get("min_tokens", 0) > most:
        raise ValueError(f"min_tokens must not be above max_tokens, got {params['min_tokens']}.")


def _check_constraints(params: Mapping[str, Any]) -> None:
    allowed = params.get("allowed_token_ids")
    if allowed is not None and (not allowed or not all(0 <= token < VOCABULARY for token in allowed)):
        raise ValueError("allowed_token_ids is empty or contains a token id out of vocabulary.")
    grammar = params.get("structured_outputs")
    if grammar is not None and (not isinstance(grammar, Mapping) or set(grammar) != {"choice"}):
        raise ValueError(f"structured_outputs: the simulated engine supports 'choice' only, got {grammar!r}.")


def logprob_entries(found: Sequence[Sequence[Any]]) -> tuple[LogprobEntry, ...]:
    """Convert log-probabilities from the worker's form to that of the wire protocol."""
    return tuple(LogprobEntry(token, value, rank, _text_of(token)) for token, value, rank in found)


def _text_of(token: int) -> str:
    return "" if token == EOS else bytes([token]).decode(errors="replace")


class TextStream:
    """Text of a growing token sequence: it yields whole characters only, and finds stop strings.

    Parameters
    ----------
    prompt
        Token ids of the prompt, without the tokens that have been delivered.
    command
        The request, with the tokens and characters that have been delivered.
    """

    def __init__(self, prompt: Sequence[int], command: GenerateCommand) -> None:
        params = command.params
        stop = params.get("stop") or []
        self._stops: list[str] = [stop] if isinstance(stop, str) else list(stop)
        self._include = bool(params.get("include_stop_str_in_output"))
        held_back = bool(self._stops) and not self._include
        self._held_back = max(len(each) for each in self._stops) - 1 if held_back else 0
        self._minimum = params.get("min_tokens", 0)
        self._detokenize = params.get("detokenize", True)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode(prompt)
        self._text = self._decode(command.delivered)
        self._sent = command.characters
        self._count = len(command.delivered)

    def append(self, tokens: Sequence[int], *, without_last: bool) -> str | None:
        """Append new tokens, and return the stop string that they complete, if any.

        Parameters
        ----------
        tokens
            Their ids.
        without_last
            Whether the last token only ended the text and is not part of it.
        """
        if not self._detokenize:
            return None
        for index, token in enumerate(tokens):
            self._count += 1
            if without_last and index == len(tokens) - 1 and not self._include:
                continue
            new = self._decode((token,))
            self._text += new
            if new and self._count > self._minimum:
                for stop in self._stops:
                    at = self._text.find(stop, max(0, len(self._text) - len(new) - len(stop) + 1))
                    if at >= 0:
                        self._text = self._text[: at + len(stop) if self._include else at]
                        return stop
        return None

    def delta(self, *, finished: bool) -> str:
        """Return the text that may be sent now and has not been sent."""
        end = len(self._text) - (0 if finished else self._held_back)
        start = self._sent
        if end <= start:
            return ""
        self._sent = end
        return self._text[start:end]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._decoder.decode(bytes(token for token in tokens if token < EOS))
