"""The metrics of a tree in the Prometheus text format (version 0.0.4). Pure.

The format is simple, so it is written here without a client library and without a registry that the
program's own metrics may be in. The text is the same on the live page and on the control socket.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from rayvisor._edges.metrics.counters import BOUNDS, OTHER, Recoveries
from rayvisor.status import ENGINE_KINDS, chart_of
from statecharts.lifecycles import CHARTS

if TYPE_CHECKING:
    from rayvisor._core.requests.stats import PoolStats
    from rayvisor._edges.metrics.counters import Counters
    from rayvisor.status import Node

__all__ = ["CONTENT_TYPE", "FAMILIES", "Family", "TreeMetrics", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLASSES = ("TRANSIENT", "RECOVERABLE", "FATAL", "PERMANENT")


class Family(NamedTuple):
    """One metric: its name, type, labels and help text."""

    name: str
    kind: Literal["gauge", "counter", "histogram", "summary"]
    labels: tuple[str, ...]
    help: str


FAMILIES = (
    Family("rayvisor_build_info", "gauge", ("version",), "Always 1; the label is the version of rayvisor"),
    Family("rayvisor_start_time_seconds", "gauge", (), "Start time of the tree, in seconds since the epoch"),
    Family(
        "rayvisor_child_state",
        "gauge",
        ("child", "state"),
        "1 for the child's current state, 0 for the others",
    ),
    Family(
        "rayvisor_child_leaf",
        "gauge",
        ("child", "leaf"),
        "1 for the child's current leaf; others are left out",
    ),
    Family("rayvisor_child_incarnation", "gauge", ("child",), "Number of the child's current incarnation"),
    Family(
        "rayvisor_child_start_time_seconds",
        "gauge",
        ("child",),
        "Start time of the child's current incarnation, in seconds since the epoch; only while it is up",
    ),
    Family("rayvisor_child_faults_total", "counter", ("child", "class"), "Faults of the child, by class"),
    Family(
        "rayvisor_child_restarts_total",
        "counter",
        ("child", "cause"),
        "Restarts of the child, by the class of its fault that caused them, or OTHER",
    ),
    Family(
        "rayvisor_child_decisions_total",
        "counter",
        ("child", "decision"),
        "Decisions about exits of the child",
    ),
    Family(
        "rayvisor_recovery_seconds",
        "histogram",
        ("supervisor",),
        "Time from the first fault of a child of this supervisor until the child was healthy again",
    ),
    Family(
        "rayvisor_supervisor_restarts_in_window",
        "gauge",
        ("supervisor",),
        "Restarts within the current period",
    ),
    Family(
        "rayvisor_supervisor_intensity",
        "gauge",
        ("supervisor",),
        "Restarts allowed within the period; with one more the supervisor gives up",
    ),
    Family("rayvisor_supervisor_period_seconds", "gauge", ("supervisor",), "Length of the period"),
    Family(
        "rayvisor_engine_requests_running", "gauge", ("child",), "Samples in flight in an engine of a pool"
    ),
    Family(
        "rayvisor_pool_requests_waiting",
        "gauge",
        ("pool",),
        "Samples that wait for an engine or for their reader",
    ),
    Family("rayvisor_pool_requests_running", "gauge", ("pool",), "Samples in flight in engines"),
    Family("rayvisor_pool_requests_submitted_total", "counter", ("pool",), "Accepted requests"),
    Family("rayvisor_pool_requests_finished_total", "counter", ("pool",), "Finished requests"),
    Family(
        "rayvisor_pool_requests_lost_total",
        "counter",
        ("pool",),
        "Requests that raised an error in their caller",
    ),
    Family(
        "rayvisor_pool_requests_abandoned_total", "counter", ("pool",), "Requests abandoned by their caller"
    ),
    Family(
        "rayvisor_pool_requests_moved_total",
        "counter",
        ("pool",),
        "Samples that lost their engine and were continued or generated again elsewhere",
    ),
    Family(
        "rayvisor_pool_divergences_total",
        "counter",
        ("pool",),
        "Samples that differed when they were generated again",
    ),
    Family("rayvisor_pool_tokens_total", "counter", ("pool",), "Delivered tokens"),
    Family("rayvisor_records_total", "counter", ("record",), "Records, by type"),
    Family(
        "rayvisor_records_dropped_total",
        "counter",
        (),
        "Records dropped because a watching program was too slow",
    ),
    Family(
        "rayvisor_publish_overflows_total",
        "counter",
        (),
        "Times a subscriber's queue was full; only if records are published",
    ),
    Family(
        "rayvisor_loop_lag_seconds",
        "summary",
        (),
        "Lag of the supervisor's event loop, sampled twice a second",
    ),
)
"""All metrics, in output order."""


class TreeMetrics(NamedTuple):
    """The input of the metrics: a snapshot of a tree and its counters."""

    root: Node
    named: Mapping[str, str]
    """By path, the name under which a child is counted."""
    counters: Counters
    pools: Mapping[str, PoolStats]
    version: str
    began: float
    """Start time, in seconds since the epoch."""
    now: float
    """Current time, in seconds since the epoch."""
    lag: tuple[float, int]
    """Total lag in seconds, and number of samples."""
    dropped: int
    overflows: int | None


def exposition(metrics: TreeMetrics) -> str:
    """Return all metrics as text."""
    samples = _Samples()
    samples.add("rayvisor_build_info", 1, metrics.version)
    samples.add("rayvisor_start_time_seconds", round(metrics.began, 3))
    names: dict[str, None] = {}
    for node in _walk(metrics.root):
        if node.path:
            names[metrics.named[node.path]] = None
            _child(samples, node, metrics)
        if node.restarts is not None:
            _supervisor(samples, node, metrics)
    _counted(samples, metrics.counters, names)
    for path, stats in metrics.pools.items():
        _pool(samples, metrics.named.get(path, path), stats)
    for record, times in sorted(metrics.counters.records.items()):
        samples.add("rayvisor_records_total", times, record)
    samples.add("rayvisor_records_dropped_total", metrics.dropped)
    if metrics.overflows is not None:
        samples.add("rayvisor_publish_overflows_total", metrics.overflows)
    samples.add("rayvisor_loop_lag_seconds_sum", metrics.lag[0])
    samples.add("rayvisor_loop_lag_seconds_count", metrics.lag[1])
    return "".join(samples.lines())


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _child(samples: _Samples, node: Node, metrics: TreeMetrics) -> None:
    name = metrics.named[node.path]
    for state in CHARTS[chart_of(node)].states:
        samples.add("rayvisor_child_state", state.name == node.state, name, state.name)
    samples.add("rayvisor_child_leaf", 1, name, node.leaf or node.state)
    if name != node.path:  # an instance of a template, counted together with the others
        return
    samples.add("rayvisor_child_incarnation", node.incarnation, name)
    if node.uptime is not None:
        samples.add("rayvisor_child_start_time_seconds", round(metrics.now - node.uptime, 3), name)
    if node.kind in ENGINE_KINDS and node.requests is not None:
        samples.add("rayvisor_engine_requests_running", node.requests.in_flight, name)


def _supervisor(samples: _Samples, node: Node, metrics: TreeMetrics) -> None:
    name = metrics.named.get(node.path, node.path)
    restarts = node.restarts
    if name == node.path and restarts is not None:
        samples.add("rayvisor_supervisor_restarts_in_window", restarts.used, name or "/")
        samples.add("rayvisor_supervisor_intensity", restarts.intensity, name or "/")
        samples.add("rayvisor_supervisor_period_seconds", restarts.period, name or "/")
    recoveries = metrics.counters.recoveries.get(name) or Recoveries()
    if not samples.has("rayvisor_recovery_seconds_count", name or "/"):
        for bound, times in zip(BOUNDS, recoveries.within, strict=True):
            samples.add("rayvisor_recovery_seconds_bucket", times, name or "/", f"{bound:g}")
        samples.add("rayvisor_recovery_seconds_bucket", recoveries.times, name or "/", "+Inf")
        samples.add("rayvisor_recovery_seconds_sum", recoveries.seconds, name or "/")
        samples.add("rayvisor_recovery_seconds_count", recoveries.times, name or "/")


def _counted(samples: _Samples, counters: Counters, names: Mapping[str, None]) -> None:
    """Add the counts of children. Counts start at 0, so that the first event shows as an increase."""
    for name in names:
        for kind in _CLASSES:
            samples.add("rayvisor_child_faults_total", counters.faults[name, kind], name, kind)
        for cause in (*_CLASSES, OTHER):
            samples.add("rayvisor_child_restarts_total", counters.restarts[name, cause], name, cause)
    for (name, decision), times in sorted(counters.decisions.items()):
        if name in names:
            samples.add("rayvisor_child_decisions_total", times, name, decision)


def _pool(samples: _Samples, name: str, stats: PoolStats) -> None:
    waiting = stats.waiting + stats.returning + stats.suspects + stats.parked
    for metric, value in (
        ("requests_waiting", waiting),
        ("requests_running", stats.in_flight),
        ("requests_submitted_total", stats.submitted),
        ("requests_finished_total", stats.finished),
        ("requests_lost_total", stats.failed),
        ("requests_abandoned_total", stats.abandoned),
        ("requests_moved_total", stats.moved),
        ("divergences_total", stats.divergences),
        ("tokens_total", stats.tokens),
    ):
        samples.add(f"rayvisor_pool_{metric}", value, name)


class _Samples:
    """Values by metric and labels; values with equal names and labels are summed."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, name: str, value: float, *labels: str) -> None:
        values = self._values.setdefault(name, {})
        values[labels] = values.get(labels, 0) + value

    def has(self, name: str, *labels: str) -> bool:
        return labels in self._values.get(name, {})

    def lines(self) -> Iterator[str]:
        for family in FAMILIES:
            parts = [
                (suffix, labels) for suffix, labels in _parts(family) if family.name + suffix in self._values
            ]
            if parts:
                yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
            for suffix, labels in parts:
                for given, value in self._values[family.name + suffix].items():
                    pairs = ",".join(
                        f'{label}="{_escaped(text)}"' for label, text in zip(labels, given, strict=True)
                    )
                    yield f"{family.name}{suffix}{f'{{{pairs}}}' if pairs else ''} {_number(value)}\n"


def _parts(family: Family) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if family.kind == "histogram":
        return (("_bucket", (*family.labels, "le")), ("_sum", family.labels), ("_count", family.labels))
    if family.kind == "summary":
        return (("_sum", family.labels), ("_count", family.labels))
    return (("", family.labels),)


def _escaped(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a lone surrogate would make the whole text unencodable
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else repr(round(value, 6))
