"""Handles of children: each kind has its own, and another kind's says what to use instead."""

from __future__ import annotations

import pickle
from typing import Any

import anyio
import pytest

import rayvisor as rv


async def idle() -> None:
    await anyio.sleep_forever()


@pytest.fixture
def spec() -> rv.SupervisorSpec:
    inner = rv.SupervisorSpec(children=[rv.coroutine("ticker", idle)])
    return rv.SupervisorSpec(
        children=[
            rv.engine_pool("llm", engine="sim", engine_args={}),
            rv.server("web", model="sim", engine="sim"),
            rv.ChildSpec(id="inner", start=inner),
        ]
    )


WRONG = {
    "llm": ("engine_pool", r"'llm' is an engine pool, not an actor; use sup\.pool\('llm'\)$"),
    "llm/1": ("engine", r"'llm/1' is an engine, not an actor; use sup\.pool\('llm'\), which sends"),
    "web": ("server", r"'web' is a server, not an actor; use sup\.server\('web'\)$"),
    "inner": ("supervisor", r"'inner' is a supervisor, not an actor; use the path of one of its children"),
    "inner/ticker": (
        "coroutine",
        r"'inner/ticker' is a coroutine, not an actor; it runs in the supervisor's",
    ),
}


async def test_a_child_is_reached_by_its_kind_and_another_kind_names_the_right_one(
    spec: rv.SupervisorSpec,
) -> None:
    async with rv.Supervisor(spec, local=True, seed=1) as sup:
        pool = sup.pool("llm")
        assert pool is sup["llm"]
        assert pool.name == "llm"
        assert (await pool.generate("Once", {"max_tokens": 3}).result()).usage.completion_tokens == 3
        assert [name for name in dir(pool) if not name.startswith("_")] == [
            "generate",
            "generate_many",
            "name",
            "stats",
        ]
        server = sup.server("web")
        assert await server.serving(timeout=60) == server.url == sup["web"].url

        for path, (kind, message) in WRONG.items():
            with pytest.raises(rv.ChildKindError, match=message) as raised:
                sup.actor(path)
            assert (raised.value.child, raised.value.kind, raised.value.wanted) == (path, kind, "actor")
        with pytest.raises(rv.ChildKindError, match=r"'web' is a server, not an engine pool; use sup"):
            sup.pool("web")
        with pytest.raises(rv.ChildKindError, match=r"'llm' is an engine pool, not a server; use sup\.pool"):
            sup.server("llm")
        for find in (sup.pool, sup.actor, sup.server, sup.__getitem__):
            with pytest.raises(rv.UnknownChildError):
                find("nobody")
    for find in (sup.pool, sup.actor, sup.server):
        with pytest.raises(rv.SupervisorStoppedError):
            find("llm")


@pytest.mark.parametrize("path", ["llm/1", "inner", "inner/ticker"])
async def test_a_reference_to_what_is_no_actor_says_so_where_it_is_used(
    spec: rv.SupervisorSpec, path: str
) -> None:
    uses: list[Any] = []
    async with rv.Supervisor(spec, local=True, seed=1) as sup:
        ref = sup[path]
        assert sup.status(path).state == "ALIVE"
        for use in (ref.handle, lambda: pickle.dumps(ref)):
            with pytest.raises(rv.ChildKindError, match=WRONG[path][1]) as raised:
                use()
            uses.append(raised.value)
        with anyio.fail_after(5), pytest.raises(rv.ChildKindError, match=WRONG[path][1]):
            await ref.call("anything")
    assert {use.kind for use in uses} == {WRONG[path][0]}
