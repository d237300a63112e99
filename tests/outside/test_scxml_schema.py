"""The SCXML that is written, held against the W3C's schema. Run by ``make test-web``."""

from __future__ import annotations

import pytest
import xmlschema

from statecharts import Chart, render, render_tree
from statecharts.lifecycles import CHARTS
from tests.statecharts.odd import ODD, large
from tests.statecharts.test_pictures import TAKEN
from tests.statecharts.test_trees import TREE
from tools.web_tests import schema


@pytest.fixture(scope="module")
def grammar() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(str(schema()), allow="local")


@pytest.mark.parametrize("chart", [*CHARTS.values(), ODD, large()], ids=lambda chart: chart.name)
def test_every_document_is_valid(chart: Chart, grammar: xmlschema.XMLSchema) -> None:
    grammar.validate(render(chart, "scxml"))
    grammar.validate(render(chart, "scxml", at=chart.leaves[-1].name, path=[chart.initial]))


def test_a_tree_and_a_chart_with_counts_are_valid(grammar: xmlschema.XMLSchema) -> None:
    grammar.validate(render_tree(TREE, "scxml"))
    grammar.validate(render(CHARTS["engine"], "scxml", passes=TAKEN))


def test_what_is_wrong_is_noticed(grammar: xmlschema.XMLSchema) -> None:
    text = render(CHARTS["task"], "scxml")
    assert not grammar.is_valid(text.replace('target="', 'aim="', 1))
    assert not grammar.is_valid(text.replace("<transition", "<arrow", 1))
