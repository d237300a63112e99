"""Adopting, and hooks, as specs: what cannot work is an error before anything starts; files say the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import rayvisor as rv
from rayvisor._core.health.probes import ProbeWatch
from rayvisor.config import load_tree
from rayvisor.specs import ActorStart, AdoptStart, StallLimits


class Plain:
    """Not an actor yet."""


async def make_later() -> None: ...


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "actor=None: is missing; give a handle, a name, or a function that makes it"),
        ({"actor": Plain()}, "must be Ray's handle of an actor"),
        ({"actor": Plain}, "must be Ray's handle of an actor"),
        ({"namespace": "prod", "make": Plain}, "namespace='prod': is missing a name"),
        ({"make": make_later}, "not an async one"),
        ({"name": "x", "on_end": "burn"}, "on_end='burn': must be one of 'leave', 'kill'"),
        ({"name": "x", "probe": "not a name"}, "probe='not a name': must be the name of a method"),
        ({"name": "x", "drain": 3}, "drain=3: must be the name of a method"),
        ({"name": "x", "probe_timeout": 0}, "probe_timeout=0: must be a number of seconds"),
        ({"name": "x", "failure_threshold": (4, 3)}, r"failure_threshold=\(4, 3\): must be \(k, n\)"),
        ({"name": "x", "stall_after": 1.0}, "stall_after=1.0: must be at least 6 s"),
    ],
)
def test_what_cannot_be_adopted_is_an_error_that_says_why(options: dict[str, Any], said: str) -> None:
    with pytest.raises(rv.SpecError, match=said):
        rv.adopt("x", **options)


def test_actors_need_ray() -> None:
    with pytest.raises(rv.SpecError, match="local=True"):
        rv.Supervisor(rv.SupervisorSpec(children=[rv.adopt("x", name="x")]), local=True)


def test_a_file_says_it_as_well(tmp_path: Path) -> None:
    (tmp_path / "made_here.py").write_text("class Index: ...\ndef another(): ...\n")
    (tmp_path / "tree.toml").write_text(
        """
        [[children]]
        kind = "adopt"
        id = "registry"
        name = "registry"
        namespace = "prod"
        make = "made_here:another"
        on_end = "kill"
        pause = "hold"
        [[children]]
        kind = "actor"
        id = "index"
        class = "made_here:Index"
        probe = "ping"
        failure_threshold = [2, 3]
        drain = "flush"
        """
    )
    before = list(sys.path)
    try:
        registry, index = (child.start for child in load_tree(tmp_path / "tree.toml").spec.children)
    finally:
        sys.path[:] = before
    assert isinstance(registry, AdoptStart)
    assert isinstance(index, ActorStart)
    assert (registry.name, registry.namespace, registry.on_end) == ("registry", "prod", "kill")
    assert registry.make is sys.modules["made_here"].another
    assert registry.hooks.pause == "hold"
    assert (index.hooks.probe, index.hooks.drain, index.hooks.limits.failure_threshold) == (
        "ping",
        "flush",
        (2, 3),
    )


def test_time_in_which_nobody_looked_is_not_held_against_an_actor() -> None:
    watch = ProbeWatch(
        StallLimits(stall_after=9.0, probe_interval=2.0, failure_threshold=(2, 3)), 1.0, now=0.0
    )
    # The supervisor itself stood still for a minute; what it then finds unanswered counts from there.
    assert [watch.probed(at, answered=False).value for at in (60.0, 62.0, 64.0, 69.5)] == [
        "nothing", "nothing", "suspect", "stalled",
    ]  # fmt: skip
