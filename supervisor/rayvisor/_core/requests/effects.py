"""What the front asks for: each call of it returns a list of these, to be carried out in order."""

from __future__ import annotations

from dataclasses import dataclass

from rayvisor._core.protocol.wire import GenerateCommand
from rayvisor._core.requests.errors import RequestError
from rayvisor._core.requests.results import Completion, GenerationChunk, Usage

__all__ = [
    "Abandoned",
    "Abort",
    "Deliver",
    "Effect",
    "Fail",
    "Finish",
    "Flow",
    "MadeProgress",
    "NextDeadline",
    "SendCommands",
]  # fmt: skip

Attempt = tuple[str, int]
"""A sample's id on the wire, and the attempt."""


@dataclass(frozen=True, slots=True)
class SendCommands:
    """Give these orders to an engine. If that fails: ``RequestScheduler.send_failed``."""

    child: str
    incarnation: int
    orders: tuple[GenerateCommand, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Tell an engine that these attempts are not wanted any more."""

    child: str
    incarnation: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """Tell an engine to stop, or to go on, reading the output of one attempt: its reader is slow."""

    child: str
    incarnation: int
    request: str
    attempt: int
    open: bool


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give this chunk to the reader of the request."""

    request: str
    chunk: GenerationChunk


@dataclass(frozen=True, slots=True)
class Finish:
    """The request is done; its last chunk has been delivered."""

    request: str
    completion: Completion


@dataclass(frozen=True, slots=True)
class Fail:
    """The request has failed: its reader gets what was delivered, then the error."""

    request: str
    error: RequestError
    usage: Usage


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The request was abandoned by its reader."""

    request: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class MadeProgress:
    """An incarnation that must not count as one without progress.

    It has delivered a token to a request, or a request that ran alone on it in quarantine killed it.
    """

    child: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NextDeadline:
    """Call ``RequestScheduler.tick`` at this time, if not called before."""

    at: float


Effect = SendCommands | Abort | Flow | Deliver | Finish | Fail | Abandoned | MadeProgress | NextDeadline


class Outgoing:
    """The effects of one call: those for readers in order, then what each engine is sent, in one piece."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._orders: dict[tuple[str, int], list[GenerateCommand]] = {}
        self._aborts: dict[tuple[str, int], list[Attempt]] = {}

    def add(self, effect: Effect) -> None:
        """Carry this out after those before it."""
        self._effects.append(effect)

    def order(self, child: str, incarnation: int, order: GenerateCommand) -> None:
        """Give an engine one more order."""
        self._orders.setdefault((child, incarnation), []).append(order)

    def abort(self, child: str, incarnation: int, attempt: Attempt) -> None:
        """Tell an engine that one more attempt is not wanted."""
        self._aborts.setdefault((child, incarnation), []).append(attempt)

    def take(self) -> list[Effect]:
        """Return everything, and begin anew."""
        effects = self._effects
        effects += [Abort(*to, tuple(attempts)) for to, attempts in self._aborts.items()]
        effects += [SendCommands(*to, tuple(orders)) for to, orders in self._orders.items()]
        self._effects, self._orders, self._aborts = [], {}, {}
        return effects
