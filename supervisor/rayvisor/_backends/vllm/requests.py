"""Conversion of commands to vLLM's prompts and parameters, and of its outputs to chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from rayvisor._core.protocol.wire import Chunk, GenerateCommand, LogprobEntry, Prompt

__all__ = ["ContinuedText", "chunk_of", "is_complete", "sampling_params", "token_ids_of"]


def sampling_params(command: GenerateCommand) -> Any:
    """Return vLLM's parameters for the tokens that have not been delivered yet.

    Raises
    ------
    TypeError, ValueError, VLLMValidationError
        A parameter is not valid.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    given = dict(command.params)
    if given.get("n", 1) != 1:
        raise ValueError(f"n must be 1: a command is one sample, got {given['n']}")
    grammar = given.get("structured_outputs")
    if isinstance(grammar, Mapping):
        for name in grammar:  # vLLM ignores an unknown one
            if name.startswith("_") or name not in StructuredOutputsParams.__dataclass_fields__:
                raise TypeError(f"structured_outputs: unexpected name {name!r}")
        given["structured_outputs"] = StructuredOutputsParams(**grammar)
    bias = given.get("logit_bias")
    if isinstance(bias, Mapping):
        given["logit_bias"] = {int(token): float(amount) for token, amount in bias.items()}
    done = len(command.delivered)
    if done:
        most = given.get("max_tokens", 16)
        given["max_tokens"] = None if most is None else most - done
        given["min_tokens"] = max(0, given.get("min_tokens", 0) - done)
        given.pop("prompt_logprobs", None)
    given["output_kind"] = RequestOutputKind.DELTA
    return SamplingParams(**given)


def is_complete(command: GenerateCommand, prompt: Sequence[int], max_model_len: int) -> bool:
    """Return whether the delivered tokens already reach a limit, so that nothing is left to generate."""
    done = len(command.delivered)
    most = command.params.get("max_tokens", 16)
    return done > 0 and ((most is not None and done >= most) or len(prompt) + done >= max_model_len)


def token_ids_of(prompt: Prompt, tokenizer: Any) -> list[int] | str:
    """Convert a prompt to a form that vLLM accepts: text, or token ids.

    Chat messages are converted by the tokenizer's chat template.
    """
    if isinstance(prompt, str):
        return prompt
    if prompt and all(isinstance(item, Mapping) for item in prompt):
        if tokenizer is None:
            raise ValueError("chat messages need a tokenizer; this engine runs without one")
        return list(
            tokenizer.apply_chat_template(
                [dict(item) for item in prompt if isinstance(item, Mapping)],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        )
    ids = list(prompt)
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise TypeError(f"prompt must be text, token ids or chat messages; it holds {token!r}")
    return ids  # type: ignore[return-value]


def chunk_of(command: GenerateCommand, output: Any, *, first: bool) -> Chunk:
    """Convert one of vLLM's outputs to a chunk."""
    sample = output.outputs[0]
    logprobs = sample.logprobs
    prompt_logprobs = output.prompt_logprobs if first else None
    return Chunk(
        command.request,
        command.attempt,
        tuple(sample.token_ids),
        sample.text,
        tuple(map(_entries, logprobs)) if logprobs else None,
        sample.finish_reason,
        sample.stop_reason,
        tuple(output.prompt_token_ids) if first and output.prompt_token_ids else None,
        tuple(each and _entries(each) for each in prompt_logprobs) if prompt_logprobs else None,
    )


def _entries(position: Mapping[int, Any]) -> tuple[LogprobEntry, ...]:
    # vLLM lists the sampled token first.
    return tuple(
        LogprobEntry(token, each.logprob, each.rank, each.decoded_token) for token, each in position.items()
    )


class ContinuedText:
    """Text of a request that continues after delivered tokens; it is the text of a run without a fault.

    vLLM takes the delivered tokens for a part of the prompt, and would decode a character wrongly that is
    split between the last of them and the next token. So vLLM's own detokeniser runs here, on the original
    prompt and all tokens.
    """

    def __init__(self, tokenizer: Any, command: GenerateCommand, prompt: Sequence[int]) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        names = (
            "stop", "min_tokens", "include_stop_str_in_output", "skip_special_tokens",
            "spaces_between_special_tokens", "detokenize",
        )  # fmt: skip
        params = SamplingParams(**{name: command.params[name] for name in names if name in command.params})
        request = SimpleNamespace(
            request_id=command.request,
            prompt_token_ids=list(prompt),
            prompt_embeds=None,
            sampling_params=params,
        )
        used = tokenizer if params.detokenize else None
        self._detokenizer = IncrementalDetokenizer.from_new_request(used, request)
        self._detokenizer.update(list(command.delivered), stop_terminated=False)
        text = self._detokenizer.get_next_output_text(finished=False, delta=True)
        # Text of the delivered tokens that has not been sent comes first.
        self._held = text[command.characters :]
        self._skip = max(0, command.characters - len(text))

    def rest(self) -> str:
        """Return the unsent text of the delivered tokens; for a request that generates no further ones."""
        left: str = self._detokenizer.get_next_output_text(finished=True, delta=True)
        return f"{self._held}{left[self._skip :]}"

    def rewrite(self, chunk: Chunk) -> Chunk:
        """Replace the text and the finish reason of a chunk of the continued request."""
        ended_by_token = chunk.finish_reason == "stop" and not isinstance(chunk.stop_reason, str)
        stop = self._detokenizer.update(list(chunk.token_ids), ended_by_token)
        finish, reason = ("stop", stop) if stop is not None else (chunk.finish_reason, chunk.stop_reason)
        text = self._detokenizer.get_next_output_text(finished=finish is not None, delta=True)
        if self._skip:
            skipped = min(self._skip, len(text))
            self._skip -= skipped
            text = text[skipped:]
        text, self._held = self._held + text, ""
        return chunk._replace(text=text, finish_reason=finish, stop_reason=reason)
