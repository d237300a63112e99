"""The chart of a child that runs: where it is, which way it took, and how often."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

import rayvisor as rv
from rayvisor._edges.live import history
from rayvisor._edges.live.charts import drawing_form, drawing_from
from rayvisor.records import StateChanged
from statecharts import Pass, formats, render_drawing
from tests.failing import Failing
from tests.waiting import until


async def idle() -> None:
    await anyio.sleep_forever()


def supervisor(*children: rv.ChildSpec, **flags: object) -> rv.Supervisor:
    spec = rv.SupervisorSpec(children=children, intensity=9, **flags)  # type: ignore[arg-type]
    return rv.Supervisor(spec, local=True, handle_signals=False)


async def up(sup: rv.Supervisor, child: str, incarnation: int) -> None:
    def serves() -> bool:
        node = sup.status(child)
        return (node.leaf, node.incarnation) == ("SERVING", incarnation)

    await until(serves)


async def test_a_chart_has_the_state_the_way_there_and_what_was_counted() -> None:
    worker = Failing()
    async with supervisor(rv.coroutine("worker", worker.run), rv.coroutine("other", idle)) as sup:
        for incarnation in (2, 3):
            worker.fail.set()
            await up(sup, "worker", incarnation)
        await sup.pause("worker")
        chart = sup.chart("worker")
        assert (chart.chart.name, chart.at) == ("actor", "REQUESTED")
        assert chart.path[-4:] == ("SERVING", "STOPPING", "STARTING", "SERVING")
        times = {(one.source, one.event): one.times for one in chart.passes}
        assert times["ALIVE.SERVING", "fault"] == 2
        assert times["RESTARTING.STARTING", "started"] == 3
        served = next(one.seconds for one in chart.passes if one.event == "fault")
        assert 0.0 < served < 600.0
        assert sup.chart("other").path == ("STARTING",)
        assert "2 times" in render_drawing(chart, "svg")
        for name in formats():
            assert render_drawing(drawing_from(drawing_form(chart)), name) == render_drawing(chart, name)
        assert "image/svg+xml" in chart._repr_mimebundle_()
        for nobody in ("", "nobody", "worker/1"):
            with pytest.raises(rv.UnknownChildError):
                sup.chart(nobody)
    with pytest.raises(rv.SupervisorStoppedError):
        sup.chart("worker")


def test_a_blocking_program_has_it_as_well() -> None:
    with rv.run_in_thread(rv.SupervisorSpec(children=[rv.coroutine("idler", idle)]), local=True) as sup:
        assert sup.chart("idler").at == "SERVING"


def test_of_children_that_are_gone_nothing_is_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CHILDREN_KEPT", 10)
    told = history.History(0.0, lambda: {"stays", "99"})
    change = StateChanged(
        at=1.0,
        child="stays",
        incarnation=1,
        event="started",
        before="RESTARTING.STARTING",
        after="ALIVE.SERVING",
    )
    told.take(change)
    for number in range(100):
        told.take(replace(change, child=str(number)))
        assert len(told.steps) <= 11
    way = ("RESTARTING.STARTING", "started", "ALIVE.SERVING")
    assert told.passes("stays") == told.passes("99") == [(*way, 1, 0.0)]
    assert [Pass(*each).times for each in told.passes("stays")] == [1]
