"""Formats the JSON forms of records and trees as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from rayvisor._core.paths import split
from rayvisor._edges.live import text as live_text

__all__ = ["record_line", "tree_lines"]

_HEADS = ("NAME", "KIND", "STATE", "#", "HOST", "UP", "RESTARTS", "REQUESTS")


def record_line(form: Mapping[str, Any]) -> str:
    """Return a record as a line: the time of day, the subject, and the event."""
    form = live_text.escaped_form(form)
    moment = float(form["time"])
    clock = f"{live_text.clock(moment)}.{int(moment % 1 * 1000):03d}"
    return f"{clock}  {_subject(form):<14} {_TEXTS.get(form['record'], _generic)(form)}"


def _subject(form: Mapping[str, Any]) -> str:
    about = form.get("fault") or form
    if "incarnation" in about:
        return f"{about['child']} #{about['incarnation']}"
    return str(about.get("child") or about.get("path") or "tree")


def _changed(form: Mapping[str, Any]) -> str:
    if form["before"] == form["after"]:
        return f"{_coloured(form['after'])} ({form['event']})"
    return f"{_coloured(form['before'])} -> {_coloured(form['after'])} ({form['event']})"


def _fault(form: Mapping[str, Any]) -> str:
    fault = form["fault"]
    log = f"; log: {fault['log_file']}" if fault["log_file"] else ""
    return click.style(
        f"FAULT {fault['root']} ({fault['fault_class']}, while {fault['phase']}{log})", fg="red"
    )


def _decided(form: Mapping[str, Any]) -> str:
    return f"decided: {live_text.decided(form['decision'], form)}"


def _progress(form: Mapping[str, Any]) -> str:
    return f"{form['phase']} {form['detail']} ({form['elapsed']:.1f} s)".replace("  ", " ")


def _moved(form: Mapping[str, Any]) -> str:
    return f"supervisor {form['state']}" + (f" ({form['why']})" if form["why"] else "")


def _missed(form: Mapping[str, Any]) -> str:
    return click.style(
        f"{form['count']} records were dropped here because the reader was too slow", fg="yellow"
    )


def _generic(form: Mapping[str, Any]) -> str:
    rest = (
        f"{name}={value}" for name, value in form.items() if name not in _KNOWN and value not in ("", None)
    )
    return " ".join((form["record"], *rest))


_KNOWN = frozenset({"record", "time", "at", "child", "incarnation", "path"})
_TEXTS = {
    "StateChanged": _changed,
    "FaultSeen": _fault,
    "DecisionMade": _decided,
    "StartProgressed": _progress,
    "SupervisorStateChanged": _moved,
    "RecordsMissed": _missed,
}


def tree_lines(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each child of a tree, and further lines for a server's URL and the last fault."""
    tree = live_text.escaped_form(tree)
    rows = [(_HEADS, "", {}), *_rows(tree, "", root=True)]
    widths = [max(len(cells[column]) for cells, _, _ in rows) for column in range(len(_HEADS))]
    for cells, indent, node in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[2] = padded[2].replace(cells[2], _coloured(cells[2]), 1) if cells[2] else padded[2]
        yield "  ".join(padded).rstrip()
        if node.get("url"):
            yield f"{indent}at {node['url']}"
        if node.get("fault") is not None:
            yield f"{indent}last fault: {_last(node['fault'])}"


def _rows(
    node: Mapping[str, Any], indent: str, *, root: bool = False, last: bool = True
) -> Iterator[tuple[tuple[str, ...], str, Mapping[str, Any]]]:
    branch = "" if root else indent + ("└─ " if last else "├─ ")
    below = indent if root else indent + ("   " if last else "│  ")
    name = (node["path"] or "tree") if root else split(node["path"])[1]
    children = node["children"]
    bars = below + ("│  " if children else "   ")
    yield (branch + name, *_cells(node)), bars, node
    for number, child in enumerate(children):
        yield from _rows(child, below, last=number == len(children) - 1)


def _cells(node: Mapping[str, Any]) -> tuple[str, ...]:
    restarts = node["restarts"]
    return (
        node["kind"],
        live_text.state(node),
        str(node["incarnation"] or ""),
        "" if node["epoch"] is None else str(node["epoch"]),
        "" if node["uptime"] is None else live_text.age(node["uptime"]),
        "" if restarts is None else f"{restarts['used']} of {restarts['intensity']}",
        live_text.requests(node),
    )


def _last(fault: Mapping[str, Any]) -> str:
    log = f"; log: {fault['log_file']}" if fault["log_file"] else ""
    about = (
        f"{fault['fault_class']}, incarnation {fault['incarnation']}, {live_text.age(fault['age'])} ago{log}"
    )
    return click.style(fault["root"], fg="red") + f" ({about})"


def _coloured(state: str) -> str:
    return click.style(state, fg=live_text.state_colour(state) or None)
