"""How a request continues when its engine dies, decided from its parameters by a table.

| continuation | when |
|---|---|
| PREFIX | plain greedy; also with logit_bias, allowed_token_ids, stop_token_ids |
| REGENERATE | everything else, including parameters that are not known here |
| REFUSE | beam search; embeddings as prompt without their source |

PREFIX continues from the prompt and the delivered tokens. REGENERATE generates everything again, compares,
and skips the delivered part. REFUSE fails the request with a clear error.

Parameters are the fields of vLLM's ``SamplingParams`` as plain data. Those that the pool itself reads are
checked here; the engine checks the others.

    >>> plan({"temperature": 0}, "Once").continuation
    <Continuation.PREFIX: 'prefix'>
    >>> plan({"temperature": 0, "stop": ["."]}, "Once").reason
    "stop=['.']"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any

from rayvisor._core.requests.errors import InvalidRequestError
from rayvisor._validation import is_number, is_whole, whole

__all__ = ["DEFAULT_MAX_TOKENS", "Continuation", "Plan", "plan", "split"]

DEFAULT_MAX_TOKENS = 16
"""vLLM's default of ``max_tokens``; an explicit ``None`` means as long as the model's length allows."""

_GREEDY_BELOW = 1e-5  # as in vLLM: sampling with a lower temperature is greedy
_SEEDS = 2**31


class Continuation(StrEnum):
    """How a request continues elsewhere."""

    PREFIX = "prefix"
    REGENERATE = "regenerate"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision about a request when it is submitted.

    Parameters
    ----------
    continuation
        How it continues when its engine dies.
    spliceable
        Whether prompt + delivered tokens are a valid way to continue if generating again differs: true if the
        distribution of the next token depends only on the tokens so far.
    reason
        The parameter that decided, for messages.
    """

    continuation: Continuation
    spliceable: bool
    reason: str
    sampled: bool
    n: int
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: frozenset[int]
    stop_strings: bool
    params: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Row:
    active: Callable[[Any], bool]
    continuation: Continuation
    spliceable: bool = False


def _given(value: object) -> bool:
    return value is not None


def _unlike(*neutral: object) -> Callable[[Any], bool]:
    return lambda value: value is not None and value not in neutral


def _never(_value: object) -> bool:
    return False


_AGAIN, _REFUSE = Continuation.REGENERATE, Continuation.REFUSE
_PLAIN = _Row(_never, Continuation.PREFIX)

_TABLE: Mapping[str, _Row] = {
    # Cannot be moved at all.
    "use_beam_search": _Row(bool, _REFUSE),
    "beam_width": _Row(_given, _REFUSE),
    # The next token depends on which tokens were generated, not only on the text so far.
    "presence_penalty": _Row(_unlike(0, 0.0), _AGAIN),
    "frequency_penalty": _Row(_unlike(0, 0.0), _AGAIN),
    "repetition_penalty": _Row(_unlike(1, 1.0), _AGAIN),
    "structured_outputs": _Row(_given, _AGAIN),
    "guided_decoding": _Row(_given, _AGAIN),
    "stop": _Row(bool, _AGAIN),
    "bad_words": _Row(bool, _AGAIN),
    "logits_processors": _Row(bool, _AGAIN),
    "repetition_detection": _Row(_given, _AGAIN),
    "thinking_token_budget": _Row(_given, _AGAIN),
    "extra_args": _Row(bool, _AGAIN),
    # The same holds here, but the remainder of the limit is known.
    "min_tokens": _Row(_unlike(0), _AGAIN, spliceable=True),
    # A sampled stream depends on its random numbers; without them it can still continue.
    "temperature": _Row(lambda value: value is None or value >= _GREEDY_BELOW, _AGAIN, spliceable=True),
    "n": _Row(_unlike(1), _AGAIN, spliceable=True),
    # Without influence on it.
    **dict.fromkeys(
        (
            "allowed_token_ids",
            "detokenize",
            "flat_logprobs",
            "ignore_eos",
            "include_stop_str_in_output",
            "logit_bias",
            "logprobs",
            "max_tokens",
            "min_p",
            "prompt_logprobs",
            "seed",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "stop_token_ids",
            "top_k",
            "top_p",
        ),
        _PLAIN,
    ),
}
_UNKNOWN = _Row(_given, _AGAIN)
_OWN = {
    "output_kind": "the pool streams deltas; leave it out",
    "stream": "the pool always streams; leave it out",
}


