"""Hanging and busy engines are told apart from observations, in virtual time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor._core.health.stall import HealthAction, Look, StallWatch, StartClock
from rayvisor.errors import SpecError
from rayvisor.specs import StallLimits

LIMITS = StallLimits(stall_after=10.0, step_limit=60.0, probe_interval=1.0, failure_threshold=(3, 5))
NEVER = float("-inf")


class Scene:
    """Something that is watched; time goes on from look to look."""

    def __init__(self, limits: StallLimits = LIMITS) -> None:
        self.now = 0.0
        self.progressed = NEVER
        self.waiting_since = 0.0
        self.watch = StallWatch(limits, 0.0)

    def look(self, after: float | None = None, **seen: Any) -> HealthAction:
        """Look at the moment at which the watch wants to."""
        self.now = self.watch.next_look(self.now) if after is None else self.now + after
        waiting = seen.pop("waiting", 1)
        return self.watch.look(
            Look(self.now, self.progressed, waiting, seen.pop("since", self.waiting_since), **seen)
        )

    def until(self, wanted: HealthAction, most: int = 1000, **seen: Any) -> list[HealthAction]:
        verdicts = []
        for _ in range(most):
            verdicts.append(self.look(**seen))
            if verdicts[-1] is wanted:
                return [each for each in verdicts if each is not HealthAction.NOTHING]
        raise AssertionError(f"never {wanted}: {verdicts}")


def test_who_does_nothing_though_work_waits_is_suspect_after_k_misses_and_stalled_at_the_limit() -> None:
    scene = Scene()
    assert scene.until(HealthAction.SUSPECT) == [HealthAction.SUSPECT]
    assert scene.now == 3.0
    assert scene.until(HealthAction.STALLED) == [HealthAction.STALLED]
    assert scene.now == 10.0
    assert scene.watch.silent == 10.0
    assert scene.look() is HealthAction.NOTHING  # said once


def test_one_token_makes_a_suspect_clear_again_and_all_is_forgotten() -> None:
    scene = Scene()
    scene.until(HealthAction.SUSPECT)
    scene.progressed = scene.now + 0.5
    assert scene.look() is HealthAction.CLEAR
    assert scene.until(HealthAction.SUSPECT) == [HealthAction.SUSPECT]
    assert scene.now == pytest.approx(scene.progressed + 3.0, abs=1.0)


def test_who_computes_is_given_until_the_step_limit_and_is_suspect_at_half_of_it() -> None:
    scene = Scene()
    assert scene.until(HealthAction.SUSPECT, load=1.0) == [HealthAction.SUSPECT]
    assert scene.now == 30.0
    assert scene.until(HealthAction.STALLED, load=1.0) == [HealthAction.STALLED]
    assert scene.now == 60.0


@pytest.mark.parametrize(
    ("computing", "stalled_at"),
    [
        pytest.param(20, 25.0, id="late: half of the usual time from then on"),
        pytest.param(4, 10.0, id="after a spin before it goes to sleep: no time is earned"),
    ],
)
def test_who_stops_computing_is_stalled(computing: int, stalled_at: float) -> None:
    scene = Scene()
    for _ in range(computing):
        assert scene.look(load=0.9) is HealthAction.NOTHING
    assert scene.until(HealthAction.STALLED, load=0.1) == [HealthAction.SUSPECT, HealthAction.STALLED]
    assert scene.now == stalled_at


def test_what_partners_of_a_stopped_process_burn_earns_no_time() -> None:
    scene = Scene()
    assert scene.until(HealthAction.STALLED, load=2.0, stopped=True) == [
        HealthAction.SUSPECT,
        HealthAction.STALLED,
    ]
    assert scene.now == 10.0


def test_an_idle_one_is_left_alone_and_its_time_counts_from_the_first_request() -> None:
    scene = Scene()
    for _ in range(100):
        assert scene.look(waiting=0) is HealthAction.NOTHING
    scene.waiting_since = scene.now + 0.4
    assert scene.until(HealthAction.STALLED, most=20) == [HealthAction.SUSPECT, HealthAction.STALLED]
    assert scene.now == pytest.approx(scene.waiting_since + 10.0)


def test_an_idle_one_with_a_stopped_process_is_probed_and_judged_by_its_probe() -> None:
    scene = Scene()
    assert scene.look(waiting=0, stopped=True) is HealthAction.PROBE
    scene.waiting_since = scene.now
    assert scene.until(HealthAction.STALLED, stopped=True) == [HealthAction.SUSPECT, HealthAction.STALLED]
    assert scene.now == pytest.approx(scene.waiting_since + 10.0)


def test_a_probe_that_is_answered_ends_the_suspicion() -> None:
    scene = Scene()
    assert scene.look(waiting=0, stopped=True) is HealthAction.PROBE
    assert scene.look(stopped=True) is HealthAction.NOTHING
    scene.progressed = scene.now + 0.1
    assert scene.look(waiting=0) is HealthAction.NOTHING
    assert scene.look(waiting=0) is HealthAction.NOTHING


def test_requests_that_go_away_unserved_leave_a_suspicion_and_the_time_goes_on() -> None:
    scene = Scene()
    scene.look()
    assert scene.look() is HealthAction.NOTHING  # the second miss
    assert scene.look(waiting=0) is HealthAction.PROBE
    assert scene.until(HealthAction.STALLED) == [HealthAction.SUSPECT, HealthAction.STALLED]
    assert scene.now == 10.0


def test_a_suspect_that_nobody_waits_for_any_more_is_probed() -> None:
    scene = Scene()
    scene.until(HealthAction.SUSPECT)
    assert scene.look(waiting=0) is HealthAction.PROBE


def test_time_in_which_nobody_looked_is_not_held_against_anybody() -> None:
    scene = Scene()
    scene.look()
    assert scene.look(after=600.0) is HealthAction.NOTHING
    assert scene.until(HealthAction.STALLED) == [HealthAction.SUSPECT, HealthAction.STALLED]
    assert scene.now == pytest.approx(609.0)


def test_nothing_is_expected_of_one_that_was_asked_to_rest() -> None:
    scene = Scene()
    for _ in range(100):
        assert scene.look(resting=True) is HealthAction.NOTHING
    assert scene.until(HealthAction.STALLED) == [HealthAction.SUSPECT, HealthAction.STALLED]
    assert scene.now == pytest.approx(110.0)


class Engine:
    """A busy engine with bad days: long prefills, a queue of 100, little of a crowded machine."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.next_token = 0.0
        self.prefill_until = 0.0
        self.queue = 100
        self.last = NEVER

    def go_on(self, now: float) -> None:
        """Bring everything that is due until now."""
        while self.queue and self.next_token <= now:
            self.last = self.next_token
            if self.random.random() < 0.05:
                self.queue -= 1
                # The next prompt is long, or there are many at once.
                self.prefill_until = self.next_token + self.random.uniform(0.1, 25.0)
                self.next_token = self.prefill_until
            self.next_token += self.random.uniform(0.01, 1.5)

    def load(self, now: float) -> float:
        """Busy while it reads a prompt; between two steps anything at all."""
        return self.random.uniform(0.6, 1.5) if now < self.prefill_until else self.random.random()


