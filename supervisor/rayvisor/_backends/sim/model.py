"""The simulated model: it scores the next token, and chooses one. Pure.

Tokens are bytes, and one more that ends the text. The scores of the next token depend on all tokens before
it, through a hash, and on nothing else: a text that continues on another engine from its prefix continues
with the same tokens. The exceptions are those of a real engine: penalties count only the output of this run,
sampling depends on the position within this run, and a grammar starts anew.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["EOS", "VOCABULARY", "TokenSequence", "prompt_logprobs"]

EOS = 256
VOCABULARY = 257

_MASK = (1 << 64) - 1
_LETTERS = b"etaoinshrdlucmfwypvbgk  .,"
_LEADS = (0xC3, 0xE2, 0xF0)
_PENDING = {0xC3: 1, 0xE2: 2, 0xF0: 3}
_CONTINUATIONS = range(0x90, 0xC0)
_CANDIDATES = 6
_SPREAD = 4.0
_NEVER = -1e9

Scored = list[tuple[float, int]]


def _mix(value: int, token: int) -> int:
    mixed = (value ^ (token * 0x9E3779B97F4A7C15)) & _MASK
    mixed = ((mixed ^ (mixed >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    return mixed ^ (mixed >> 29)


def _fold(value: int, token: int) -> int:
    return (value * 6364136223846793005 + token + 1442695040888963407) & _MASK


def _score(value: int, token: int) -> float:
    return _SPREAD * (_mix(value, token) / _MASK)


def _natural(value: int, pending: int) -> list[int]:
    """Return plausible next tokens: letters, and sometimes a character of several bytes."""
    picked = _mix(value, 1009)
    if pending:
        return [_CONTINUATIONS[(picked >> (6 * i)) % len(_CONTINUATIONS)] for i in range(_CANDIDATES)]
    letters = [_LETTERS[(picked >> (6 * i)) % len(_LETTERS)] for i in range(_CANDIDATES)]
    if picked >> 60 == 0:
        letters = [_LEADS[picked % len(_LEADS)]]
    return letters


class TokenSequence:
    """One text that is being generated.

    Parameters
    ----------
    prompt
        The token ids it begins with.
    params
        Sampling parameters: fields of vLLM's ``SamplingParams``, validated by their sender.
    weights
        Seed of the model itself: another seed is another model.
    """

    def __init__(self, prompt: Sequence[int], params: Mapping[str, Any], weights: int = 0) -> None:
        self.params = params
        self.output: list[int] = []
        self._counts: Counter[int] = Counter()
        self._prompt_ids = frozenset(prompt)
        self._hash = weights
        self._pending = 0
        for token in prompt:
            self._advance(token)
        self._greedy = not params.get("temperature", 1.0)
        seed = params.get("seed")
        self._seed = random.SystemRandom().getrandbits(63) if seed is None else int(seed)

    def change_weights(self, weights: int) -> None:
        """Continue with another model."""
        self._hash = _fold(self._hash, weights)

    def step(self) -> tuple[int, list[list[Any]] | None]:
        """Choose the next token. Return it, and its log-probabilities if they were requested."""
        scored = self._scores()
        token = scored[0][1] if self._greedy else self._sample(scored)
        count = self.params.get("logprobs")
        logprobs = None if count is None else _logprobs(scored, token, count)
        self._counts[token] += 1
        self.output.append(token)
        self._advance(token)
        return token, logprobs

    def score_prompt(self, token: int, count: int) -> list[list[Any]]:
        """Append a prompt token, and return the log-probabilities that it had at its position."""
        scored = self._scores(extra=(token,))
        self._advance(token)
        return _logprobs(scored, token, count)

    def _advance(self, token: int) -> None:
        self._hash = _fold(self._hash, token)
        self._pending = self._pending - 1 if self._pending else _PENDING.get(token, 0)

    def _scores(self, extra: tuple[int, ...] = ()) -> Scored:
        """Score the possible next tokens, best first."""
        params, value = self.params, self._hash
        allowed = params.get("allowed_token_ids")
        choice = (params.get("structured_outputs") or {}).get("choice")
        tokens: dict[int, float]
        if choice:
            tokens = {token: _score(value, token) for token in self._next_of(choice)}
        elif allowed:
            tokens = {token: _score(value, token) for token in allowed}
        else:
            tokens = {token: _score(value, token) for token in _natural(value, self._pending)}
            ends = not self._pending and _mix(value, 2003) % 199 == 0
            tokens[EOS] = _SPREAD + 1.0 if ends else -_SPREAD
        for token in extra:
            tokens.setdefault(token, _score(value, token) - 2 * _SPREAD)
        bias = params.get("logit_bias")
        for token, amount in (bias or {}).items():
            number = int(token)
            if not (allowed or choice) or number in tokens:
                tokens[number] = tokens.get(number, _score(value, number)) + amount
        self._hold_back(tokens)
        self._penalise(tokens)
        # Ties are broken by the token, so that the order is the same everywhere.
        return sorted(
            ((score, token) for token, score in tokens.items()), key=lambda pair: (-pair[0], pair[1])
        )

    def _next_of(self, choices: Sequence[str]) -> set[int]:
        so_far = bytes(self.output)
        nexts = set()
        for choice in choices:
            text = choice.encode()
            if text == so_far:
                nexts.add(EOS)
            elif text.startswith(so_far):
                nexts.add(text[len(so_far)])
        return nexts or {EOS}

    def _hold_back(self, tokens: dict[int, float]) -> None:
        """Give the lowest score to tokens that are banned here: they are chosen only if no other is left."""
        params = self.params
        banned: set[int] = set()
        if len(self.output) < params.get("min_tokens", 0):
            banned.update((EOS, *(params.get("stop_token_ids") or ())))
        for word in params.get("bad_words") or ():
            text = list(word.encode())
            if text and self.output[len(self.output) - len(text) + 1 :] == text[:-1]:
                banned.add(text[-1])
        for token in banned:
            if token in tokens:
                tokens[token] = _NEVER

    def _penalise(self, tokens: dict[int, float]) -> None:
        presence = self.params.get("presence_penalty", 0.0)
        frequency = self.params.get("frequency_penalty", 0.0)
        repetition = self.params.get("repetition_penalty", 1.0)
        if not presence and not frequency and repetition == 1.0:
            return
        for token, score in tokens.items():
            count = self._counts[token]
            now = score
            if repetition != 1.0 and (count or token in self._prompt_ids):
                now = now / repetition if now > 0 else now * repetition
            if count:
                now -= presence + frequency * count
            tokens[token] = now

    def _sample(self, scored: Scored) -> int:
        params = self.params
        temperature = params.get("temperature", 1.0)
        best = scored[0][0]
        weights = [math.exp((score - best) / temperature) for score, _ in scored]
        top_k = params.get("top_k", 0)
        if top_k > 0:
            weights = weights[:top_k]
        min_p = params.get("min_p", 0.0)
        top_p = params.get("top_p", 1.0)
        total, mass, kept = sum(weights), 0.0, 0
        for weight in weights:
            if kept and (mass >= top_p * total or weight < min_p):
                break
            mass += weight
            kept += 1
        drawn = random.Random(_mix(self._seed & _MASK, len(self.output))).random() * mass
        for weight, (_, token) in zip(weights[:kept], scored, strict=False):
            drawn -= weight
            if drawn < 0.0:
                return token
        return scored[kept - 1][1]


def prompt_logprobs(prompt: Sequence[int], count: int, weights: int = 0) -> list[list[list[Any]] | None]:
    """Return the log-probabilities of a prompt's tokens; the first token has none."""
    text = TokenSequence((), {}, weights)
    found: list[list[list[Any]] | None] = []
    for token in prompt:
        scored = text.score_prompt(token, count)
        found.append(scored if found else None)
    return found


def _logprobs(scored: Scored, token: int, count: int) -> list[list[Any]]:
    """Return ``[token, log-probability, rank]`` of the chosen token, then of the likeliest ones."""
    best = scored[0][0]
    log_total = best + math.log(sum(math.exp(score - best) for score, _ in scored))
    ranked = [[each, score - log_total, rank] for rank, (score, each) in enumerate(scored, 1)]
    chosen = next(entry for entry in ranked if entry[0] == token)
    kept = ranked if count < 0 else ranked[:count]
    return [chosen, *(entry for entry in kept if entry is not chosen)]
