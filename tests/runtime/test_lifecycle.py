from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from rayvisor._runtime.lifecycle import Change, HookFailure, LifecycleMachine
from statecharts import Chart, ChartError, Configuration
from statecharts.lifecycles import ACTOR, CHARTS, ENGINE, TASK


class Child:
    __slots__ = ("state",)

    def __init__(self, machine: LifecycleMachine) -> None:
        self.state: Configuration = machine.table.initial


class Diary:
    """Writes down what happens to a child, hook by hook."""

    def __init__(self, machine: LifecycleMachine) -> None:
        self.lines: list[str] = []
        chart = machine.table.chart
        for place in {leaf.name for leaf in chart.leaves} | {state.name for state in chart.states}:
            machine.on_exit(place, self._writer("-", place))
            machine.on_enter(place, self._writer("+", place))

    def _writer(self, sign: str, place: str) -> Callable[[Change], None]:
        return lambda _: self.lines.append(sign + place)


def at(machine: LifecycleMachine, events: str) -> Child:
    child = Child(machine)
    for event in events.split():
        assert machine.fire(child, event) is child.state
    return child


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_the_machine_and_the_table_agree_on_every_configuration_and_event(chart: Chart) -> None:
    machine = LifecycleMachine(chart)
    child = Child(machine)
    met = 0
    for here in machine.table.configurations:
        for event in machine.table.events:
            child.state = here
            expected = machine.table.step(here, event)
            assert machine.fire(child, event) is expected, (here, event)
            assert child.state is (here if expected is None else expected)
            met += expected is not None
    assert met == len(machine.table.rows)
    assert len(machine._machine.states) == len(machine.table.configurations)
    assert set(machine._machine.events) == set(machine.table.events)


def test_one_machine_serves_all_children_and_keeps_none() -> None:
    machine = LifecycleMachine(ENGINE)
    one, other = at(machine, "started"), at(machine, "started pause")
    machine.fire(one, "fault")
    assert (one.state.leaf, other.state.leaf) == ("STOPPING", "REQUESTED")
    assert machine._machine.models == []


def test_hooks_run_from_the_inside_out_and_from_the_outside_in() -> None:
    machine = LifecycleMachine(ENGINE)
    child = Child(machine)
    diary = Diary(machine)
    machine.fire(child, "started")
    assert diary.lines == ["-STARTING", "-RESTARTING", "+ALIVE", "+SERVING"]


def test_a_step_inside_a_state_does_not_leave_it() -> None:
    machine = LifecycleMachine(ENGINE)
    child = at(machine, "started")
    diary = Diary(machine)
    machine.fire(child, "suspect")
    assert diary.lines == ["-SERVING", "+SUSPECT"]


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ("", "pause"),
        ("started pause", "standby"),
        ("started pause", "pause"),
        ("started", "resume"),
        ("started stop", "stop"),
        ("started", "retry"),
    ],
)
def test_a_step_that_keeps_the_leaf_runs_no_hook(before: str, event: str) -> None:
    machine = LifecycleMachine(ENGINE)
    child = at(machine, before)
    diary = Diary(machine)
    machine.fire(child, event)
    assert diary.lines == []


def test_a_state_that_is_its_own_leaf_runs_its_hooks_once() -> None:
    machine = LifecycleMachine(TASK)
    child = Child(machine)
    diary = Diary(machine)
    machine.fire(child, "started")
    assert diary.lines == ["-PENDING", "+RUNNING"]


def test_a_hook_sees_the_step_and_where_the_child_is() -> None:
    machine = LifecycleMachine(ACTOR)
    seen: list[tuple[Change, str]] = []
    machine.on_exit("STARTING", lambda change: seen.append((change, change.model.state.leaf)))
    machine.on_enter("SERVING", lambda change: seen.append((change, change.model.state.leaf)))
    child = Child(machine)
    before = child.state
    machine.fire(child, "started")
    change = Change(child, "started", before, child.state)
    assert seen == [(change, "STARTING"), (change, "SERVING")]


def test_hooks_of_one_place_run_in_the_order_they_were_added() -> None:
    machine = LifecycleMachine(ACTOR)
    order: list[int] = []
    for number in range(3):
        machine.on_enter("SERVING", lambda _, number=number: order.append(number))  # type: ignore[misc]
    at(machine, "started")
    assert order == [0, 1, 2]


