"""The charts follow the design."""

from __future__ import annotations

import pytest

from statecharts import Chart, Configuration, Table, compile_chart
from statecharts.lifecycles import ACTOR, CHARTS, ENGINE, SUPERVISOR, TASK

CHILDREN = pytest.mark.parametrize("chart", [ENGINE, ACTOR], ids=lambda chart: chart.name)
HOLDS = ("FAULTED", "STALE", "REQUESTED", "STANDBY")


def after(chart: Chart, events: str) -> str:
    """Return the configuration of a new object after these events, all of which must be accepted."""
    table = compile_chart(chart)
    here = table.initial
    for event in events.split():
        there = table.step(here, event)
        assert there is not None, f"{event} means nothing in {here}"
        here = there
    return str(here)


def rows(table: Table) -> list[tuple[Configuration, str, Configuration | None]]:
    return [(here, event, table.step(here, event)) for here in table.configurations for event in table.events]


def leaves(chart: Chart) -> dict[str, list[str]]:
    return {state.name: [leaf.name for leaf in state.leaves] for state in chart.states}


def test_the_engine_has_the_leaves_of_the_design() -> None:
    assert leaves(ENGINE) == {
        "ALIVE": ["SERVING", "SUSPECT", "STANDBY"],
        "PAUSED": ["REQUESTED", "FAULTED", "RETRYING", "STALE"],
        "RESTARTING": ["STOPPING", "BACKOFF", "STARTING"],
        "DEAD": ["COMPLETED", "STOPPED", "FAILED", "EXHAUSTED"],
    }
    assert ENGINE.flags == HOLDS


def test_the_actor_has_no_faulted_retrying_stale() -> None:
    assert leaves(ACTOR) == leaves(ENGINE) | {"PAUSED": ["REQUESTED"]}
    assert ACTOR.flags == ("REQUESTED", "STANDBY")
    assert set(ENGINE.events) - set(ACTOR.events) == {
        "unhealthy",
        "retry",
        "recovered",
        "stale",
        "synced",
    }


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_every_chart_compiles(chart: Chart) -> None:
    assert compile_chart(chart).chart is chart
    assert CHARTS[chart.name] is chart


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ("started", "ALIVE.SERVING"),
        ("fault", "RESTARTING.STOPPING"),
        ("started fault backoff start started", "ALIVE.SERVING"),
        ("started fault start started", "ALIVE.SERVING"),
        ("started exit completed", "DEAD.COMPLETED"),
        ("started exit completed start started", "ALIVE.SERVING"),
        ("stop stopped", "DEAD.STOPPED"),
        ("started stop stop stopped start", "RESTARTING.STARTING"),
        ("started fault backoff stop", "DEAD.STOPPED"),
        ("started fault failed", "DEAD.FAILED"),
        ("started fault backoff failed", "DEAD.FAILED"),
        ("started fault exhausted", "DEAD.EXHAUSTED"),
        ("started fault backoff exhausted", "DEAD.EXHAUSTED"),
        ("started suspect", "ALIVE.SUSPECT"),
        ("started suspect clear", "ALIVE.SERVING"),
        ("started suspect fault", "RESTARTING.STOPPING"),
        ("started pause", "PAUSED.REQUESTED {REQUESTED}"),
        ("started pause resume", "ALIVE.SERVING"),
        ("started suspect pause", "PAUSED.REQUESTED {REQUESTED}"),
        ("pause started", "PAUSED.REQUESTED {REQUESTED}"),
        ("pause resume started", "ALIVE.SERVING"),
        ("started pause fault backoff start started", "PAUSED.REQUESTED {REQUESTED}"),
        ("started pause fault resume start started", "ALIVE.SERVING"),
        ("standby started", "ALIVE.STANDBY {STANDBY}"),
        ("standby started promote", "ALIVE.SERVING"),
        ("standby started suspect", "ALIVE.SUSPECT {STANDBY}"),
        ("standby started suspect clear", "ALIVE.STANDBY {STANDBY}"),
        ("standby started suspect promote", "ALIVE.SUSPECT"),
        ("started fault standby start started", "ALIVE.STANDBY {STANDBY}"),
        ("standby started pause promote resume", "ALIVE.SERVING"),
        ("started standby", "ALIVE.STANDBY {STANDBY}"),
    ],
)
@CHILDREN
def test_a_child_goes_where_its_events_lead(chart: Chart, events: str, end: str) -> None:
    assert after(chart, events) == end


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ("started unhealthy", "PAUSED.FAULTED {FAULTED}"),
        ("started unhealthy retry", "PAUSED.RETRYING {FAULTED}"),
        ("started unhealthy retry recovered", "ALIVE.SERVING"),
        ("started unhealthy fault", "RESTARTING.STOPPING"),
        ("started unhealthy retry pause", "PAUSED.RETRYING {FAULTED, REQUESTED}"),
        ("started unhealthy retry pause recovered", "PAUSED.REQUESTED {REQUESTED}"),
        ("started unhealthy retry stale recovered", "PAUSED.STALE {STALE}"),
        ("started suspect unhealthy", "PAUSED.FAULTED {FAULTED}"),
        ("started stale", "PAUSED.STALE {STALE}"),
        ("started stale synced", "ALIVE.SERVING"),
        ("stale started synced", "ALIVE.SERVING"),
        ("started fault stale start started", "PAUSED.STALE {STALE}"),
        ("started stale fault start started", "ALIVE.SERVING"),
        ("standby started stale", "PAUSED.STALE {STALE, STANDBY}"),
        ("standby started stale synced", "ALIVE.STANDBY {STANDBY}"),
        ("started pause unhealthy", "PAUSED.FAULTED {FAULTED, REQUESTED}"),
        ("started pause stale", "PAUSED.STALE {REQUESTED, STALE}"),
        ("started pause stale synced", "PAUSED.REQUESTED {REQUESTED}"),
        ("started stale unhealthy resume", "PAUSED.FAULTED {FAULTED, STALE}"),
        ("standby started pause unhealthy fault", "RESTARTING.STOPPING {REQUESTED, STANDBY}"),
    ],
)
def test_an_engine_goes_where_its_events_lead(events: str, end: str) -> None:
    assert after(ENGINE, events) == end


