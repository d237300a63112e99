"""What every area of the tests shares: the demo's models, made once and kept between runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvisor.demo.model import ensure_model, ensure_random_model


@pytest.fixture(scope="session")
def trained_model() -> Path:
    """A Llama that knows the demo's passage by heart; sure of every token, it hides sampling mistakes."""
    return ensure_model()


@pytest.fixture(scope="session")
def random_model() -> Path:
    """A Llama of the same shape with random weights: it shows them."""
    return ensure_random_model()
