"""How guards and changes of flags read, in every format."""

from __future__ import annotations

from statecharts.chart import Transition

__all__ = ["change_in_words", "guard_in_words"]


def guard_in_words(transition: Transition) -> str:
    """Say when a transition is enabled: ``"FAULTED and not STALE"``, or nothing."""
    return " and ".join([*transition.when, *(f"not {flag}" for flag in transition.unless)])


def change_in_words(transition: Transition) -> str:
    """Say what a transition does to the flags: ``"set STALE, clear FAULTED"``, or nothing."""
    sets = [f"set {flag}" for flag in transition.sets]
    clears = [f"clear {flag}" for flag in transition.clears]
    return ", ".join(sets + clears)
