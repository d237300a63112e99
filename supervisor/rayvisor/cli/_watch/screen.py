"""The picture of a tree on a terminal: figures, the tree, the last faults. It always fits the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rayvisor._core.paths import ancestors, split
from rayvisor._edges.live import text as live_text
from rayvisor._edges.live.text import age
from rayvisor.timeouts import DEFAULT_TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from rayvisor.cli._watch.tree_state import TreeState

__all__ = ["picture", "tree_table"]

FAULTS_SHOWN = 4
LEAST_ROWS = 4
NARROW = 90
"""Terminals with fewer columns show no kinds and no requests of children."""
_NAME = 10
"""Minimum columns of a child's name."""
_WELL = frozenset({"ALIVE.SERVING", "ALIVE.STANDBY", "RUNNING"})
_NEAR_LIMIT = 0.6
"""Share of the intensity from which on used restarts are highlighted."""
_HEADS = 2
"""Rows that the table takes beside its children, including the row of the terminal's cursor."""


def picture(
    tree: TreeState,
    width: int,
    height: int,
    *,
    last: bool = False,
    fresh: float = DEFAULT_TIMEOUTS.commands.fresh,
) -> RenderableType:
    """Return the picture for a terminal of this size; ``last`` for the one that stays after the command."""
    parts: list[RenderableType] = [_head(tree, last=last)]
    sums = tree.figures()
    if sums is not None:
        parts.append(_figures(sums))
    if tree.has_lost_path():
        there = ", ".join(tree.children[:8])
        parts.append(Text(f"{tree.path} is not in the tree now; its children are: {there}", style="yellow"))
    faults = tree.faults[::-1][:FAULTS_SHOWN]
    above = 2 + (sums is not None) + tree.has_lost_path()
    below = 2 + 2 * len(faults) if faults else 0
    rows = max(LEAST_ROWS, height - above - _HEADS - below)
    if not tree.is_empty:
        parts += [Text(""), tree_table(tree, rows, wide=width >= NARROW, fresh=fresh)]
    if faults:
        more = len(tree.faults) - len(faults)
        parts += [
            Text(""),
            Text(
                "Faults" + (f" (the last {len(faults)} of {len(tree.faults)})" if more else ""), style="bold"
            ),
        ]
        parts += [line for fault in faults for line in _fault(fault)]
    return Group(*parts)


def _head(tree: TreeState, *, last: bool) -> Text:
    root = tree.root
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("rayvisor  ", style="bold")
    if root is not None:
        place = "ENDED" if tree.link == "over" else live_text.state(root)
        text.append(
            place, style=f"bold {'' if tree.link == 'over' else live_text.state_colour(place)}".strip()
        )
        if root["since"] is not None and tree.link == "live":
            text.append(f"  up {age(max(0.0, tree.now - root['since']))}")
        text.append("  ")
    link, style = {
        "connecting": ("connecting", ""),
        "live": ("live", "green"),
        "over": (
            f"the tree has ended, {live_text.clock(tree.since)}; waiting for it to return",
            "yellow",
        ),
        "lost": (
            f"no connection since {live_text.clock(tree.since)}: {tree.why}; reconnecting",
            "bold red",
        ),
    }[tree.link]
    if last:
        text.append(f"as it was at {live_text.clock(tree.now)}")
    else:
        text.append(link, style=style)
        text.append("  (Ctrl-C quits this view, not the tree)", style="dim")
    return text


def _figures(sums: Mapping[str, float]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, value, key in live_text.figures(sums):
        bad = key == "failed" and sums[key] > 0
        text.append(f"{name} ", style="dim")
        text.append(f"{value}   ", style="bold red" if bad else "bold")
    return text


def tree_table(
    tree: TreeState,
    rows: int,
    *,
    wide: bool = True,
    fresh: float = DEFAULT_TIMEOUTS.commands.fresh,
) -> RenderableType:
    """Return the tree with a row for each child; if rows are short, unhealthy and changed children first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("CHILD", no_wrap=True, overflow="ellipsis", min_width=_NAME)
    for name in (*(("KIND",) if wide else ()), "STATE", "#", "UP", "RESTARTS"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    if wide:
        table.add_column("REQUESTS", no_wrap=True, overflow="ellipsis")
    nodes = tree.nodes
    shown = _chosen(tree, nodes, rows, fresh)
    hidden = [node for node in nodes if node["path"] not in shown]
    for node in nodes:
        if node["path"] in shown:
            table.add_row(*_cells(node, tree, wide=wide))
    if not hidden:
        return table
    unhealthy = sum(live_text.state(node) not in _WELL for node in hidden)
    rest = f"{unhealthy} of them not serving" if unhealthy else "all of them serving"
    return Group(table, Text(f"and {len(hidden)} more, {rest}", style="dim"))


def _chosen(tree: TreeState, nodes: list[Mapping[str, Any]], rows: int, fresh: float) -> set[str]:
    if len(nodes) <= rows:
        return {node["path"] for node in nodes}

    def urgency(node: Mapping[str, Any]) -> tuple[bool, bool]:
        changed = bool(node["steps"]) and tree.now - node["steps"][-1][3] < fresh
        return live_text.state(node) in _WELL, not changed

    chosen: set[str] = set()
    for node in sorted(nodes, key=urgency):  # stable: equally urgent children stay in tree order
        needed = {node["path"], *ancestors(node["path"])} & {each["path"] for each in nodes}
        if len(chosen | needed) < rows:
            chosen |= needed
    return chosen


def _cells(node: Mapping[str, Any], tree: TreeState, *, wide: bool) -> Iterable[Text]:
    path, now = node["path"], tree.now
    depth = path.count("/") + 1 if path else 0
    name = Text("  " * depth + (split(path)[1] or "tree"), style="bold")
    place = live_text.state(node)
    # As on the live page, a narrow terminal shows the leaf only.
    state = Text(place if wide else place.partition(".")[2] or place, style=live_text.state_colour(place))
    if node["due"] is not None:
        state.append(f" {live_text.until(node, now)}", style="bold cyan")
    up = "" if node["since"] is None else age(max(0.0, now - node["since"]))
    yield name
    if wide:
        yield Text(node["kind"], style="dim")
    yield state
    yield Text(str(node["incarnation"] or ""))
    yield Text(up)
    yield _restarts(node.get("restarts"), wide=wide)
    if wide:
        yield Text(live_text.requests(node))


def _restarts(window: list[float] | None, *, wide: bool) -> Text:
    if not window:
        return Text("")
    used, intensity, period = window
    style = "red" if used >= intensity > 0 else "yellow" if used >= _NEAR_LIMIT * intensity > 0 else ""
    within = f" in {age(period).removesuffix(' 0 s').removesuffix(' 0 min')}" if wide else ""
    return Text(f"{used} of {intensity}{within}", style=style)


def _fault(fault: Mapping[str, Any]) -> Iterable[Text]:
    first = Text(f"{live_text.clock(fault['at'])}  ", no_wrap=True, overflow="ellipsis")
    first.append(f"{fault['class']} ", style="bold red")
    first.append(f"{fault['child']} #{fault['incarnation']} ", style="bold")
    first.append(fault["root"])
    yield first
    second = Text(" " * 10, no_wrap=True, overflow="ellipsis")
    outcome = live_text.outcome(fault)
    if outcome:
        second.append(f"{outcome}  ", style="green" if fault["recovered"] is not None else "red")
    second.append(live_text.decision(fault), style="dim")
    yield second
