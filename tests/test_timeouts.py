"""Timeouts of the machinery: checked when they are made, and passed down to everything that waits."""

from __future__ import annotations

import math
import pickle
from dataclasses import fields
from typing import Any, cast

import pytest

import rayvisor as rv
from rayvisor import timeouts as t
from rayvisor._runtime.environment import Environment

GROUPS = [each.name for each in fields(t.Timeouts)]


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "1", None, True])
@pytest.mark.parametrize("group", GROUPS)
def test_a_value_that_is_no_finite_number_of_seconds_is_refused(group: str, value: Any) -> None:
    kind: Any = type(getattr(t.DEFAULT_TIMEOUTS, group))
    name = fields(kind)[0].name
    with pytest.raises(rv.SpecError, match=rf"{name}={value!r}"):
        kind(**{name: value})


def test_a_group_of_another_type_is_refused() -> None:
    with pytest.raises(rv.SpecError, match=r"ray=.* must be a RayTimeouts"):
        t.Timeouts(ray=cast("Any", t.EdgeTimeouts()))


@pytest.mark.parametrize("given", [{"ray": 1.0}, t.RayTimeouts(), 5.0])
def test_a_supervisor_takes_nothing_else(given: Any) -> None:
    with pytest.raises(rv.SpecError, match=r"timeouts=.* must be a Timeouts"):
        rv.Supervisor(rv.SupervisorSpec(), timeouts=given)


def test_they_cross_to_other_processes() -> None:
    given = rv.Timeouts(host=t.HostTimeouts(answer=3.0))
    assert pickle.loads(pickle.dumps(given)) == given


async def test_the_factory_of_local_hosts_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    given = rv.Timeouts(host=t.HostTimeouts(answer=3.0))
    got: list[t.Timeouts] = []
    monkeypatch.setattr("rayvisor._runtime.environment.LocalHostFactory", got.append)
    await Environment(None, None, local=True, timeouts=given).hosts()
    assert got == [given]


async def test_a_tree_has_the_timeouts_of_its_supervisor() -> None:
    spec = rv.SupervisorSpec()
    timeouts = rv.Timeouts(runtime=t.RuntimeTimeouts(send=3.0, freeze=0.5))
    async with rv.Supervisor(spec, local=True, handle_signals=False, timeouts=timeouts) as sup:
        assert sup._running.timeouts is timeouts
        assert sup._running.pools._send_timeout == 3.0
