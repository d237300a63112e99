"""Supervisors below supervisors: made by functions, as templates, changed while they run."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r


async def forever(*_: object) -> None:
    await anyio.sleep_forever()


class Fuse:
    """A child that ends as often as it is told to."""

    def __init__(self) -> None:
        self.blown = anyio.Event()

    async def run(self) -> None:
        await self.blown.wait()
        raise RuntimeError("blown")

    def blow(self) -> None:
        old, self.blown = self.blown, anyio.Event()
        old.set()


async def reaches(sup: rv.Supervisor, under: str, expected: dict[str, int]) -> None:
    """Wait until a supervisor has exactly these children up, with these incarnations."""
    with anyio.fail_after(30):
        found: dict[str, int] = {}
        while found != expected:
            await anyio.sleep(0.002)
            # While the supervisor itself is being restarted there is nobody to ask.
            with contextlib.suppress(rv.SupervisorStoppedError, rv.UnknownChildError):
                found = {
                    line.id: line.incarnation for line in await sup.which_children(under) if line.running
                }


def group(*children: rv.ChildSpec, **flags: Any) -> rv.SupervisorSpec:
    return rv.SupervisorSpec(children=children, **flags)


# --- specs made by a function ---------------------------------------------------------------------


async def test_a_supervisors_spec_is_made_anew_at_each_of_its_starts() -> None:
    fuse = Fuse()
    seen: list[tuple[str, rv.Exit | None]] = []

    async def make(name: str, *, predecessor: rv.Exit | None) -> rv.SupervisorSpec:
        seen.append((name, predecessor))
        children = [rv.coroutine(f"{name}{number}", forever) for number in range(len(seen))]
        return group(rv.coroutine("fuse", fuse.run), *children, intensity=0)

    async with rv.Supervisor(group(rv.subtree("s", make, args=["x"]))) as sup:
        await reaches(sup, "s", {"fuse": 1, "x0": 1})
        fuse.blow()
        await reaches(sup, "s", {"fuse": 2, "x0": 2, "x1": 1})
    assert [name for name, _ in seen] == ["x", "x"]
    first, second = (predecessor for _, predecessor in seen)
    assert first is None
    assert second is not None
    assert second.kind is rv.ExitKind.SHUTDOWN
    assert second.fault is not None
    assert str(second.fault.root) == "RuntimeError: blown"


def raises() -> rv.SupervisorSpec:
    raise ValueError("no plan")


def bad() -> rv.SupervisorSpec:
    return rv.SupervisorSpec(intensity=-1)


async def slow() -> rv.SupervisorSpec:
    await anyio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (raises, "ValueError: no plan"),
        (bad, "SpecError: intensity=-1"),
        (lambda: [forever], "SpecError: spec=.*it must be a SupervisorSpec"),
        (slow, "StartTimeout: no spec was returned within start_timeout=0.05 s"),
    ],
)
async def test_a_function_that_makes_no_spec_is_a_failed_start(make: Any, why: str) -> None:
    async with rv.Supervisor(group(rv.coroutine("a", forever))) as sup:
        with pytest.raises(rv.ChildStartError, match=f"^{why}"):
            await sup.start_child(rv.subtree("s", make, start_timeout=0.05))
        assert [line.id for line in await sup.which_children()] == ["a"]
    with pytest.raises(rv.StartFailedError, match=why):
        await rv.Supervisor(group(rv.subtree("s", make, start_timeout=0.05))).__aenter__()


async def test_a_supervisor_that_is_ended_while_its_spec_is_made_is_called_off() -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def make() -> rv.SupervisorSpec:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    async with rv.Supervisor(group()) as sup, anyio.create_task_group() as tasks:

        async def start() -> None:
            with pytest.raises(rv.ChildStartError, match="its start was cancelled"):
                await sup.start_child(rv.subtree("s", make))

        tasks.start_soon(start)
        await begun.wait()
        assert (await sup.count_children()).supervisors == 1
        await sup.terminate_child("s")
        assert ended.is_set()


# --- starts that choose not to run ------------------------------------------------------------------


async def test_a_start_that_is_ignored_keeps_its_spec_and_is_asked_again() -> None:
    wanted: list[str] = []

    async def work(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        if "work" not in wanted:
            raise rv.IgnoreStart("nothing to do")
        task_status.started()
        await anyio.sleep_forever()

    def make() -> rv.SupervisorSpec:
        if "tree" not in wanted:
            raise rv.IgnoreStart
        return group()

    supervisor = rv.Supervisor(group(rv.coroutine("work", work), rv.subtree("tree", make)))
    watch = supervisor.watch()
    async with supervisor as sup:
        assert (await sup.count_children()).active == 0
        assert await sup.start_child(rv.coroutine("other", work, restart=rv.Restart.TEMPORARY)) is None
        assert [line.id for line in await sup.which_children()] == ["tree", "work"]
        wanted.extend(("work", "tree"))
        await sup.restart_child("work")
        await sup.restart_child("tree")
        assert (await sup.count_children()).active == 2
    assert [x.fault async for x in watch if isinstance(x, r.FaultSeen)] == []


# --- what is told of the predecessor ----------------------------------------------------------------


async def test_the_next_incarnation_is_told_how_the_last_one_ended() -> None:
    seen: list[rv.Exit | None] = []
    again = anyio.Event()

    async def work(*, predecessor: rv.Exit | None) -> None:
        seen.append(predecessor)
        if len(seen) == 1:
            raise KeyError("first")
        if len(seen) == 2:
            return
        again.set()
        await anyio.sleep_forever()

    async with rv.Supervisor(group(rv.coroutine("a", work), intensity=2)):
        await again.wait()
    assert seen[0] is None
    assert [exit_.kind for exit_ in seen[1:] if exit_] == [rv.ExitKind.FAULT, rv.ExitKind.NORMAL]
    assert seen[1] is not None
    assert seen[1].fault is not None
    assert (seen[1].fault.incarnation, str(seen[1].fault.root)) == (1, "KeyError: 'first'")


# --- templates -------------------------------------------------------------------------------------


async def test_instances_of_a_template_may_be_supervisors_each_with_its_own_arguments() -> None:
    fuses = {"x": Fuse(), "y": Fuse()}

    def room(size: int, name: str) -> rv.SupervisorSpec:
        children = [rv.coroutine(str(number), forever) for number in range(size)]
        return group(rv.coroutine("fuse", fuses[name].run), *children, intensity=0)

    rooms = group(rv.subtree("room", room, args=[1]), strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE)
    async with rv.Supervisor(group(rv.subtree("rooms", rooms))) as sup:
        for name in ("x", "y"):
            assert await sup.start_child(rv.Instance(name, args=(name,)), under="rooms") == f"rooms/{name}"
        assert await sup.count_children("rooms") == (1, 2, 2, 0)
        fuses["x"].blow()
        await reaches(sup, "rooms/x", {"fuse": 2, "0": 2})  # its own arguments again
        await reaches(sup, "rooms/y", {"fuse": 1, "0": 1})
        await sup.terminate_child("rooms/x")
        assert [line.id for line in await sup.which_children("rooms")] == ["y"]
        with pytest.raises(rv.TemplateError):
            await sup.restart_child("rooms/y")


async def test_an_engine_pool_may_be_the_template() -> None:
    engine = {"tokens_per_second": 500.0}
    pools = group(
        rv.engine_pool("pool", engine="sim", engine_args=engine), strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE
    )
    async with rv.Supervisor(group(rv.subtree("pools", pools)), local=True) as sup:
        for name in ("x", "y"):
            await sup.start_child(rv.Instance(name), under="pools")
        texts = {
            (await sup[f"pools/{name}"].generate("Once", {"max_tokens": 8, "temperature": 0}).result()).text
            for name in ("x", "y")
        }
        assert len(texts) == 1
        await sup.terminate_child("pools/x")
        with pytest.raises(rv.UnknownChildError):
            sup["pools/x"]
        with pytest.raises(rv.SpecError, match=r"args=.*a EnginePoolSpec takes none"):
            await sup.start_child(rv.Instance("z", args=(1,)), under="pools")


# --- a changed spec ----------------------------------------------------------------------------------


async def test_a_changed_spec_comes_into_force_without_starting_or_ending_anything() -> None:
    fuse = Fuse()
    a, b, c = (rv.coroutine(name, forever) for name in "abc")
    async with rv.Supervisor(group(a, rv.coroutine("fuse", fuse.run), intensity=0)) as sup:
        await sup.apply_spec(
            group(c, rv.coroutine("fuse", fuse.run), b, strategy=rv.Strategy.REST_FOR_ONE, intensity=9)
        )
        assert [line.id for line in await sup.which_children()] == ["a", "b", "fuse", "c"]
        await reaches(sup, "", {"a": 1, "fuse": 1})
        fuse.blow()  # within the new intensity, by the new strategy: "b" and "a" come after it
        await reaches(sup, "", {"a": 2, "fuse": 2, "b": 1})
        await sup.restart_child("c")
        await reaches(sup, "", {"a": 2, "fuse": 2, "b": 1, "c": 1})


async def test_a_changed_spec_rules_later_incarnations_of_its_supervisor() -> None:
    fuse = Fuse()
    inner = group(rv.coroutine("a", forever), intensity=0)
    spec = group(rv.subtree("inner", inner), rv.coroutine("fuse", fuse.run), strategy=rv.Strategy.ONE_FOR_ALL)
    async with rv.Supervisor(spec) as sup:
        await sup.apply_spec(group(rv.coroutine("b", forever)), under="inner")
        await reaches(sup, "inner", {"a": 1})
        fuse.blow()
        await reaches(sup, "inner", {"b": 1})


async def test_a_changed_spec_that_cannot_follow_is_refused_and_the_old_one_stays() -> None:
    spec = group(rv.coroutine("a", forever), rv.engine_pool("llm", engine="sim", engine_args={}), intensity=2)
    async with rv.Supervisor(spec, local=True) as sup:
        for change, under, field in [
            ("one_for_one", "", "spec"),
            (group(rv.coroutine("t", forever), strategy="simple_one_for_one"), "", "strategy"),
            (group(rv.coroutine("t", forever)), "llm", "spec"),
            (spec.children[1].start, "", "spec"),
            (group(rv.actor("actor", Fuse)), "", "local"),
        ]:
            with pytest.raises(rv.SpecError) as raised:
                await sup.apply_spec(change, under=under)  # type: ignore[arg-type]  # the mistake
            assert raised.value.field == field
        with pytest.raises(rv.UnknownChildError):
            await sup.apply_spec(group(), under="nobody")
        assert [line.id for line in await sup.which_children()] == ["llm", "a"]


def test_the_same_verbs_block_in_a_thread() -> None:
    def room(name: str) -> rv.SupervisorSpec:
        return group(rv.coroutine(name, forever))

    rooms = group(rv.subtree("room", room), strategy=rv.Strategy.SIMPLE_ONE_FOR_ONE)
    with rv.run_in_thread(group(rv.subtree("rooms", rooms))) as sup:
        assert sup.start_child(rv.Instance("x", args=("in x",)), under="rooms") == "rooms/x"
        assert [line.id for line in sup.which_children("rooms/x")] == ["in x"]
        sup.apply_spec(group(intensity=3))
        assert [line.id for line in sup.which_children()] == ["rooms"]


# --- how a coroutine is ended --------------------------------------------------------------------------


async def test_a_shield_holds_for_the_shutdown_time_and_no_longer() -> None:
    told: list[str] = []

    async def work(name: str, seconds: float) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(seconds)
            told.append(name)

    spec = group(
        rv.coroutine("patient", work, args=["patient", 0.05], shutdown=30.0),
        rv.coroutine("late", work, args=["late", 600.0], shutdown=0.05),
        rv.coroutine("brutal", work, args=["brutal", 600.0], shutdown=rv.Shutdown.BRUTAL_KILL),
    )
    supervisor = rv.Supervisor(spec)
    watch = supervisor.watch()
    with anyio.fail_after(30):
        async with supervisor:
            await anyio.wait_all_tasks_blocked()
    assert told == ["patient"]
    assert [x async for x in watch if isinstance(x, r.CleanupUnverified)] == []
