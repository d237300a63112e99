"""No order of events, sensible or not, makes the scheduler raise, or end a request twice or never."""

from __future__ import annotations

import pytest

from tests.core.requests.fuzz import Fuzz


@pytest.mark.parametrize("seed", range(6))
def test_random_events_never_raise_and_every_request_ends_once(seed: int) -> None:
    Fuzz(seed).run(6000)
