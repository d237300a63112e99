"""Renderers registered by a test are gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from statecharts._registry import CHART_RENDERERS, TREE_RENDERERS


@pytest.fixture
def own_registry() -> Iterator[None]:
    before = dict(CHART_RENDERERS), dict(TREE_RENDERERS)
    yield
    for registry, renderers in zip((CHART_RENDERERS, TREE_RENDERERS), before, strict=True):
        registry.clear()
        registry.update(renderers)
