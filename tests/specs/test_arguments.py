"""Keyword arguments that functions share: typed, described and defaulted once."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import rayvisor as rv
from rayvisor import specs
from rayvisor.specs import arguments
from rayvisor.specs.arguments import arguments_of


class Index:
    """A user's actor."""


async def tick() -> None:
    """Do nothing."""


MADE: dict[Any, tuple[Any, ...]] = {
    rv.actor: (Index,),
    rv.adopt: (),
    rv.coroutine: (tick,),
    rv.subtree: (rv.SupervisorSpec(),),
    rv.engine_pool: (),
    rv.engine_group: (),
    rv.server: (),
}
NEEDED: dict[Any, dict[str, Any]] = {
    rv.adopt: {"name": "index"},
    rv.engine_pool: {"engine_args": {}},
    rv.engine_group: {"engine_args": {}, "ranks": 1},
    rv.server: {"model": "/models/small"},
}


@pytest.mark.parametrize("factory", MADE, ids=lambda factory: factory.__name__)
def test_an_unknown_keyword_is_refused_as_by_any_function(factory: Any) -> None:
    message = (
        rf"^{factory.__name__}\(\) got an unexpected keyword argument 'restarts'; did you mean 'restart'\?$"
    )
    with pytest.raises(TypeError, match=message):
        factory("a", *MADE[factory], **NEEDED.get(factory, {}), restarts=3)


@pytest.mark.parametrize("factory", MADE, ids=lambda factory: factory.__name__)
def test_every_argument_has_a_type_a_default_and_a_description(factory: Any) -> None:
    found = arguments_of(factory)
    assert len({each.name for each in found}) == len(found)
    needed = {each.name for each in found if each.default is inspect.Parameter.empty}
    given = {
        **NEEDED.get(factory, {}),
        "id": "a",
        "cls": Index,
        "function": tick,
        "spec": rv.SupervisorSpec(),
    }
    assert needed <= given.keys()
    for each in found:
        assert each.hint is not None
        described = inspect.getdoc(each.described_in) or ""
        assert any(
            each.name in [name.strip() for name in line.split(",")] for line in described.splitlines()
        ), each.name


@pytest.mark.parametrize("factory", MADE, ids=lambda factory: factory.__name__)
def test_the_defaults_that_are_listed_are_those_that_hold(factory: Any) -> None:
    plain = factory("a", *MADE[factory], **NEEDED.get(factory, {}))
    defaults = {
        each.name: each.default
        for each in arguments_of(factory)
        if each.default is not inspect.Parameter.empty
    }
    given = {
        name: value for name, value in defaults.items() if name not in {"actor", "spec", "cls", "function"}
    }
    assert factory("a", *MADE[factory], **{**given, **NEEDED.get(factory, {})}) == plain


def test_every_group_is_public() -> None:
    groups = {name for name in arguments.__all__ if name.endswith("Arguments")}
    assert groups <= set(specs.__all__)


def test_a_keyword_reaches_what_is_made() -> None:
    made = rv.actor("a", Index, probe="ping", stall_after=60.0, num_gpus=1, significant=True).start
    assert isinstance(made, specs.ActorStart)
    assert (made.hooks.probe, made.hooks.limits.stall_after, made.options.num_gpus) == ("ping", 60.0, 1)
    web = rv.server("w", model="m", port=80, recoveries=7, step_limit=1000.0, restart=rv.Restart.TEMPORARY)
    assert isinstance(web.start, specs.ServerStart)
    assert (web.recoveries, web.restart, web.start.arguments["port"]) == (7, rv.Restart.TEMPORARY, 80)
    assert web.start.limits.step_limit == 1000.0
