"""Compares two traces, and identifies known defects of OTP."""

from __future__ import annotations

import json
from bisect import insort
from itertools import zip_longest
from typing import Any

__all__ = ["difference", "is_known"]

_ORDER = {"init": 0, "start": 1, "stopping": 2, "exit": 3}

_KNOWN = frozenset({"simple_gated_terminate"})
"""OTP permanently counts one instance too few after a cancelled restart (matrix D8)."""


def is_known(file: dict[str, Any]) -> bool:
    """Return whether a difference is intended: OTP itself crashes, or counts in whole seconds."""
    steps = file["scenario"]["steps"]
    return (
        file["name"] in _KNOWN
        or any(step["op"] == "align" for step in steps)
        or "function_clause" in json.dumps(file["trace"])
    )


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the first difference of two traces; empty if they agree."""
    for number, (wanted, got) in enumerate(zip_longest(expected["steps"], found["steps"])):
        if wanted is None or got is None:
            return f"step {number}: OTP {'ended' if wanted is None else 'continued'}, the core did not"
        where = f"step {number} {json.dumps(wanted['op'])}"
        if difference := _events(wanted["events"], got["events"]):
            return f"{where}: {difference}"
        for part in ("result", "tree"):
            if wanted[part] != got[part]:
                return f"{where}: {part}: OTP {json.dumps(wanted[part])}, core {json.dumps(got[part])}"
    if expected["final"] != found["final"]:
        return f"final: OTP {json.dumps(expected['final'])}, core {json.dumps(found['final'])}"
    return ""


def _events(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    for number, (wanted, got) in enumerate(zip_longest(_in_order(expected), _in_order(found))):
        if wanted != got:
            return f"event {number}: OTP {json.dumps(wanted)}, core {json.dumps(got)}"
    return ""


def _in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort events whose order OTP leaves open: parallel stops in place, orphans at the end."""
    in_order = [event for event in events if not event.get("async")]
    ordered: list[dict[str, Any]] = []
    first = 0
    for event, before in zip(in_order, [{}, *in_order], strict=False):
        if event.get("par") and before.get("par"):
            insort(ordered, event, lo=first, key=_rank)
        else:
            first = len(ordered)
            ordered.append(event)
    return ordered + sorted((event for event in events if event.get("async")), key=_rank)


def _rank(event: dict[str, Any]) -> tuple[str, int, int, str]:
    return event["path"], event["n"], _ORDER[event["ev"]], json.dumps(event, sort_keys=True)
