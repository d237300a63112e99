"""The events of a tree, one line each, for pipes, files and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayvisor._edges.live import text as live_text
from rayvisor._edges.live.text import age
from rayvisor.cli._watch.tree_state import TreeState
from rayvisor.timeouts import DEFAULT_TIMEOUTS, CommandTimeouts

__all__ = ["Lines"]

_HEADS = ("NAME", "KIND", "STATE", "#", "UP", "RESTARTS", "REQUESTS")


Step = Sequence[Any]
"""Place, event, incarnation and time of a transition."""


class Lines:
    """Turns the changes of a tree into lines.

    Parameters
    ----------
    tree
        The state of the tree; it is updated between two calls of ``news``.
    timeouts
        How often figures are shown.
    """

    def __init__(self, tree: TreeState, *, timeouts: CommandTimeouts = DEFAULT_TIMEOUTS.commands) -> None:
        self._tree = tree
        self._interval = timeouts.figures
        self._link = ""
        self._steps: dict[str, Sequence[Step]] = {}
        self._faults: dict[int, tuple[Any, str]] = {}
        self._figures: dict[str, float] | None = None
        self._figures_at = 0.0
        self._begun = 0

    def news(self) -> Iterator[str]:
        """Yield a line for each change since the last call."""
        tree = self._tree
        if tree.link != self._link:
            yield from self._linked()
        if tree.link != "live" or tree.is_empty:
            return
        if tree.begun > self._begun:
            self._begun = tree.begun
            self._faults = {}
            # The reader of the table may be slow: changes that happen while it is written are news.
            nodes = tree.nodes
            self._steps = {node["path"]: node["steps"] for node in nodes}
            yield from self._table(nodes)
        events = [*self._step_lines(), *self._fault_lines()]
        yield from (line for _, line in sorted(events, key=lambda event: event[0]))
        yield from self._new_figures()

    def _linked(self) -> Iterator[str]:
        tree, before, self._link = self._tree, self._link, self._tree.link
        if tree.link == "over":
            yield self._line("tree", "the tree has ended; waiting for it to return (Ctrl-C to quit)")
        elif tree.link == "lost":
            yield self._line("tree", f"no connection: {tree.why}; reconnecting (Ctrl-C to quit)")
        elif tree.link == "live" and before in {"over", "lost"}:
            yield self._line("tree", "connected again" if self._begun else "connected")

    def _table(self, nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Yield the whole tree as a table; later lines show changes only."""
        rows = [_HEADS, *(_cells(node, self._tree.now) for node in nodes)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    def _step_lines(self) -> Iterator[tuple[float, str]]:
        for node in self._tree.nodes:
            path, steps = node["path"], node["steps"]
            for place, event, incarnation, at in _new_steps(self._steps.get(path, ()), steps):
                wait = (
                    f", starts again {live_text.until(node, at)}"
                    if node["due"] and place.endswith("BACKOFF")
                    else ""
                )
                yield at, self._line(f"{path} #{incarnation}", f"{place} ({event}{wait})", at)
            self._steps[path] = steps

    def _fault_lines(self) -> Iterator[tuple[float, str]]:
        for fault in self._tree.faults:
            decision, outcome = self._faults.get(fault["id"], (None, ""))
            subject, at = f"{fault['child']} #{fault['incarnation']}", fault["at"]
            if fault["id"] not in self._faults:
                yield at, self._line(subject, f"FAULT {_cause(fault)}", at)
            if fault["decision"] != decision:
                yield at, self._line(subject, live_text.decision(fault), at)
            if live_text.outcome(fault) not in {"", outcome}:
                later = at + (fault["recovered"] or 0.0)
                yield later, self._line(subject, live_text.outcome(fault), later)
            self._faults[fault["id"]] = (fault["decision"], live_text.outcome(fault))
        for number in list(self._faults)[:-200]:
            del self._faults[number]

    def _new_figures(self) -> Iterator[str]:
        """Yield the request figures. They change constantly, so they are shown every few seconds only."""
        tree = self._tree
        sums = tree.figures()
        if sums is None or sums == self._figures or tree.now - self._figures_at < self._interval:
            return
        self._figures, self._figures_at = sums, tree.now
        yield self._line(
            "requests", ", ".join(f"{value} {name}" for name, value, _ in live_text.figures(sums))
        )

    def _line(self, subject: str, text: str, at: float | None = None) -> str:
        return f"{live_text.clock(self._tree.now if at is None else at)}  {subject:<14} {text}"


def _new_steps(known: Sequence[Step], steps: Sequence[Step]) -> Sequence[Step]:
    """Return the steps after the known ones. Times do not tell: several steps may share one millisecond."""
    size = len(steps)
    for count in range(size):
        kept = steps[: size - count]
        if list(known[-len(kept) :]) == list(kept):
            return steps[size - count :]
    return steps


def _cause(fault: Mapping[str, Any]) -> str:
    log = f"; log: {fault['log']}" if fault["log"] else ""
    return f"{fault['root']} ({fault['class']}, while {fault['phase']}{log})"


def _cells(node: Mapping[str, Any], now: float) -> tuple[str, ...]:
    used = node.get("restarts")
    return (
        node["path"] or "tree",
        node["kind"],
        " ".join(part for part in (live_text.state(node), live_text.until(node, now)) if part),
        str(node["incarnation"] or ""),
        "" if node["since"] is None else age(max(0.0, now - node["since"])),
        f"{used[0]} of {used[1]}" if used else "",
        live_text.requests(node),
    )
