"""The generated SCXML is run by python-statemachine, an independent interpreter. For ``make test-web``."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from statemachine.io.scxml.processor import SCXMLProcessor

from statecharts import Chart, Configuration, compile_chart, render
from statecharts.lifecycles import CHARTS

RUNS, STEPS = 20, 60


def started(chart: Chart) -> Any:
    # Its datamodel is Python, that of the documents is ECMAScript; three keywords differ.
    text = (
        render(chart, "scxml").replace('expr="true"', 'expr="True"').replace('expr="false"', 'expr="False"')
    )
    text = re.sub(r"!(?=flag_)", "not ", text)
    processor = SCXMLProcessor()
    processor.parse_scxml(chart.name, text)
    return processor.start()


def _upper(place: Configuration | None) -> str:
    return "" if place is None else place.state


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_an_interpreter_of_others_takes_the_same_steps_as_the_table(chart: Chart) -> None:
    table, seen = compile_chart(chart), set()
    dice = random.Random(7)
    for _ in range(RUNS):
        machine, here, begun = started(chart), table.initial, table.initial.state == chart.states[0].name
        for _ in range(STEPS):
            seen.add(here.leaf)
            assert here.leaf in {state.id for state in machine.configuration}
            flags = {flag for flag in chart.flags if getattr(machine.model, f"flag_{flag}", False)}
            assert flags == here.flags
            known = [event for event in table.events if table.step(here, event)]
            if not known:
                break
            if not begun:  # it initializes its data when it enters the first state
                known = [each for each in known if _upper(table.step(here, each)) == chart.states[0].name]
            event = dice.choice([*known, *([dice.choice(table.events)] if begun else [])])
            machine.send(event)
            here, begun = table.step(here, event) or here, True
    assert seen == {leaf.name for leaf in chart.leaves}
