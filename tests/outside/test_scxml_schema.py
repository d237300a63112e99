"""The generated SCXML is validated against the W3C's schema. Run by ``make test-web``."""

from __future__ import annotations

import pytest
import xmlschema

from statecharts import Chart, Pass, render, render_tree
from statecharts.lifecycles import CHARTS
from tests.statecharts.odd import ODD, large
from tests.statecharts.test_trees import TREE
from tools.web_tests import schema


@pytest.fixture(scope="module")
def grammar() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(str(schema()), allow="local")


@pytest.mark.parametrize("chart", [*CHARTS.values(), ODD, large()], ids=lambda chart: chart.name)
def test_every_document_is_valid(chart: Chart, grammar: xmlschema.XMLSchema) -> None:
    grammar.validate(render(chart, "scxml"))
    path = [leaf.name for leaf in chart.leaves]
    ways = [(one.source, one.event, one.target or one.source) for one in chart.transitions]
    taken = [Pass(*way, times=3, seconds=1.5) for way in ways if {way[0], way[2]} <= {*path}]
    assert taken
    for at in path:  # each state, with the path to it and the counts
        grammar.validate(render(chart, "scxml", at=at, path=path, passes=taken))


def test_a_tree_is_valid(grammar: xmlschema.XMLSchema) -> None:
    grammar.validate(render_tree(TREE, "scxml"))


# An attribute, an element, a required attribute, a target, an identifier, its form, an element's place.
BREAKS = [
    ('target="', 'aim="'),
    ("<transition", "<arrow"),
    ('       version="1.0"', ""),
    ('target="SUCCEEDED"', 'target="NOWHERE"'),
    ('id="RUNNING"', 'id="PENDING"'),
    ('id="RUNNING"', 'id="4 RUNNING"'),
    ("<datamodel>", "<datamodel><state/>"),
]


@pytest.mark.parametrize(("right", "wrong"), BREAKS, ids=[wrong or right for right, wrong in BREAKS])
def test_what_is_wrong_is_noticed(right: str, wrong: str, grammar: xmlschema.XMLSchema) -> None:
    text = render(CHARTS["task"], "scxml")
    assert right in text
    assert not grammar.is_valid(text.replace(right, wrong, 1))
