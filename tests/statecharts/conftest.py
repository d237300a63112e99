"""Renderers registered by a test are gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from statecharts._registry import CHARTS, TREES


@pytest.fixture
def own_registry() -> Iterator[None]:
    before = dict(CHARTS), dict(TREES)
    yield
    for registry, renderers in zip((CHARTS, TREES), before, strict=True):
        registry.clear()
        registry.update(renderers)
