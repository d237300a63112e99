"""Invalid input is refused by field and value before anything starts, and leaves nothing behind."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv

SPECS: list[tuple[dict[str, Any], str, Any]] = [
    ({"strategy": "one_for_none"}, "strategy", "one_for_none"),
    ({"intensity": -1}, "intensity", -1),
    ({"intensity": 1.5}, "intensity", 1.5),
    ({"intensity": True}, "intensity", True),
    ({"intensity": "3"}, "intensity", "3"),
    ({"period": 0}, "period", 0),
    ({"period": -5.0}, "period", -5.0),
    ({"period": math.nan}, "period", math.nan),
    ({"period": "5"}, "period", "5"),
    ({"auto_shutdown": "sometimes"}, "auto_shutdown", "sometimes"),
    ({"max_concurrent_starts": 0}, "max_concurrent_starts", 0),
    ({"children": [7]}, "children[0]", 7),
]

CHILDREN: list[tuple[dict[str, Any], str, Any]] = [
    ({"id": ""}, "id", ""),
    ({"id": "a/b"}, "id", "a/b"),
    ({"id": 7}, "id", 7),
    ({"restart": "always"}, "restart", "always"),
    ({"shutdown": -1}, "shutdown", -1),
    ({"shutdown": "soon"}, "shutdown", "soon"),
    ({"shutdown": math.nan}, "shutdown", math.nan),
    ({"backoff": 3}, "backoff", 3),
    ({"start_timeout": 0}, "start_timeout", 0),
    ({"start_timeout": None}, "start_timeout", None),
]


async def forever() -> None:
    await anyio.sleep_forever()


def ticker(**options: Any) -> rv.ChildSpec:
    return rv.coroutine(options.pop("id", "a"), forever, **options)


def check(raised: pytest.ExceptionInfo[rv.SpecError], field: str, value: Any) -> None:
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}={value!r}: ")


@pytest.mark.parametrize(("flags", "field", "value"), SPECS)
def test_a_flag_that_cannot_work_is_named_with_its_value(flags: Any, field: str, value: Any) -> None:
    with pytest.raises(rv.SpecError) as raised:
        rv.SupervisorSpec(**flags)
    check(raised, field, value)


@pytest.mark.parametrize(("options", "field", "value"), CHILDREN)
def test_a_childs_field_that_cannot_work_is_named_with_its_value(
    options: Any, field: str, value: Any
) -> None:
    with pytest.raises(rv.SpecError) as raised:
        ticker(**options)
    check(raised, field, value)
    with pytest.raises(rv.SpecError) as raised:
        rv.subtree(**{"id": "a", "spec": rv.SupervisorSpec(), **options})
    check(raised, field, value)


def test_children_that_cannot_go_together_are_named() -> None:
    with pytest.raises(rv.SpecError, match=r"children\[1\].id='a': is used twice"):
        rv.SupervisorSpec(children=[ticker(), ticker()])
    with pytest.raises(rv.SpecError, match=r"children\['a'\].significant=True: cannot go with auto_shutdown"):
        rv.SupervisorSpec(children=[ticker(significant=True, restart=rv.Restart.TRANSIENT)])
    with pytest.raises(rv.SpecError, match=r"and restart='permanent'"):
        rv.SupervisorSpec(auto_shutdown="any_significant", children=[ticker(significant=True)])  # type: ignore[arg-type]  # a word does as well
    for children in ([], [ticker(), ticker(id="b")]):
        with pytest.raises(rv.SpecError, match=r"children=.*must be one template"):
            rv.SupervisorSpec(strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE, children=children)


def test_a_subtree_needs_a_spec_or_a_function() -> None:
    with pytest.raises(rv.SpecError, match="spec=7: must be a SupervisorSpec, or a function that makes one"):
        rv.subtree("a", 7)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(rv.SpecError, match=r"args=\[1\]: are for a function"):
        rv.subtree("a", rv.SupervisorSpec(), args=[1])


class Alien:
    kind = "alien"


def test_a_tree_of_what_nothing_carries_is_refused_before_it_starts() -> None:
    inner = rv.SupervisorSpec(children=[rv.ChildSpec(id="x", start=Alien())])
    with pytest.raises(rv.SpecError) as raised:
        rv.Supervisor(rv.SupervisorSpec(children=[rv.subtree("s", inner)]))
    check(raised, "children['s/x'].start.kind", "alien")


async def test_nothing_is_kept_of_a_child_that_is_refused() -> None:
    started: list[str] = []

    async def note(name: str) -> None:
        started.append(name)
        await anyio.sleep_forever()

    refused: list[tuple[Any, str]] = [
        (None, "child"),
        ("b", "child"),
        (rv.Instance("b"), "child"),
        (rv.SupervisorSpec(), "child"),
        (rv.ChildSpec(id="b", start=Alien()), "children['b'].start.kind"),
        (rv.actor("b", Alien), "local"),
        (
            rv.coroutine("b", note, args=["b"], restart=rv.Restart.TRANSIENT, significant=True),
            "children['b'].significant",
        ),
        (
            rv.coroutine("b", note, args=["b"], backoff=rv.Backoff(initial=9.0, first_delay_zero=False)),
            "children['b'].backoff",
        ),
    ]
    pool = rv.SupervisorSpec(strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE, children=[ticker(id="t")])
    spec = rv.SupervisorSpec(children=[rv.coroutine("a", note, args=["a"]), rv.subtree("pool", pool)])
    async with rv.Supervisor(spec, local=True) as sup:
        before = await sup.which_children()
        for child, field in refused:
            with pytest.raises(rv.SpecError) as raised:
                await sup.start_child(child)
            assert raised.value.field == field
        for child in (ticker(id="b"), rv.Instance("b", start=Alien())):
            with pytest.raises(rv.SpecError):
                await sup.start_child(child, under="pool")
        with pytest.raises(rv.UnknownChildError):
            await sup.start_child(ticker(id="b"), under="nobody")
        assert await sup.which_children() == before
        assert await sup.count_children("pool") == (1, 0, 0, 0)
        assert started == ["a"]
        assert await sup.start_child(rv.coroutine("b", note, args=["b"])) == "b"


UNGUARDED = """
import asyncio
import multiprocessing
import rayvisor as rv

async def main():
    async with rv.Supervisor(rv.SupervisorSpec(), local=True):
        engine = multiprocessing.get_context("spawn").Process(target=print)
        engine.start()
        await asyncio.to_thread(engine.join)

asyncio.run(main())
"""


def test_a_process_that_imports_a_program_without_a_guard_does_not_start_its_tree_again(
    tmp_path: Path,
) -> None:
    program = tmp_path / "driver.py"
    program.write_text(UNGUARDED)
    ended = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0
    last = ended.stderr.strip().splitlines()[-1]
    assert last == str(
        f"rayvisor.errors.UnguardedMainError: {program} starts the tree as soon as it is imported, and each "
        'process of an engine imports it: put what starts the tree under `if __name__ == "__main__":`'
    )