@pytest.mark.parametrize("seed", range(20))
def test_a_busy_engine_raises_no_alarm(seed: int) -> None:
    random = Random(seed)
    engine, now = Engine(random), 0.0
    watch = StallWatch(LIMITS, now)
    looks = 0
    while engine.queue and looks < 3000:
        looks += 1
        now = watch.next_look(now) + random.choice([0.0, 0.0, 0.3, 2.5])  # who looks is late at times
        engine.go_on(now)
        seen = Look(now, engine.last, engine.queue, 0.0, engine.load(now))
        assert watch.look(seen) is HealthAction.NOTHING
    assert engine.queue == 0


@given(
    stop_at=st.floats(0.0, 50.0),
    delays=st.lists(st.floats(0.0, 0.9), min_size=1, max_size=50),
    load=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_a_stall_is_found_within_its_limit_and_one_interval(
    stop_at: float, delays: list[float], load: float
) -> None:
    watch, now = StallWatch(LIMITS, 0.0), 0.0
    for number in range(10_000):
        now = watch.next_look(now) + delays[number % len(delays)]
        verdict = watch.look(Look(now, min(now, stop_at), 4, 0.0, load))
        if verdict is HealthAction.STALLED:
            break
    late = LIMITS.probe_interval + max(delays)
    assert LIMITS.stall_after <= now - stop_at + 1e-6
    assert now - stop_at <= LIMITS.stall_after + late


def test_a_start_is_given_its_deadline_from_its_last_progress_and_a_bound_for_the_whole() -> None:
    clock = StartClock(timeout=10.0, longest=40.0, now=100.0)
    assert clock.due == 110.0
    assert [clock.progressed(at) for at in (105.0, 114.0, 123.0, 132.0)] == [115.0, 124.0, 133.0, 140.0]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"stall_after": 0}, "stall_after=0: must be a number of seconds, more than 0"),
        ({"stall_after": float("inf")}, "stall_after=inf: must be a number of seconds"),
        ({"probe_interval": "1"}, "probe_interval='1': must be a number of seconds"),
        ({"step_limit": True}, "step_limit=True: must be a number of seconds"),
        ({"total_start_timeout": -1.0}, r"total_start_timeout=-1\.0: must be a number of seconds"),
        ({"failure_threshold": (4, 3)}, r"failure_threshold=\(4, 3\): must be \(k, n\)"),
        ({"failure_threshold": (0, 3)}, r"failure_threshold=\(0, 3\): must be \(k, n\)"),
        ({"failure_threshold": 3}, r"failure_threshold=3: must be \(k, n\)"),
        ({"failure_threshold": (1.0, 3)}, r"failure_threshold=\(1\.0, 3\): must be \(k, n\)"),
        ({"stall_after": 5.0}, r"stall_after=5\.0: must be at least 6 s, k=3 times probe_interval=2"),
        ({"step_limit": 20.0}, r"step_limit=20\.0: must not be below stall_after=30"),
    ],
)
def test_a_limit_that_cannot_work_is_refused_with_its_name_and_value(
    wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        StallLimits(**wrong)
