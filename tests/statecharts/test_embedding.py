"""A chart on a page is a self-contained piece of HTML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from statecharts import ChartError, Tree
from statecharts.embedding import Embedding, figure, find
from statecharts.lifecycles import CHARTS, TASK
from statecharts.markdown import fence

ROOT = Tree("root", (("strategy", "one_for_one"),), (Tree("llm", state="ALIVE.SERVING"),))


def _show(source: str, page: SimpleNamespace) -> str:
    return fence(source, "statechart", "statechart", {}, page)


@pytest.mark.parametrize("name", [*CHARTS, f"{__name__}:ROOT"])
def test_a_figure_is_well_formed_and_its_classes_are_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, __name__, SimpleNamespace(ROOT=ROOT))
    root = ET.fromstring(figure(Embedding(name, caption="<b> & co")))
    classes = {each for element in root.iter() for each in element.get("class", "").split()}
    assert classes
    assert all(each.startswith("statechart") for each in classes)
    assert root.findtext("figcaption") == "<b> & co"


def test_every_class_that_is_used_has_a_rule_and_every_rule_is_for_such_a_class() -> None:
    html = figure(Embedding("engine", state="STALE", path=("STARTING", "SERVING")))
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    selectors = set(re.findall(r"\.([a-z][\w-]*)", style))
    used = {name for names in re.findall(r'class="([^"]*)"', html) for name in names.split()}
    assert all(name.startswith("statechart") for name in selectors)
    assert {"statechart-live", "statechart-passed", "statechart-card"} <= used & selectors


def test_two_pictures_on_a_page_have_ids_of_their_own() -> None:
    page = SimpleNamespace()
    both = _show("task", page) + _show("task\nstate: RETRYING\npath: PENDING, RUNNING\n", page)
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids)) == 4
    for labelled in re.findall(r'aria-labelledby="([^"]+)"', both):
        assert set(labelled.split()) <= set(ids)


def test_a_picture_shrinks_but_not_so_far_that_it_cannot_be_read() -> None:
    html = figure(Embedding("engine"))
    natural, least = (
        float(re.findall(rf'{what}"?=?:?"?([\d.]+)', html)[0]) for what in ("max-width", "min-width")
    )
    assert 0.7 * natural < least < natural


def test_the_theme_of_the_page_wins_over_the_system() -> None:
    html = figure(Embedding("task"))
    for chosen in ('[data-theme="dark"]', '[data-md-color-scheme="slate"]', '[data-theme="light"]'):
        assert f"{chosen} .statechart" in html


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (Embedding("tusk"), "use one of actor, engine, task, supervisor, or 'module:NAME'"),
        (Embedding("no_such_module:DOOR"), "No module named 'no_such_module'"),
        (Embedding("../doors:DOOR"), "cannot be imported: TypeError"),
        (Embedding("statecharts.lifecycles:DOOR"), "has no attribute 'DOOR'"),
        (Embedding("statecharts.lifecycles:CHARTS"), "neither a Chart nor a Tree"),
        (Embedding("task", state="ASLEEP"), "ASLEEP"),
    ],
)
def test_what_cannot_be_shown_is_an_error_that_says_why(shown: Embedding, said: str) -> None:
    with pytest.raises(ChartError, match=re.escape(said)):
        figure(shown)


def test_a_chart_is_found_by_its_short_name_and_by_its_path() -> None:
    assert find("task") is find("statecharts.lifecycles:TASK") is TASK
