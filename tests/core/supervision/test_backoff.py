"""Waiting before restarts: bounded, jittered, reproducible; and the no-progress rule."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor.specs import Backoff, ChildSpec, Jitter, Strategy, SupervisorSpec
from rayvisor.specs.backoff import delay
from rayvisor.testing import NOTHING, VirtualTree, fails

LONG = 100_000.0


def tree(backoff: Backoff | None, *others: str, **flags: Any) -> VirtualTree:
    flags = {"intensity": 50, "period": LONG} | flags
    more = {name: flags.pop(name) for name in ("crash_loop_limit", "retry_first_start") if name in flags}
    outcomes = flags.pop("outcomes", None)
    children = [ChildSpec(id="a", start=NOTHING, backoff=backoff, start_timeout=1.0, **more)]
    children += [ChildSpec(id=name, start=NOTHING) for name in others]
    made = VirtualTree(SupervisorSpec(children=children, **flags), outcomes=outcomes)
    made.take()
    return made


def waits(sup: VirtualTree, times: int) -> list[float]:
    """Crash it again and again; return how long it is down each time."""
    found = []
    for _ in range(times):
        sup.crash("a")
        found.append(sup.next_timer() or 0.0)
        sup.advance(found[-1])
        assert sup.leaf("a") == "SERVING"
    return found


# --- delays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", list(Jitter))
@pytest.mark.parametrize("seed", range(5))
def test_every_delay_is_within_the_bounds_of_its_jitter(jitter: Jitter, seed: int) -> None:
    backoff = Backoff(initial=1.0, factor=2.0, maximum=10.0, jitter=jitter, first_delay_zero=False)
    random, previous = Random(seed), 0.0
    for attempt, ceiling in enumerate((1.0, 2.0, 4.0, 8.0, 10.0, 10.0)):
        here = delay(backoff, attempt, previous, random)
        low, high = {
            Jitter.NONE: (ceiling, ceiling),
            Jitter.FULL: (0.0, ceiling),
            Jitter.EQUAL: (ceiling / 2, ceiling),
            Jitter.DECORRELATED: (1.0, min(10.0, max(1.0, previous * 3))),
        }[jitter]
        assert low <= here <= high
        previous = here


@pytest.mark.parametrize("jitter", [Jitter.FULL, Jitter.EQUAL, Jitter.DECORRELATED])
def test_the_same_seed_gives_the_same_delays_and_another_seed_others(jitter: Jitter) -> None:
    def delays(seed: int) -> list[float]:
        sup = VirtualTree(
            SupervisorSpec(
                intensity=20,
                period=LONG,
                children=[
                    ChildSpec(
                        id="a",
                        start=NOTHING,
                        start_timeout=1.0,
                        backoff=Backoff(initial=1.0, maximum=60.0, jitter=jitter),
                    )
                ],
            ),
            seed=seed,
        )
        return waits(sup, 6)

    assert delays(1) == delays(1)
    assert delays(1) != delays(2)


def test_the_first_restart_is_at_once_and_the_delays_grow_from_the_second() -> None:
    sup = tree(Backoff(initial=1.0, maximum=5.0, jitter=Jitter.NONE))
    assert waits(sup, 5) == [0.0, 1.0, 2.0, 4.0, 5.0]


def test_the_first_restart_waits_where_that_is_asked_for() -> None:
    sup = tree(Backoff(initial=1.0, maximum=5.0, jitter=Jitter.NONE, first_delay_zero=False))
    assert waits(sup, 3) == [1.0, 2.0, 4.0]


def test_a_child_waits_in_backoff_and_starts_when_the_delay_is_over_not_before() -> None:
    sup = tree(Backoff(initial=2.0, maximum=2.0, jitter=Jitter.NONE, first_delay_zero=False))
    sup.crash("a")
    sup.advance(1.999)
    assert sup.leaf("a") == "BACKOFF"
    assert sup.take() == []
    sup.advance(0.001)
    assert sup.take() == ["start a 2"]


def test_serving_for_a_while_resets_the_delays() -> None:
    sup = tree(Backoff(initial=1.0, maximum=8.0, jitter=Jitter.NONE, reset_after=60.0))
    waits(sup, 3)
    sup.advance(59.0)
    assert waits(sup, 1) == [4.0]
    sup.advance(60.0)
    assert waits(sup, 2) == [0.0, 1.0]


def test_max_retries_bounds_the_restarts_in_a_row() -> None:
    sup = tree(Backoff(initial=1.0, maximum=1.0, max_retries=3))
    waits(sup, 3)
    sup.crash("a")
    assert sup.ended is not None
    assert sup.ended.gave_up == "3 restarts in a row, backoff.max_retries is 3"


def test_the_timeout_bounds_the_time_since_the_first_fault_in_a_row() -> None:
    sup = tree(Backoff(initial=4.0, factor=1.0, maximum=4.0, jitter=Jitter.NONE, timeout=9.0))
    assert waits(sup, 3) == [0.0, 4.0, 4.0]
    sup.crash("a")
    assert sup.ended is not None
    assert "backoff.timeout=9" in sup.ended.gave_up


def test_a_failed_attempt_is_counted_when_it_fails_and_waits_longer() -> None:
    sup = tree(Backoff(initial=1.0, maximum=8.0, jitter=Jitter.NONE), intensity=3)
    sup.outcomes["a"] = [fails(), fails(), fails()]
    sup.crash("a")
    assert sup.next_timer() == 1.0
    sup.advance(1.0)
    assert sup.next_timer() == 2.0
    sup.advance(2.0)
    assert sup.ended is not None  # the fourth in the window, without waiting for another delay


def test_independent_restarts_run_side_by_side() -> None:
    sup = tree(Backoff(initial=5.0, maximum=5.0, jitter=Jitter.NONE, first_delay_zero=False), "b")
    sup.crash("a")
    sup.crash("b")
    assert sup.take() == ["start b 2"]
    sup.advance(5.0)
    assert sup.take() == ["start a 2"]


def test_a_group_is_stopped_at_once_and_waits_down() -> None:
    slow = Backoff(initial=3.0, maximum=3.0, jitter=Jitter.NONE, first_delay_zero=False)
    sup = tree(slow, "b", strategy=Strategy.ONE_FOR_ALL)
    sup.crash("a")
    assert sup.take() == ["stop b 1"]
    assert (sup.leaf("a"), sup.leaf("b")) == ("BACKOFF", "BACKOFF")
    sup.advance(3.0)
    assert sup.take() == ["start a 2", "start b 2"]
    assert len(sup.core.root.window) == 1


def test_a_siblings_death_takes_over_the_waiting_restart() -> None:
    slow = Backoff(initial=3.0, maximum=3.0, jitter=Jitter.NONE, first_delay_zero=False)
    children = [
        ChildSpec(id="z", start=NOTHING),
        ChildSpec(id="a", start=NOTHING, backoff=slow, start_timeout=1.0),
    ]
    sup = VirtualTree(
        SupervisorSpec(strategy=Strategy.REST_FOR_ONE, intensity=50, period=LONG, children=children)
    )
    sup.crash("a")
    sup.take()
    sup.crash("z")
    assert sup.take() == ["start z 2", "start a 2"]
    sup.advance(10.0)
    assert sup.take() == []


# --- no progress ----------------------------------------------------------------------------------


def test_incarnations_that_do_no_work_end_the_child_whatever_the_window_says() -> None:
    sup = tree(None, crash_loop_limit=3)
    for _ in range(3):
        sup.advance(1000.0)
        sup.crash("a")
    assert sup.ended is not None
    assert sup.ended.gave_up == "3 incarnations in a row died before doing useful work"
    assert sup.leaf("a") == "EXHAUSTED"


def test_useful_work_begins_the_count_anew() -> None:
    sup = tree(None, crash_loop_limit=2)
    sup.crash("a")
    sup.feed(m.Progressed("a", 2))
    sup.crash("a")
    sup.crash("a")
    assert sup.ended is None
    sup.crash("a")
    assert sup.ended is not None


def test_progress_of_an_earlier_incarnation_does_not_count() -> None:
    sup = tree(None, crash_loop_limit=2)
    sup.crash("a")
    sup.feed(m.Progressed("a", 1))
    sup.crash("a")
    assert sup.ended is not None


def test_failed_starts_are_incarnations_without_progress() -> None:
    sup = tree(None, crash_loop_limit=3)
    sup.outcomes["a"] = [fails(), fails()]
    sup.crash("a")
    assert sup.ended is not None
    assert sup.core.now == 0.0


# --- first starts ---------------------------------------------------------------------------------


def test_a_first_start_is_not_retried_unless_that_is_asked_for() -> None:
    sup = tree(None, outcomes={"a": [fails()]})
    assert sup.ended is not None
    assert not sup.ended.started


def test_a_first_start_is_retried_with_the_backoff_where_that_is_asked_for() -> None:
    sup = tree(
        Backoff(initial=1.0, maximum=9.0, jitter=Jitter.NONE),
        "b",
        outcomes={"a": [fails(), fails()]},
        retry_first_start=True,
    )
    assert sup.leaf("a") == "BACKOFF"
    sup.advance(1.0)
    assert sup.take() == ["start a 3", "start b 1", "tree up"]


def test_a_first_start_that_never_succeeds_exhausts_the_intensity() -> None:
    sup = tree(None, outcomes={"a": [fails()] * 9}, retry_first_start=True, intensity=2)
    assert sup.ended is not None
    assert not sup.ended.started
    assert len(sup.of(m.Start)) == 3