@CHILDREN
def test_stop_wins_over_everything(chart: Chart) -> None:
    table = compile_chart(chart)
    for here in table.configurations:
        there = table.step(here, "stop")
        if here.state == "DEAD":
            assert there is None
        elif here.leaf == "BACKOFF":
            assert there is not None
            assert there.path == "DEAD.STOPPED"
        else:
            assert there is not None
            assert there.path == "RESTARTING.STOPPING", here
            assert (there is here) == (here.leaf == "STOPPING")


@CHILDREN
def test_death_leaves_everything_that_is_up_for_stopping(chart: Chart) -> None:
    table = compile_chart(chart)
    for here in table.configurations:
        runs = here.state in {"ALIVE", "PAUSED"} or here.leaf == "STARTING"
        for event in ("fault", "exit"):
            there = table.step(here, event)
            assert (there and there.path) == ("RESTARTING.STOPPING" if runs else None)


@CHILDREN
def test_dead_never_leads_to_alive_but_through_restarting(chart: Chart) -> None:
    for here, _, there in rows(compile_chart(chart)):
        if there is not None and here.state == "DEAD":
            assert there.path == "RESTARTING.STARTING"
        if there is not None and there.state in {"ALIVE", "PAUSED"}:
            assert here.state in {"ALIVE", "PAUSED"} or here.leaf == "STARTING"


@CHILDREN
def test_entering_stopping_forgets_what_belongs_to_the_incarnation_only(chart: Chart) -> None:
    for here, event, there in rows(compile_chart(chart)):
        if there is not None and there.leaf == "STOPPING" and here.leaf != "STOPPING":
            assert there.flags == here.flags - {"FAULTED", "STALE"}, (here, event)


