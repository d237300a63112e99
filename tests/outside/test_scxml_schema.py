"""The SCXML that is written, held against the W3C's schema. Run by ``make test-web``."""

from __future__ import annotations

import pytest
import xmlschema

from statecharts import Chart, render
from statecharts.lifecycles import CHARTS
from tests.statecharts.odd import ODD, large
from tools.web_tests import schema


@pytest.fixture(scope="module")
def grammar() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(str(schema()), allow="local")


@pytest.mark.parametrize("chart", [*CHARTS.values(), ODD, large()], ids=lambda chart: chart.name)
def test_every_document_is_valid(chart: Chart, grammar: xmlschema.XMLSchema) -> None:
    grammar.validate(render(chart, "scxml"))
    grammar.validate(render(chart, "scxml", at=chart.leaves[-1].name, path=[chart.initial]))


def test_what_is_wrong_is_noticed(grammar: xmlschema.XMLSchema) -> None:
    text = render(CHARTS["task"], "scxml")
    assert not grammar.is_valid(text.replace('target="', 'aim="', 1))
    assert not grammar.is_valid(text.replace("<transition", "<arrow", 1))
