"""How many attempts, and with which delays: decided without a clock."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rayvisor as rv
from rayvisor._core.tasks.attempts import Attempts, Limits


def delays(backoff: rv.Backoff, *, attempts: int = 6, seed: int = 1) -> list[float]:
    tried = Attempts(Limits(max_attempts=attempts, backoff=backoff), Random(seed), 0.0)
    found = iter(lambda: tried.failed("no", 0.0), None)
    return list(found)


def test_as_many_attempts_are_made_as_are_allowed_and_each_but_the_last_is_followed_by_a_delay() -> None:
    backoff = rv.Backoff(initial=6.0, maximum=8.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    assert delays(backoff, attempts=3) == [6.0, 8.0]
    assert delays(backoff, attempts=1) == []


@given(
    jitter=st.sampled_from(rv.Jitter),
    initial=st.floats(0.0, 10.0),
    factor=st.floats(1.0, 5.0),
    room=st.floats(0.0, 50.0),
    seed=st.integers(0, 1000),
)
def test_no_delay_is_longer_than_the_maximum_and_a_seed_repeats_them_all(
    jitter: rv.Jitter, initial: float, factor: float, room: float, seed: int
) -> None:
    backoff = rv.Backoff(
        initial=initial, factor=factor, maximum=initial + room, jitter=jitter, first_delay_zero=False
    )
    found = delays(backoff, seed=seed)
    assert len(found) == 5
    assert all(0.0 <= delay <= backoff.maximum for delay in found)
    assert delays(backoff, seed=seed) == found
    if jitter is rv.Jitter.EQUAL:
        assert all(delay >= ceiling / 2 for delay, ceiling in zip(found, backoff.ceilings(5), strict=True))


@pytest.mark.parametrize("jitter", [rv.Jitter.FULL, rv.Jitter.EQUAL, rv.Jitter.DECORRELATED])
def test_many_that_fail_together_do_not_come_back_together(jitter: rv.Jitter) -> None:
    backoff = rv.Backoff(initial=1.0, maximum=9.0, jitter=jitter, first_delay_zero=False)
    seconds = {delays(backoff, seed=seed)[1] for seed in range(50)}
    assert len(seconds) == 50


def test_no_attempt_begins_after_the_elapsed_time() -> None:
    backoff = rv.Backoff(initial=2.0, maximum=2.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    tried = Attempts(Limits(timeout=10.0, backoff=backoff), Random(1), now=100.0)
    assert tried.failed("no", 105.0) == 2.0
    assert tried.failed("no", 108.0) == 2.0
    assert tried.failed("no", 108.1) is None


def test_the_bounds_of_the_backoff_hold_as_well() -> None:
    few = rv.Backoff(initial=0.0, maximum=0.0, max_retries=2)
    assert len(delays(few, attempts=9)) == 2
    short = Limits(timeout=60.0, backoff=rv.Backoff(timeout=5.0))
    assert (short.longest, short.most) == (5.0, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_attempts": 0}, "max_attempts=0: must be a whole number of attempts in all"),
        ({"max_attempts": True}, "max_attempts=True"),
        ({"max_attempts": 2.5}, "max_attempts=2.5"),
        ({"max_attempts": None}, "would never end"),
        ({"timeout": -1.0}, "timeout=-1.0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"backoff": 3.0}, "backoff=3.0: must be a Backoff"),
        ({"seed": "x"}, "seed='x'"),
        ({"retry_on": "ConnectionError"}, "retry_on='ConnectionError'"),
        ({"retry_on": ()}, r"retry_on=\(\)"),
        ({"retry_on": (1,)}, r"retry_on=\(1,\)"),
        ({"retry_on": KeyboardInterrupt}, "nothing else is ever caught"),
        ({"retry_on": None}, "retry_on=None"),
    ],
)
def test_a_value_that_cannot_work_is_refused_when_it_is_given(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(rv.SpecError, match=message):
        rv.retry(**values)  # type: ignore[call-overload]


def test_the_note_counts_all_and_shows_the_last_ones() -> None:
    tried = Attempts(Limits(max_attempts=12, backoff=rv.Backoff(initial=0.0)), Random(1), 0.0)
    for number in range(12):
        tried.failed(f"KeyError: {number}\nmore", number / 2)
    lines = tried.note().splitlines()
    assert lines[0].startswith("rayvisor.retry: 12 attempts in 5.5 s, delays 0, 0,")
    assert lines[1:3] == ["  (2 more before)", "  3. KeyError: 2"]
    assert lines[-1] == "  12. KeyError: 11"
