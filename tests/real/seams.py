"""A kill at an exact token of each stream: the pool receives no later output of the first incarnation."""

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
        Its name.
    prompt, params
        The request.
    cut
        The pool receives this many tokens of each sample, or a few less, before the fault.
    lose_finish
        Deliver everything but the finish reason; ``cut`` is ignored.
    """

    name: str
    prompt: Any
    params: Mapping[str, Any]
    cut: int = 12
    lose_finish: bool = False


@dataclass
class Seams:
    """Drops the output of an engine after the cut of each row, before its pool receives it.

    Output of incarnations after ``until`` passes unchanged.
    """

    pool: PoolRuntime
    until: int
    cuts: dict[str, Row] = field(default_factory=dict)
    """Rows by request."""
    got: dict[str, int] = field(default_factory=dict)
    """Number of delivered tokens, by sample."""
    cut: set[str] = field(default_factory=set)
    """Samples that have reached their cut."""

    def install(self) -> Callable[[], None]:
        """Begin to drop output. Return a function that ends this."""
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
