"""An engine that is a function: the tokens of a request follow from its prompt and seed alone.

What an oracle says without faults is what every run with faults must have delivered.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, LogprobEntry, Prompt
from rayvisor.faults import Cause, Fault, FaultClass

EOS = 0
MAX_MODEL_LEN = 48
INFO = EngineInfo("oracle", "1", MAX_MODEL_LEN, 2, (EOS,), (), 0.1)


def fault_of(child: str, incarnation: int, fault_class: FaultClass = FaultClass.FATAL) -> Fault:
    return Fault(
        child=child,
        incarnation=incarnation,
        at=0.0,
        source="test",
        fault_class=fault_class,
        causes=(Cause("EngineDeadError", "gone"), Cause("ProcessKilled", "EngineCore was ended by SIGKILL")),
    )


def prompt_ids(prompt: Prompt) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(prompt.encode())
    return tuple(token for token in prompt if isinstance(token, int))


def token_at(ids: Sequence[int], params: Mapping[str, Any], position: int) -> int:
    """Byte-level tokens; every third character is one of two bytes, and some sequences end by EOS."""
    seed = params.get("seed") if params.get("temperature", 1.0) else None
    length = Random(f"{tuple(ids)} {seed} length").randrange(3, 60)
    if position == length - 1:
        return EOS
    letter = Random(f"{tuple(ids)} {seed} {position // 2}").choice(("ab", "é", "cd"))
    return letter.encode()[position % 2] + 1


def text_of(tokens: Sequence[int]) -> str:
    """Text that whole characters of these tokens make; a split one at the end is held back."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(bytes(token - 1 for token in tokens if token != EOS))


@dataclass
class Answer:
    """All that a fault-free run delivers."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: str


def answer(prompt: Prompt, params: Mapping[str, Any]) -> Answer:
    ids = prompt_ids(prompt)
    tokens: list[int] = []
    most = params.get("max_tokens", 16)
    while True:
        tokens.append(token_at(ids, params, len(tokens)))
        if tokens[-1] == EOS and not params.get("ignore_eos"):
            return Answer(tuple(tokens), text_of(tokens), "stop")
        if (most is not None and len(tokens) >= most) or len(ids) + len(tokens) >= MAX_MODEL_LEN:
            return Answer(tuple(tokens), text_of(tokens), "length")


def logprobs_of(token: int) -> tuple[LogprobEntry, ...]:
    return (LogprobEntry(token, -token / 7, 1, None),)


@dataclass
class Run:
    """One order in an engine."""

    order: GenerateCommand
    whole: Answer = field(init=False)
    position: int = field(init=False)
    characters: int = field(init=False)

    def __post_init__(self) -> None:
        # Behind delivered tokens the seed may be another one; tokens of a greedy run do not depend on it.
        self.whole = answer(self.order.prompt, self.order.params)
        self.position = len(self.order.delivered)
        self.characters = self.order.characters
        self.first = True

    @property
    def left(self) -> int:
        return len(self.whole.tokens) - self.position

    def chunk(self, size: int, *, hold_finish: bool = False) -> Chunk:
        """The next tokens; with ``hold_finish`` the last chunk comes without its finish reason."""
        tokens = self.whole.tokens[self.position : self.position + size]
        self.position += len(tokens)
        text = text_of(self.whole.tokens[: self.position])
        new, self.characters = text[self.characters :], max(self.characters, len(text))
        first, self.first = self.first, False
        return Chunk(
            self.order.request,
            self.order.attempt,
            tokens,
            new,
            tuple(map(logprobs_of, tokens)) if self.order.params.get("logprobs") is not None else None,
            self.whole.finish_reason if not self.left and not hold_finish else None,
            None,
            prompt_ids(self.order.prompt) if first else None,
        )
