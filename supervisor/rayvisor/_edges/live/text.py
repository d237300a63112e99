"""Nodes, faults, decisions and figures in words, wherever they are shown on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rayvisor.status import ChildKind

__all__ = [
    "age",
    "brief",
    "clock",
    "decided",
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
    waiting = f", {asked['waiting']} waiting" if node["kind"] == ChildKind.ENGINE_POOL else ""
    return f"{asked['in_flight']} in flight{waiting}"


def figures(sums: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Name, value in words and key of what pools have done."""
    return [(words, f"{sums[key]:.0f}", key) for key, words in _FIGURES.items()]


def decision(fault: Form) -> str:
    """What was decided, and why."""
    said = fault["decision"]
    return "no decision yet" if said is None else f"decided: {decided(said['what'], said)}"


def decided(what: str, said: Form) -> str:
    """Say what was decided, when it is done, and why."""
    when = f"after {said['delay']:.2f} s" if said["delay"] else "at once"
    used = f"{said['restarts']} of {said['intensity']} restarts used"
    return f"{what.replace('_', ' ')} {when} ({said['why']}; {used})"


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


def age(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = int(seconds)
    for size, unit, small_size, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {small}"
    return f"{whole} s"
