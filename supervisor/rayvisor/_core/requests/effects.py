"""Effects of the scheduler: each of its methods returns a list of these, to be carried out in order."""

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
"""A sample's id on the wire, and the number of its attempt."""


@dataclass(frozen=True, slots=True)
class SendCommands:
    """Send these commands to an engine. If that fails, call ``RequestScheduler.send_failed``."""

    child: str
    incarnation: int
    orders: tuple[GenerateCommand, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Tell an engine to abort these attempts."""

    child: str
    incarnation: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """Tell a host to stop or resume reading the output of one attempt, whose reader is slow."""

    child: str
    incarnation: int
    request: str
    attempt: int
    open: bool


@dataclass(frozen=True, slots=True)
class Deliver:
    """Deliver this chunk to the reader of the request."""

    request: str
    chunk: GenerationChunk


@dataclass(frozen=True, slots=True)
class Finish:
    """The request has finished; its last chunk has been delivered."""

    request: str
    completion: Completion


@dataclass(frozen=True, slots=True)
class Fail:
    """The request has failed: its reader gets the delivered chunks, then the error."""

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
    """An incarnation that must not count towards the crash loop limit.

    It has delivered a token to a request, or was killed by a request that ran alone on it in quarantine.
    """

    child: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NextDeadline:
    """Call ``RequestScheduler.tick`` at this time, if not called before."""

    at: float


Effect = SendCommands | Abort | Flow | Deliver | Finish | Fail | Abandoned | MadeProgress | NextDeadline


class Outgoing:
    """The effects of one call: those for readers in order, then one batch for each engine."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._orders: dict[tuple[str, int], list[GenerateCommand]] = {}
        self._aborts: dict[tuple[str, int], list[Attempt]] = {}

    def add(self, effect: Effect) -> None:
        """Append an effect."""
        self._effects.append(effect)

    def order(self, child: str, incarnation: int, order: GenerateCommand) -> None:
        """Add a command to an engine's batch."""
        self._orders.setdefault((child, incarnation), []).append(order)

    def abort(self, child: str, incarnation: int, attempt: Attempt) -> None:
        """Add an attempt to abort to an engine's batch; a command of this call is withdrawn instead."""
        orders = self._orders.get((child, incarnation), [])
        kept = [order for order in orders if (order.request, order.attempt) != attempt]
        if len(kept) < len(orders):
            self._orders[child, incarnation] = kept
            return
        self._aborts.setdefault((child, incarnation), []).append(attempt)

    def take(self) -> list[Effect]:
        """Return all effects, and start with an empty list."""
        effects = self._effects
        effects += [Abort(*to, tuple(attempts)) for to, attempts in self._aborts.items()]
        effects += [SendCommands(*to, tuple(orders)) for to, orders in self._orders.items() if orders]
        self._effects, self._orders, self._aborts = [], {}, {}
        return effects
