"""Trees on a real Ray: actors, references from other processes, engines in hosts."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.process.identity import alive, identify
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster_address")]


class Counter:
    """An actor that counts."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, step: int = 1) -> int:
        self.count += step
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def echo(self, **given: Any) -> dict[str, Any]:
        return given

    def fail(self) -> None:
        raise KeyError("mine")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self, marker: str) -> str:
        """Die under the first caller, answer the second one."""
        if not Path(marker).exists():
            Path(marker).touch()
            self.die()
        return "done"


class User:
    """An actor that uses another one by its reference."""

    async def add(self, counter: rv.ChildRef, step: int) -> Any:
        return await counter.call("add", step)

    async def patient(self, counter: rv.ChildRef, marker: str) -> Any:
        return await counter.options(idempotent=True, timeout=60.0).call("die_once", marker)

    def handle(self, counter: rv.ChildRef) -> Any:
        import ray

        return ray.get(counter.handle().pid.remote())


def actor(name: str, cls: type = Counter, **options: Any) -> rv.ChildSpec:
    return rv.actor(name, cls, num_cpus=0, **options)


def tree(*children: rv.ChildSpec) -> rv.Supervisor:
    return rv.Supervisor(rv.SupervisorSpec(children=children, intensity=5))


async def test_an_actor_is_called_killed_restarted_and_ended() -> None:
    async with tree(actor("counter", kwargs={"start": 10})) as sup:
        watch = sup.watch()
        counter = sup.actor("counter")
        assert await counter.call("add") == 11
        assert await counter.call("add", step=4) == 15
        given = {"timeout": 3, "idempotent": "no", "method": "GET"}
        assert await counter.options(timeout=60).call("echo", **given) == given
        with pytest.raises(KeyError):
            await counter.call("fail")
        first = identify(await counter.call("pid"))
        with pytest.raises(rv.ChildUnavailableError, match=r"lost during die\(\), which it may have"):
            await counter.call("die")
        assert await counter.options(idempotent=True, timeout=60).call("add") == 11
        second = identify(await counter.call("pid"))
        assert first is not None
        assert second is not None
        await until(lambda: not alive(first))
        await sup.terminate_child("counter")
        with pytest.raises(rv.ChildUnavailableError, match="'counter' is not up"):
            await counter.call("add")
        await until(lambda: not alive(second))  # Ray's word comes a moment before the process has left
    faults = [x.fault async for x in watch if isinstance(x, r.FaultSeen)]
    assert [(x.child, x.incarnation, str(x.fault_class), x.source) for x in faults] == [
        ("counter", 1, "FATAL", "ray")
    ]


async def test_a_failing_init_is_one_clear_error_and_no_restart() -> None:
    supervisor = tree(actor("a"), actor("counter", kwargs={"nonsense": 1}))
    watch = supervisor.watch()
    with pytest.raises(
        rv.StartFailedError, match=r"TypeError: .*nonsense.* \(counter, incarnation 1, PERMANENT"
    ):
        await supervisor.__aenter__()
    seen = [x async for x in watch if isinstance(x, r.StateChanged) and x.child == "counter"]
    assert {x.incarnation for x in seen} == {1}


async def test_what_no_node_has_is_said_when_the_start_deadline_has_passed() -> None:
    greedy = actor("counter", resources={"slot": 99}, start_timeout=1.0)
    with pytest.raises(rv.StartFailedError, match="no node has slot=99: the largest has 4 in all"):
        await tree(greedy).__aenter__()


async def test_a_reference_works_from_another_actor_and_finds_the_incarnation_of_the_moment() -> None:
    async with tree(actor("counter"), actor("user", User)) as sup:
        counter, user = sup["counter"], sup["user"]
        assert repr(counter) == "<ChildRef counter>"
        assert await user.call("add", counter, 2) == 2
        pid = await counter.call("pid")
        assert await user.call("handle", counter) == pid
        os.kill(pid, signal.SIGKILL)
        assert await counter.options(idempotent=True, timeout=60).call("add") == 1
        assert await user.call("add", counter, 2) == 3
        await sup.terminate_child("counter")
        with pytest.raises(rv.ChildUnavailableError):
            await user.call("add", counter, 2)


async def test_an_idempotent_call_waits_for_the_next_incarnation_also_from_another_actor(
    tmp_path: Path,
) -> None:
    async with tree(actor("counter"), actor("user", User)) as sup:
        counter = sup["counter"]
        assert (
            await counter.options(idempotent=True, timeout=60).call("die_once", str(tmp_path / "1")) == "done"
        )
        assert await sup["user"].call("patient", counter, str(tmp_path / "2")) == "done"


async def test_an_idempotent_call_that_kills_whoever_takes_it_ends() -> None:
    async with tree(actor("counter")) as sup:
        with pytest.raises(rv.ChildUnavailableError, match=r"lost during die\(\)"):
            await sup["counter"].options(idempotent=True, timeout=60).call("die")
        await until(lambda: sup._running.runtime.core.children["counter"].incarnation == 4)


async def test_a_reference_to_no_actor_says_so_wherever_it_is() -> None:
    async def forever() -> None:
        await anyio.sleep_forever()

    async with tree(rv.coroutine("a", forever)) as sup:
        ref = sup["a"]
        with pytest.raises(rv.ChildKindError, match="'a' is a coroutine, not an actor"):
            ref.handle()
        with pytest.raises(rv.ChildKindError):
            await ref.call("x")
        with pytest.raises(rv.ChildKindError):
            pickle.dumps(ref)


async def test_a_host_that_is_killed_is_followed_by_another_and_no_token_is_lost() -> None:
    pool = rv.engine_pool("llm", engine="sim", engine_args={"tokens_per_second": 100.0}, num_cpus=0)
    async with tree(pool) as sup:
        params = {"max_tokens": 60, "temperature": 0.0}
        expected = (await sup["llm"].generate("Once", params).result()).text
        old = [process for _, process in sup.processes("llm/1")]
        host = next(process for role, process in sup.processes("llm/1") if role == "host")
        parts: list[str] = []
        async for chunk in sup["llm"].generate("Once", params):
            parts.append(chunk.text)
            if len(parts) == 5:
                os.kill(host.pid, signal.SIGKILL)
        assert "".join(parts) == expected
        assert not any(alive(process) for process in old)
        new = [process for _, process in sup.processes("llm/1")]
        assert {process.pid for process in new}.isdisjoint({process.pid for process in old})
    assert not any(alive(process) for process in new)


async def test_attaching_leaves_the_cluster_as_it_was() -> None:
    import ray
    from ray.util import list_named_actors

    def mine() -> list[Any]:
        listed: list[Any] = list_named_actors(all_namespaces=True)
        return [actor for actor in listed if actor["name"].startswith("rayvisor-")]

    before = mine()
    async with tree(actor("counter")) as sup:
        await sup["counter"].call("add")
        assert len(mine()) > len(before)
    assert ray.is_initialized()
    await until(lambda: mine() == before)
