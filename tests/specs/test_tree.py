"""A spec that cannot work is refused when it is made, with the field and the value in the message."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from rayvisor.errors import SpecError
from rayvisor.specs import (
    AutoShutdown,
    Backoff,
    ChildSpec,
    Jitter,
    Restart,
    Shutdown,
    Strategy,
    SupervisorSpec,
)
from rayvisor.specs.backoff import longest
from rayvisor.specs.tree import LEVELS_MAX
from rayvisor.testing import NOTHING


def child(name: Any = "a", **more: Any) -> ChildSpec:
    return ChildSpec(id=name, start=more.pop("start", NOTHING), **more)


def spec(**more: Any) -> SupervisorSpec:
    return SupervisorSpec(**more)


def nested(levels: int) -> SupervisorSpec:
    """Return a spec of so many levels of supervisors."""
    made = spec(children=[child()])
    for _ in range(levels - 1):
        made = spec(children=[child(start=made)])
    return made


BAD: list[tuple[Callable[[], object], str, str]] = [
    (lambda: spec(intensity=-1), "intensity=-1", "invalid_intensity"),
    (lambda: spec(intensity=1.5), "intensity=1.5", "invalid_intensity"),
    (lambda: spec(intensity=True), "intensity=True", "invalid_intensity"),
    (lambda: spec(period=0), "period=0", "invalid_period"),
    (lambda: spec(period=-2.0), "period=-2.0", "invalid_period"),
    (lambda: spec(period="5"), "period='5'", "invalid_period"),
    (lambda: spec(strategy="all_for_one"), "strategy='all_for_one'", "invalid_strategy"),
    (lambda: spec(auto_shutdown="sometimes"), "auto_shutdown='sometimes'", "invalid_auto_shutdown"),
    (lambda: spec(max_concurrent_starts=0), "max_concurrent_starts=0", "invalid_start_limit"),
    (lambda: spec(children=["a"]), "children[0]='a'", ""),
    (lambda: spec(children=[child(), child()]), "children[1].id='a'", "duplicate_child_name"),
    (lambda: spec(strategy="simple_one_for_one"), "children=()", "bad_start_spec"),
    (lambda: child(""), "id=''", "invalid_child_spec"),
    (lambda: child("a/b"), "id='a/b'", "invalid_child_spec"),
    (lambda: child(7), "id=7", "invalid_child_spec"),
    (lambda: child("a\ud800"), "id='a\\ud800'", "invalid_child_spec"),
    (lambda: child("\udfff"), "id='\\udfff'", "invalid_child_spec"),
    (lambda: nested(LEVELS_MAX + 1), "children='101 levels'", ""),
    (lambda: child(start=len), "start=<built-in function len>", "invalid_mfa"),
    (lambda: child(restart="always"), "restart='always'", "invalid_restart_type"),
    (lambda: child(shutdown=-5), "shutdown=-5", "invalid_shutdown"),
    (lambda: child(shutdown="soon"), "shutdown='soon'", "invalid_shutdown"),
    (lambda: child(shutdown=math.nan), "shutdown=nan", "invalid_shutdown"),
    (lambda: child(shutdown=Shutdown(-1.0)), "shutdown=Shutdown(seconds=-1.0)", "invalid_shutdown"),
    (lambda: child(backoff=3.0), "backoff=3.0", ""),
    (lambda: child(start_timeout=0), "start_timeout=0", ""),
    (lambda: child(crash_loop_limit=0), "crash_loop_limit=0", "invalid_no_progress"),
    (lambda: Backoff(initial=-1.0), "backoff.initial=-1.0", ""),
    (lambda: Backoff(factor=0.5), "backoff.factor=0.5", ""),
    (lambda: Backoff(initial=5.0, maximum=4.0), "backoff.maximum=4.0", ""),
    (lambda: Backoff(jitter="some"), "backoff.jitter='some'", "invalid_backoff.jitter"),  # type: ignore[arg-type]
    (lambda: Backoff(max_retries=0), "backoff.max_retries=0", "invalid_backoff.max_retries"),
    (lambda: Backoff(timeout=-1.0), "backoff.timeout=-1.0", ""),
    (lambda: Backoff(reset_after=math.nan), "backoff.reset_after=nan", ""),
    (
        lambda: spec(children=[child(significant=True, restart="transient")]),
        "children['a'].significant=True",
        "bad_combination",
    ),
    (
        lambda: spec(children=[child(significant=True)], auto_shutdown="any_significant"),
        "children['a'].significant=True",
        "bad_combination",
    ),
]


@pytest.mark.parametrize(("make", "head", "term"), BAD, ids=[head for _, head, _ in BAD])
def test_a_bad_value_is_refused_by_field_and_value(make: Callable[[], object], head: str, term: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value).startswith(head + ": ")
    assert caught.value.term == term
    assert caught.value.problem


def test_a_backoff_that_could_never_trip_the_window_is_refused_with_the_way_out() -> None:
    patient = child(backoff=Backoff(initial=1.0, maximum=30.0), start_timeout=60.0)
    with pytest.raises(SpecError) as caught:
        spec(children=[patient], intensity=3, period=100.0)
    assert caught.value.field == "children['a'].backoff"
    assert "could never trip the window" in str(caught.value)
    # 3 delays of up to 1, 2 and 4 s after the first restart, and 3 starts of up to 60 s
    assert "lengthen period to at least 187" in str(caught.value)
    spec(children=[patient], intensity=3, period=187.0)


def test_a_backoff_bound_by_its_own_maximum_of_zero_is_no_backoff() -> None:
    spec(children=[child(backoff=Backoff(initial=0.0, maximum=0.0))], intensity=3, period=1.0)


def test_defaults_are_those_of_otp() -> None:
    made = spec(children=[child(), ChildSpec(id="s", start=SupervisorSpec())])
    assert (made.strategy, made.intensity, made.period) == (Strategy.ONE_FOR_ONE, 1, 5.0)
    assert made.auto_shutdown is AutoShutdown.NEVER
    worker, inner = made.children
    assert (worker.restart, worker.ending, worker.significant) == (Restart.PERMANENT, Shutdown(5.0), False)
    assert inner.ending is Shutdown.INFINITY or inner.ending == Shutdown.INFINITY
    assert (worker.supervisor, inner.supervisor) == (False, True)


def test_words_do_where_enums_do() -> None:
    assert child(restart="temporary").restart is Restart.TEMPORARY
    assert Backoff(jitter="equal").jitter is Jitter.EQUAL  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shutdown", "says"),
    [(None, "5 s"), (2, "2 s"), (0, "0 s"), (Shutdown.BRUTAL_KILL, "brutal_kill"), (math.inf, "infinity")],
)
def test_every_way_to_write_a_shutdown(shutdown: Any, says: str) -> None:
    assert str(child(shutdown=shutdown).ending) == says


def test_delays_do_not_overflow() -> None:
    assert Backoff(initial=1.0, factor=10.0, maximum=60.0).ceiling(10_000) == 60.0


def test_as_many_levels_of_supervisors_as_there_may_be_are_accepted() -> None:
    assert nested(LEVELS_MAX).children[0].supervisor


@pytest.mark.parametrize("name", ["\U0001f600", " ", "é", "x" * 300])
def test_other_unusual_names_are_accepted(name: str) -> None:
    assert child(name).id == name


@pytest.mark.parametrize("factor", [1.0, 1.0000003, 1.001, 2.0])
@pytest.mark.parametrize("first_delay_zero", [False, True])
def test_the_sum_of_delays_is_that_of_the_ceilings(factor: float, first_delay_zero: bool) -> None:  # noqa: FBT001 - parametrized
    backoff = Backoff(initial=1.0, factor=factor, maximum=3.0, first_delay_zero=first_delay_zero)
    for count in (0, 1, 2, 999, 1001, 2500, 20_000):
        assert longest(backoff, 1, count) == pytest.approx(sum(backoff.ceilings(count + 1)[1:]))


@pytest.mark.parametrize("factor", [1.0, 1.0000003, 2.0])
def test_an_intensity_of_ten_million_costs_no_more_than_a_small_one(factor: float) -> None:
    tracemalloc.start()
    try:
        began = time.process_time()
        SupervisorSpec(
            intensity=10**7,
            period=1e9,
            children=[ChildSpec(id="a", start=NOTHING, backoff=Backoff(factor=factor), start_timeout=1.0)],
        )
        seconds = time.process_time() - began
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert seconds < 1.0
