"""Formats nodes, faults, decisions and figures as text for terminals."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping
from typing import Any

from rayvisor.status import ChildKind

__all__ = [
    "age",
    "brief",
    "clock",
    "decided",
    "decision",
    "escaped",
    "escaped_form",
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
_WHOLE_SECONDS_FROM = 10.0
_LEAVES = {"SUSPECT": "yellow", "FAULTED": "yellow", "COMPLETED": "", "STOPPED": ""}
_FIGURES = {
    "rate": "tokens/s",
    "in_flight": "in flight",
    "waiting": "waiting",
    "replayed": "replayed",
    "finished": "finished",
    "failed": "lost",
}


def escaped(text: str) -> str:
    r"""Return a text in which control characters are shown as escapes, so that it cannot control a terminal.

    >>> escaped("red \x1b[31m, and\na new line")
    'red \\x1b[31m, and\\na new line'
    """
    if text.isprintable():
        return text
    # Printable characters include the space only; other spaces, such as the ideographic one, are harmless.
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else ascii(each)[1:-1]
        for each in text
    )


def escaped_form(form: Any) -> Any:
    """Return a JSON form with all its texts escaped, the names in it included."""
    if isinstance(form, str):
        return escaped(form)
    if isinstance(form, Mapping):
        return {escaped_form(name): escaped_form(each) for name, each in form.items()}
    if isinstance(form, (list, tuple)):
        return [escaped_form(each) for each in form]
    return form


def state(node: Form) -> str:
    """Return state and leaf, with the holds that the leaf does not show."""
    place = f"{node['state']}.{node['leaf']}" if node["leaf"] else str(node["state"])
    return " +".join((place, *(hold for hold in node["holds"] if hold != node["leaf"])))


def state_colour(place: str) -> str:
    """Return the name of a state's colour."""
    upper, _, leaf = place.partition(".")
    return _LEAVES.get(leaf, _COLOURS.get(upper, ""))


def until(node: Form, now: float) -> str:
    """Return the remaining delay of a waiting child."""
    return "" if node["due"] is None else f"in {max(0.0, node['due'] - now):.1f} s"


def requests(node: Form) -> str:
    """Return the requests in flight of an engine, or those in flight and waiting of a pool."""
    counts = node.get("requests")
    if not counts:
        return ""
    waiting = f", {counts['waiting']} waiting" if node["kind"] == ChildKind.ENGINE_POOL else ""
    return f"{counts['in_flight']} in flight{waiting}"


def figures(sums: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return label, formatted value and key of each figure of the pools."""
    return [(label, f"{sums[key]:.0f}", key) for key, label in _FIGURES.items()]


def decision(fault: Form) -> str:
    """Return the decision about a fault, with its reason."""
    made = fault["decision"]
    return "no decision yet" if made is None else f"decided: {decided(made['what'], made)}"


def decided(what: str, details: Form) -> str:
    """Return a decision with its delay and its reason."""
    when = f"after {details['delay']:.2f} s" if details["delay"] else "immediately"
    used = f"{details['restarts']} of {details['intensity']} restarts used"
    return f"{what.replace('_', ' ')} {when} ({details['why']}; {used})"


def outcome(fault: Form) -> str:
    """Return the outcome of a fault; empty while it is open."""
    if fault["recovered"] is not None:
        return f"recovered after {brief(fault['recovered'])}"
    return "not restarted" if fault["ended"] else ""


def brief(seconds: float) -> str:
    """Format a duration briefly."""
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < _WHOLE_SECONDS_FROM else age(seconds)


def clock(at: float) -> str:
    """Format a time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def age(seconds: float) -> str:
    """Format a duration in its two largest units."""
    whole = int(seconds)
    for size, unit, small_size, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {small}"
    return f"{whole} s"
