"""A line for each thing that happens in a tree, for pipes, files and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayvisor._edges.live import text as live_text
from rayvisor._edges.live.text import age
from rayvisor.cli._watch.tree_state import TreeState

__all__ = ["Lines"]

FIGURE_SECONDS = 5.0
_HEADS = ("NAME", "KIND", "STATE", "#", "UP", "RESTARTS", "REQUESTS")


class Lines:
    """Says what is new in what is tree.

    Parameters
    ----------
    tree
        Of the tree.
    """

    def __init__(self, tree: TreeState) -> None:
        self._known = tree
        self._link = ""
        self._steps: dict[str, float] = {}
        self._faults: dict[int, tuple[Any, str]] = {}
        self._figures: dict[str, float] | None = None
        self._figures_at = 0.0
        self._begun = 0

    def news(self) -> Iterator[str]:
        """What has happened since the last call."""
        tree = self._known
        if tree.link != self._link:
            yield from self._linked()
        if tree.link != "live" or tree.is_empty:
            return
        if tree.begun > self._begun:
            self._begun = tree.begun
            self._faults = {}
            # Whoever reads the table may be slow: what has happened when it is written is news.
            nodes = tree.nodes
            self._steps = {node["path"]: node["steps"][-1][3] for node in nodes if node["steps"]}
            yield from self._table(nodes)
        events = [*self._step_lines(), *self._fault_lines()]
        yield from (line for _, line in sorted(events, key=lambda event: event[0]))
        yield from self._new_figures()

    def _linked(self) -> Iterator[str]:
        tree, before, self._link = self._known, self._link, self._known.link
        if tree.link == "over":
            yield self._line("tree", "the tree has ended; waiting for it to come back (Ctrl-C ends this)")
        elif tree.link == "lost":
            yield self._line("tree", f"cannot be seen: {tree.why}; trying again (Ctrl-C ends this)")
        elif tree.link == "live" and before in {"over", "lost"}:
            yield self._line("tree", "is there again" if self._begun else "is there")

    def _table(self, nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """All there is, once: later lines say what changes."""
        rows = [_HEADS, *(_cells(node, self._known.now) for node in nodes)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    def _step_lines(self) -> Iterator[tuple[float, str]]:
        for node in self._known.nodes:
            path = node["path"]
            for place, event, incarnation, at in node["steps"]:
                if at > self._steps.get(path, 0.0):
                    self._steps[path] = at
                    wait = (
                        f", starts again {live_text.until(node, at)}"
                        if node["due"] and place.endswith("BACKOFF")
                        else ""
                    )
                    yield at, self._line(f"{path} #{incarnation}", f"{place} ({event}{wait})", at)

    def _fault_lines(self) -> Iterator[tuple[float, str]]:
        for fault in self._known.faults:
            said, became = self._faults.get(fault["id"], (None, ""))
            who, at = f"{fault['child']} #{fault['incarnation']}", fault["at"]
            if fault["id"] not in self._faults:
                yield at, self._line(who, f"FAULT {_cause(fault)}", at)
            if fault["decision"] != said:
                yield at, self._line(who, live_text.decision(fault), at)
            if live_text.outcome(fault) not in {"", became}:
                later = at + (fault["recovered"] or 0.0)
                yield later, self._line(who, live_text.outcome(fault), later)
            self._faults[fault["id"]] = (fault["decision"], live_text.outcome(fault))
        for number in list(self._faults)[:-200]:
            del self._faults[number]

    def _new_figures(self) -> Iterator[str]:
        """Figures change all the time: they are said every few seconds."""
        tree = self._known
        sums = tree.figures()
        if sums is None or sums == self._figures or tree.now - self._figures_at < FIGURE_SECONDS:
            return
        self._figures, self._figures_at = sums, tree.now
        yield self._line(
            "requests", ", ".join(f"{value} {name}" for name, value, _ in live_text.figures(sums))
        )

    def _line(self, who: str, text: str, at: float | None = None) -> str:
        return f"{live_text.clock(self._known.now if at is None else at)}  {who:<14} {text}"


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