def plan(params: Mapping[str, Any] | None, prompt: object) -> Plan:
    """Check a request and decide how it continues when its engine dies.

    Raises
    ------
    InvalidRequestError
        For a prompt or a parameter that cannot work.
    """
    if params is None:
        params = {}
    if not isinstance(params, Mapping):
        raise InvalidRequestError("params", params, "must be a mapping of sampling parameters, or None")
    n, temperature = _check(params)
    sampled = _TABLE["temperature"].active(temperature)
    if n > 1 and not sampled:
        raise InvalidRequestError(
            "params['n']",
            n,
            "must be 1 with greedy sampling: all samples would be the same; give a temperature",
        )
    found = [_prompt_row(prompt)]
    for name, value in {"temperature": temperature, **params}.items():
        row = _TABLE.get(name, _UNKNOWN)
        if row.active(value):
            found.append((row, f"{name}={value!r}"))
    worst, reason = min(found, key=lambda entry: (_RANK[entry[0].continuation], entry[0].spliceable))
    stop_token_ids = params.get("stop_token_ids") or ()
    return Plan(
        continuation=worst.continuation,
        spliceable=all(row.spliceable for row, _ in found),
        reason=reason,
        sampled=sampled,
        n=n,
        max_tokens=params.get("max_tokens", DEFAULT_MAX_TOKENS),
        min_tokens=params.get("min_tokens") or 0,
        ignore_eos=bool(params.get("ignore_eos")),
        stop_token_ids=frozenset(stop_token_ids),
        stop_strings=bool(params.get("stop")),
        params=dict(params),
    )


_RANK = {Continuation.REFUSE: 0, Continuation.REGENERATE: 1, Continuation.PREFIX: 2}


def split(plan: Plan, rng: Random, *, seeds: bool = True) -> list[dict[str, Any]]:
    """Return the parameters of each sample: ``n`` is 1, and sample i has seed + i, as in vLLM.

    A sampled request without a seed gets one unless ``seeds`` is False: without a seed it could not be
    generated again.
    """
    seed = plan.params.get("seed")
    if seed == -1:  # another form of None in vLLM
        seed = None
    if seed is None and plan.sampled and seeds:
        seed = rng.randrange(_SEEDS)
    samples = []
    for index in range(plan.n):
        params = {**plan.params, "n": 1, "max_tokens": plan.max_tokens}
        if seed is not None:
            params["seed"] = seed + index
        if index:
            params.pop("prompt_logprobs", None)  # the same for all samples: once is enough
        samples.append(params)
    return samples


def _check(params: Mapping[str, Any]) -> tuple[int, float | None]:
    for name in params:
        if not isinstance(name, str):
            raise InvalidRequestError("params", name, "has a key that is not the name of a parameter")
        if name in _OWN:
            raise InvalidRequestError(f"params[{name!r}]", params[name], _OWN[name])
    _whole(params, "n", least=1, none=False)
    _whole(params, "max_tokens", least=1)
    _whole(params, "min_tokens", least=0)
    _whole(params, "seed")
    temperature = params.get("temperature", 1.0)
    if temperature is not None and not is_number(temperature):
        raise InvalidRequestError("params['temperature']", temperature, "must be a number, 0 or more")
    ids = params.get("stop_token_ids")
    if ids is not None and (isinstance(ids, str) or not isinstance(ids, Sequence) or not _all_ids(ids)):
        raise InvalidRequestError("params['stop_token_ids']", ids, "must be a list of token ids")
    return params.get("n", 1), temperature


def _whole(params: Mapping[str, Any], name: str, *, least: int | None = None, none: bool = True) -> None:
    if name in params:
        whole(f"params[{name!r}]", params[name], least=least, none=none, error=InvalidRequestError)


def _all_ids(values: Sequence[object]) -> bool:
    return all(is_whole(value, 0) for value in values)


_TEXT = _Row(_never, Continuation.PREFIX, spliceable=True), "greedy"
_WHOLE = _Row(_never, _AGAIN)


def _prompt_row(prompt: object) -> tuple[_Row, str]:
    if isinstance(prompt, str):
        return _TEXT
    if isinstance(prompt, Mapping):
        return _mapping_row(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise InvalidRequestError(
            "prompt", prompt, "must be text, a list of token ids, or a list of chat messages"
        )
    if not prompt:
        raise InvalidRequestError("prompt", prompt, "must not be empty")
    if _all_ids(prompt):
        return _TEXT
    if not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in prompt):
        raise InvalidRequestError(
            "prompt", prompt, "must hold either token ids (0 or more) only, or chat messages with a role only"
        )
    if all(_is_text(message.get("content")) for message in prompt):
        return _TEXT
    # Images and the like are not in the token ids, so prompt + delivered tokens would leave them out.
    return _WHOLE, "a chat message with more than text"


def _mapping_row(prompt: Mapping[str, Any]) -> tuple[_Row, str]:
    if prompt.get("prompt_embeds") is None:
        return _WHOLE, "a prompt given as a mapping"
    if prompt.get("prompt") is None and prompt.get("prompt_token_ids") is None:
        return _Row(_never, _REFUSE), "its prompt is given as embeddings, without their source"
    return _WHOLE, "a prompt given as embeddings"


def _is_text(content: object) -> bool:
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )
