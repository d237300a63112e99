"""Renderers by the name of their format.

Renderers register here and charts look them up here, so neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["CHART_RENDERERS", "NOTEBOOK_VIEWS", "TREE_RENDERERS", "register"]

CHART_RENDERERS: dict[str, Callable[[Any], str]] = {}
"""Renderers of a ``Drawing``."""
TREE_RENDERERS: dict[str, Callable[[Any], str]] = {}
"""Renderers of a ``Tree``."""
NOTEBOOK_VIEWS: dict[str, Callable[[Any], dict[str, str]]] = {}
"""``"chart"``: makes the notebook view of a ``Chart``. Registered by ``Drawing``, which imports ``Chart``."""


def register(renderers: dict[str, Callable[[Any], str]], name: str, renderer: Callable[[Any], str]) -> None:
    """Add a renderer; raise ValueError if the name is empty or already registered."""
    if not name:
        raise ValueError("name='': a format needs a name")
    if name in renderers:
        raise ValueError(f"name={name!r}: a renderer of this name is already registered; choose another name")
    renderers[name] = renderer
