"""Nodes, faults and figures in words, as the live page has them. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rayvisor.cli._lines import age

__all__ = [
    "brief",
    "clock",
    "decision",
    "figures",
    "outcome",
    "requests",
    "state",
    "state_colour",
    "until",
]

Form = Mapping[str, Any]

_COLOURS = {
    "ALIVE": "green",
    "RUNNING": "green",
    "PAUSED": "yellow",
    "RESTARTING": "cyan",
    "STARTING": "cyan",
    "STOPPING": "cyan",
    "DEAD": "red",
}
_LEAVES = {"SUSPECT": "yellow", "FAULTED": "yellow", "COMPLETED": "", "STOPPED": ""}
_FIGURES = {
    "rate": "tokens/s",
    "in_flight": "in flight",
    "waiting": "waiting",
    "replayed": "replayed",
    "finished": "finished",
    "failed": "lost",
}


def state(node: Form) -> str:
    """State, leaf and the holds that the leaf does not show."""
    place = f"{node['state']}.{node['leaf']}" if node["leaf"] else str(node["state"])
    return " +".join((place, *(hold for hold in node["holds"] if hold != node["leaf"])))


def state_colour(place: str) -> str:
    """Name the colour of a state."""
    upper, _, leaf = place.partition(".")
    return _LEAVES.get(leaf, _COLOURS.get(upper, ""))


def until(node: Form, now: float) -> str:
    """How long a child that is down still waits."""
    return "" if node["due"] is None else f"in {max(0.0, node['due'] - now):.1f} s"


def requests(node: Form) -> str:
    """What a pool has to do, or an engine has in flight."""
    asked = node.get("requests")
    if not asked:
        return ""
    waiting = f", {asked['waiting']} waiting" if node["kind"] == "engine_pool" else ""
    return f"{asked['in_flight']} in flight{waiting}"


def figures(sums: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Name, value in words and key of what pools have done."""
    return [(words, f"{sums[key]:.0f}", key) for key, words in _FIGURES.items()]


def decision(fault: Form) -> str:
    """What was decided, and why."""
    said = fault["decision"]
    if said is None:
        return "no decision yet"
    when = f"after {said['delay']:.2f} s" if said["delay"] else "at once"
    used = f"{said['restarts']} of {said['intensity']} restarts used"
    return f"decided: {said['what'].replace('_', ' ')} {when} ({said['why']}; {used})"


def outcome(fault: Form) -> str:
    """What became of the child; nothing while that is open."""
    if fault["recovered"] is not None:
        return f"well again after {brief(fault['recovered'])}"
    return "it does not come back" if fault["ended"] else ""


def brief(seconds: float) -> str:
    """A short time."""
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10.0 else age(seconds)  # noqa: PLR2004 - from there on tenths tell nothing


def clock(at: float) -> str:
    """The time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))