@CHILDREN
def test_the_leaf_shows_the_first_hold(chart: Chart) -> None:
    for here in compile_chart(chart).configurations:
        if here.state in {"ALIVE", "PAUSED"} and here.leaf not in {"SUSPECT", "RETRYING"}:
            assert here.leaf == next((hold for hold in HOLDS if hold in here.flags), "SERVING")


def test_retrying_keeps_its_fault_and_suspect_has_no_hold() -> None:
    for here in compile_chart(ENGINE).configurations:
        if here.leaf == "RETRYING":
            assert "FAULTED" in here.flags
        if here.leaf == "SUSPECT":
            assert not here.flags - {"STANDBY"}


@CHILDREN
def test_while_restarting_holds_change_in_place(chart: Chart) -> None:
    table = compile_chart(chart)
    effects = {
        "pause": ("REQUESTED", True),
        "resume": ("REQUESTED", False),
        "standby": ("STANDBY", True),
        "promote": ("STANDBY", False),
        "stale": ("STALE", True),
        "synced": ("STALE", False),
    }
    for event, (flag, is_set) in effects.items():
        if event not in table.events:
            continue
        for here in table.configurations:
            there = table.step(here, event)
            if here.state == "DEAD":
                assert there is None
            else:
                assert there is not None
                assert there.flags == (here.flags | {flag} if is_set else here.flags - {flag})
            if here.state == "RESTARTING" or here.leaf == "RETRYING":
                assert there is not None
                assert there.leaf == here.leaf


@CHILDREN
def test_only_an_answer_makes_a_suspect_serve(chart: Chart) -> None:
    for here, event, there in rows(compile_chart(chart)):
        if here.leaf == "SUSPECT" and there is not None and there.path in {"ALIVE.SERVING", "ALIVE.STANDBY"}:
            assert event == "clear"


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_an_end_is_always_within_reach(chart: Chart) -> None:
    table = compile_chart(chart)
    ends = {leaf.name for leaf in chart.leaves if leaf.final}
    ending = {here for here in table.configurations if here.leaf in ends}
    while more := {here for here, _, there in rows(table) if there in ending} - ending:
        ending |= more
    assert ending == set(table.configurations)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ("started succeeded", "SUCCEEDED"),
        ("started fault retry started succeeded", "SUCCEEDED"),
        ("started fault exhausted", "FAILED"),
        ("started failed", "FAILED"),
        ("fault retry", "PENDING"),
        ("cancel cancelled", "CANCELLED {CANCELLING}"),
        ("started cancel fault", "CANCELLED {CANCELLING}"),
        ("started cancel succeeded", "SUCCEEDED {CANCELLING}"),
        ("started fault cancel", "CANCELLED"),
    ],
)
def test_a_task_goes_where_its_events_lead(events: str, end: str) -> None:
    assert after(TASK, events) == end


def test_a_task_at_its_end_stays_there() -> None:
    table = compile_chart(TASK)
    for here, event, there in rows(table):
        if here.leaf in {"SUCCEEDED", "FAILED", "CANCELLED"}:
            assert there is None, event


def test_a_cancelled_task_is_not_retried() -> None:
    for here, _, there in rows(compile_chart(TASK)):
        if "CANCELLING" in here.flags:
            assert there is None or there.leaf != "RETRYING"


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ("started", "RUNNING.STEADY"),
        ("started child_failed child_failed restored", "RUNNING.STEADY"),
        ("started child_failed gave_up exhausted", "DEAD.EXHAUSTED"),
        ("start_failed failed", "DEAD.FAILED"),
        ("started child_failed stop stop stopped start", "STARTING"),
        ("started auto_shutdown completed", "DEAD.COMPLETED"),
        ("stop stopped", "DEAD.STOPPED"),
    ],
)
def test_a_supervisor_goes_where_its_events_lead(events: str, end: str) -> None:
    assert after(SUPERVISOR, events) == end
