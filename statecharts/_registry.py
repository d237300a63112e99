"""The renderers by the name of their format.

Renderers register themselves here and charts look them up, so neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["CHARTS", "NOTEBOOK", "TREES", "register"]

CHARTS: dict[str, Callable[[Any], str]] = {}
"""Renderers of a ``Drawing``."""
TREES: dict[str, Callable[[Any], str]] = {}
"""Renderers of a ``Tree``."""
NOTEBOOK: dict[str, Callable[[Any], dict[str, str]]] = {}
"""How a ``Chart`` shows itself in a notebook; drawings, which are made of charts, register it."""


def register(renderers: dict[str, Callable[[Any], str]], name: str, renderer: Callable[[Any], str]) -> None:
    """Add a renderer; raise ValueError when the name is empty or taken."""
    if not name:
        raise ValueError("name='': a format needs a name")
    if name in renderers:
        raise ValueError(f"name={name!r}: there is already a renderer of this name; choose another one")
    renderers[name] = renderer