@pytest.mark.parametrize(
    ("moment", "place"), [("exit", "STARTING"), ("enter", "ALIVE"), ("enter", "SERVING")]
)
def test_a_hook_that_raises_is_recorded_and_reported_and_the_step_goes_on(moment: str, place: str) -> None:
    reports: list[HookFailure] = []
    machine = LifecycleMachine(ENGINE, reports.append)
    error = ValueError("the hook is wrong")

    def hook(_: Change) -> None:
        raise error

    add = machine.on_exit if moment == "exit" else machine.on_enter
    add(place, hook)
    diary = Diary(machine)
    child = Child(machine)
    before = child.state
    with capture_logs() as logs:
        after = machine.fire(child, "started")
    assert after is child.state
    assert after.path == "ALIVE.SERVING"
    assert diary.lines == ["-STARTING", "-RESTARTING", "+ALIVE", "+SERVING"]
    (report,) = reports
    assert (report.moment, report.place, report.error) == (moment, place, error)
    assert report.change == Change(child, "started", before, after)
    assert report.hook.endswith("hook")
    (entry,) = logs
    assert entry["event"] == "machine.hook.failed"
    assert "in hook\n    raise error\nValueError: the hook is wrong" in entry["traceback"]
    assert (entry["chart"], entry["place"], entry["trigger"]) == ("engine", place, "started")


def test_a_report_that_raises_is_recorded_and_the_step_goes_on() -> None:
    def report(_: HookFailure) -> None:
        raise RuntimeError("the report is wrong, too")

    machine = LifecycleMachine(ACTOR, report)
    machine.on_enter("SERVING", lambda _: 1 // 0)
    with capture_logs() as logs:
        assert at(machine, "started").state.leaf == "SERVING"
    assert [entry["event"] for entry in logs] == ["machine.hook.failed", "machine.report.failed"]


def test_an_interrupt_in_a_hook_is_not_taken_for_a_failure() -> None:
    machine = LifecycleMachine(ACTOR)

    def interrupted(_: Change) -> None:
        raise KeyboardInterrupt

    machine.on_enter("SERVING", interrupted)
    child = Child(machine)
    with pytest.raises(KeyboardInterrupt):
        machine.fire(child, "started")
    assert machine.fire(child, "fault") is child.state


def test_a_hook_cannot_fire_in_the_middle_of_its_own_step() -> None:
    reports: list[HookFailure] = []
    machine = LifecycleMachine(ACTOR, reports.append)
    machine.on_exit("STARTING", lambda change: machine.fire(change.model, "fault"))
    with capture_logs():
        child = at(machine, "started")
    assert child.state.leaf == "SERVING"
    assert isinstance(reports[0].error, RuntimeError)
    assert machine.fire(child, "fault") is child.state


def test_a_hook_may_fire_on_another_child() -> None:
    machine = LifecycleMachine(ACTOR)
    other = at(machine, "started")
    machine.on_enter("STOPPING", lambda change: change.model is other or machine.fire(other, "stop"))
    child = at(machine, "started fault")
    assert (child.state.leaf, other.state.leaf) == ("STOPPING", "STOPPING")


def test_a_coroutine_function_is_refused_as_a_hook() -> None:
    machine = LifecycleMachine(ACTOR)

    async def hook(_: Change) -> None:
        """Nothing would await it."""

    with pytest.raises(TypeError, match=r"hook' for 'SERVING' is a coroutine function"):
        machine.on_enter("SERVING", hook)


def test_a_hook_for_an_unknown_place_names_the_known_ones() -> None:
    machine = LifecycleMachine(ACTOR)
    with pytest.raises(ChartError, match=r"hook for 'RETRYING'.*use one of ALIVE, BACKOFF"):
        machine.on_exit("RETRYING", lambda _: None)


def test_an_unknown_event_names_the_known_ones() -> None:
    machine = LifecycleMachine(ACTOR)
    with pytest.raises(ChartError, match=re.escape(f"its events are {', '.join(machine.table.events)}")):
        machine.fire(Child(machine), "retry")


def test_an_event_without_a_meaning_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    machine = LifecycleMachine(ACTOR)
    with caplog.at_level(logging.WARNING):
        assert machine.fire(Child(machine), "clear") is None
    assert not caplog.records
