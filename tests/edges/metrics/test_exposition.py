"""The metrics: parsed by an independent parser, served over HTTP, and never decreasing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

import rayvisor as rv
from rayvisor._edges.metrics import counters
from rayvisor._edges.metrics.exposition import FAMILIES, TreeMetrics, exposition
from rayvisor.cli import main
from rayvisor.faults import Fault, FaultClass
from rayvisor.records import FaultSeen
from rayvisor.status import ChildKind, Node
from tests.edges.web.browser import Browser, idle
from tests.failing import Failing
from tests.waiting import until

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Values:
    """Return values by name and labels; also check the format of the text."""
    values: Values = {}
    kinds = {family.name: family for family in FAMILIES}
    for family in text_string_to_metric_families(text):
        # The parser names counters without their suffix.
        known = kinds.get(family.name) or kinds[f"{family.name}_total"]
        assert (family.type, family.documentation) == (known.kind, known.help)
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert set(sample.labels) - {"le"} == set(known.labels)
            assert key not in values
            values[key] = sample.value
    return values


def value(values: Values, name: str, **labels: str) -> float:
    return values[f"rayvisor_{name}", frozenset(labels.items())]


def growing(values: Values) -> Iterable[tuple[str, frozenset[tuple[str, str]]]]:
    return (key for key in values if re.search(r"_(total|bucket|sum|count)$", key[0]))


async def test_a_fault_shows_and_no_counter_falls_when_the_child_comes_back() -> None:
    failing = Failing()
    side = rv.SupervisorSpec(intensity=5, period=60.0, children=[rv.coroutine('odd "one"\\', failing.run)])
    spec = rv.SupervisorSpec(children=[rv.subtree("side", side), rv.coroutine("idler", idle)])
    async with rv.Supervisor(spec, local=True, handle_signals=False) as sup:
        odd = 'side/odd "one"\\'
        before = read(sup.metrics())
        assert value(before, "child_faults_total", child=odd, **{"class": "FATAL"}) == 0
        assert value(before, "child_state", child=odd, state="ALIVE") == 1
        assert value(before, "child_state", child=odd, state="DEAD") == 0
        failing.fail.set()
        await until(lambda: (sup.status(odd).incarnation, sup.status(odd).leaf) == (2, "SERVING"))
        after = read(sup.metrics())
        for key in growing(before):
            assert after[key] >= before[key], key
        assert value(after, "child_faults_total", child=odd, **{"class": "FATAL"}) == 1
        assert value(after, "child_restarts_total", child=odd, cause="FATAL") == 1
        assert value(after, "child_decisions_total", child=odd, decision="restart") == 1
        assert value(after, "child_incarnation", child=odd) == 2
        assert value(after, "recovery_seconds_count", supervisor="side") == 1
        assert value(after, "recovery_seconds_bucket", supervisor="side", le="+Inf") == 1
        assert value(after, "recovery_seconds_count", supervisor="/") == 0
        assert value(after, "supervisor_restarts_in_window", supervisor="side") == 1
        assert value(after, "supervisor_intensity", supervisor="side") == 5
        assert value(after, "records_total", record="FaultSeen") == 1
        began = value(after, "start_time_seconds")
        assert value(after, "child_start_time_seconds", child=odd) >= began - 1.0
        await sup.restart("idler")
        values = read(sup.metrics())
        assert value(values, "child_restarts_total", child="idler", cause="OTHER") == 1
        await sup.terminate_child("idler")
        values = read(sup.metrics())
        assert value(values, "child_leaf", child="idler", leaf="STOPPED") == 1
        assert ("rayvisor_child_start_time_seconds", frozenset({("child", "idler")})) not in values
    with pytest.raises(rv.SupervisorStoppedError):
        sup.metrics()


async def test_instances_of_a_template_share_one_name() -> None:
    template = rv.coroutine("worker", idle)
    spec = rv.SupervisorSpec(
        children=[
            rv.subtree("workers", rv.SupervisorSpec(strategy="simple_one_for_one", children=[template]))
        ]
    )
    async with rv.Supervisor(spec, local=True, handle_signals=False) as sup:
        paths = [await sup.start_child(under="workers") for _ in range(5)]
        await sup.pause(str(paths[0]))
        values = read(sup.metrics())
        assert {dict(labels).get("child") for _, labels in values} == {None, "workers", "workers/*"}
        assert value(values, "child_state", child="workers/*", state="ALIVE") == 4
        assert value(values, "child_leaf", child="workers/*", leaf="REQUESTED") == 1


async def test_a_pool_counts_its_requests() -> None:
    pool = rv.engine_pool("llm", engine="sim", engine_args={}, start_timeout=120.0)
    async with rv.Supervisor(rv.SupervisorSpec(children=[pool]), local=True, handle_signals=False) as sup:
        await sup["llm"].generate("Once upon a time", {"max_tokens": 7, "ignore_eos": True}).result()
        values = read(sup.metrics())
        for name, expected in (
            ("submitted_total", 1),
            ("finished_total", 1),
            ("lost_total", 0),
            ("running", 0),
        ):
            assert value(values, f"pool_requests_{name}", pool="llm") == expected
        assert value(values, "pool_tokens_total", pool="llm") == 7
        assert value(values, "engine_requests_running", child="llm/1") == 0
        await sup.restart("llm")
        assert value(read(sup.metrics()), "pool_tokens_total", pool="llm") == 7


async def test_the_page_and_the_socket_have_them_and_only_to_look_at(tmp_path: Path) -> None:
    path = tmp_path / "private" / "tree.sock"
    spec = rv.SupervisorSpec(children=[rv.coroutine("idler", idle)])
    async with rv.Supervisor(spec, local=True, handle_signals=False, control=path) as sup:
        browser = Browser((await sup.serve_web()).url)
        host = {"Host": f"{browser.host}:{browser.port}"}  # like a scraper, without the token
        status, headers, content = await browser.ask("/metrics", host)
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert value(read(content.decode()), "child_incarnation", child="idler") == 1
        assert (await browser.ask("/metrics", {"Host": "evil.example"}))[0] == 421
        assert (await browser.ask("/metrics", host, method="POST"))[0] == 405
        assert (await browser.ask("/events", host))[0] == 401
        closed = Browser((await sup.serve_web(metrics=False)).url)
        assert (await closed.ask("/metrics"))[0] == 404
        command = ["status", "--metrics", "--socket", str(path)]
        told = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(main, command))
        assert value(read(told.stdout), "child_incarnation", child="idler") == 1
        assert CliRunner().invoke(main, [*command, "--watch"]).exit_code == 2


def test_of_children_that_are_gone_nothing_is_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "NAMES_KEPT", 10)
    monkeypatch.setattr(counters, "UNHEALTHY_KEPT", 10)
    counted = counters.Counters(str, lambda: {"stays", "above"})
    for number in range(100):
        for child in ("stays", f"above/{number}"):
            fault = Fault(
                child=child, incarnation=1, at=1.0, source="host", fault_class=FaultClass.FATAL, causes=()
            )
            counted.take(FaultSeen(at=1.0, fault=fault))
            assert len(counted.faults) <= 12
            assert len(counted._unhealthy) <= 10
    assert counted.faults["stays", "FATAL"] == 100


def test_a_name_that_cannot_be_encoded_does_not_break_the_rest() -> None:
    counted = counters.Counters(str, set)
    node = Node(path="bad \ud800", kind=ChildKind.COROUTINE, state="ALIVE", leaf="SERVING")
    children = (node, replace(node, path="good"))
    root = Node(path="", kind=ChildKind.SUPERVISOR, state="ALIVE", leaf="SERVING", children=children)
    named = {child.path: child.path for child in root.children}
    metrics = TreeMetrics(root, named, counted, {}, "1", 0.0, 1.0, (0.0, 0), 0, None)
    text = exposition(metrics).encode().decode()
    assert 'child="bad ?"' in text
    assert 'child="good"' in text
