"""A kill at an exact token of each stream: what the pool gets of the first incarnation is cut there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayvisor._core.protocol.wire import Chunk, HostItem
from rayvisor._runtime.pool.runtime import PoolRuntime

__all__ = ["Row", "Seams"]


@dataclass(frozen=True)
class Row:
    """One row of the request table.

    Parameters
    ----------
    name
        What it is about.
    prompt, params
        The request.
    cut
        After this many tokens of each sample the engine is as good as dead for it.
    lose_finish
        Deliver everything but the finish; ``cut`` is not looked at.
    """

    name: str
    prompt: Any
    params: Mapping[str, Any]
    cut: int = 12
    lose_finish: bool = False


@dataclass
class Seams:
    """Stands between an engine and its pool, and drops what comes after each row's cut.

    Only for the incarnation ``until``: what a later one sends passes untouched.
    """

    pool: PoolRuntime
    until: int
    cuts: dict[str, Row] = field(default_factory=dict)
    """By request."""
    got: dict[str, int] = field(default_factory=dict)
    """Tokens let through, by sample."""
    cut: set[str] = field(default_factory=set)
    """Samples that have reached their cut."""

    def install(self) -> Callable[[], None]:
        """Begin; the function that is returned takes it out again."""
        plain = self.pool.items

        def items(child: str, incarnation: int, items: Sequence[HostItem]) -> None:
            if incarnation <= self.until:
                items = [kept for item in items if (kept := self._pass(item)) is not None]
            plain(child, incarnation, items)

        self.pool.items = items  # type: ignore[method-assign]

        def remove() -> None:
            self.pool.items = plain  # type: ignore[method-assign]

        return remove

    def _pass(self, item: HostItem) -> HostItem | None:
        row = self.cuts.get(item.request.rpartition(".")[0]) if isinstance(item, Chunk) else None
        if not isinstance(item, Chunk) or row is None:
            return item
        if item.request in self.cut:
            return None
        count = self.got.get(item.request, 0) + len(item.token_ids)
        over = item.finish_reason is not None or (count > row.cut and not row.lose_finish)
        if not over or row.lose_finish:
            self.got[item.request] = count
        if over:
            self.cut.add(item.request)
            return item._replace(finish_reason=None, stop_reason=None) if row.lose_finish else None
        return item
