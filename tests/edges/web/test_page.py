"""The live page over HTTP: what readers are told, and that it holds up and costs next to nothing."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import AsyncExitStack
from importlib.resources import files

import anyio
import anyio.lowlevel
import pytest

import rayvisor as rv
from rayvisor._edges.http import server
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts
from tests.edges.web.browser import Browser, Reader, idle, tree
from tests.waiting import until


async def test_a_fault_is_shown_with_its_root_cause_the_decision_and_the_time_to_recover() -> None:
    pool = rv.engine_pool("llm", engine="sim", engine_args={"tokens_per_second": 50.0}, start_timeout=120.0)
    async with tree(pool) as (sup, browser), browser.reading() as reader:
        await reader.until(lambda r: r.nodes and r.nodes["llm/1"]["leaf"] == "SERVING")
        assert reader.order == ["", "llm", "llm/1"]
        assert reader.nodes["llm"]["restarts"] == [0, 5, 3600.0]
        victim = next(process for _, process in sup.processes("llm/1") if "EngineCore" in process.name)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sup["llm"].generate_many, ["Once upon a time"] * 2, {"max_tokens": 150})
            await reader.until(lambda r: r.nodes["llm"]["requests"]["tokens"] > 0)
            os.kill(victim.pid, signal.SIGKILL)
            await reader.until(lambda r: any(fault["recovered"] for fault in r.faults.values()))
            await reader.until(lambda r: r.nodes["llm"]["requests"]["finished"] == 2)
        (fault,) = reader.faults.values()
        assert (fault["child"], fault["incarnation"], fault["class"]) == ("llm/1", 1, "FATAL")
        assert fault["root"] == f"ProcessKilled: EngineCore (pid {victim.pid}) was ended by SIGKILL"
        script = files("rayvisor._edges.web").joinpath("page.js").read_text()
        assert set(re.findall(r"\bfault\.(\w+)", script)) <= fault.keys()
        assert fault["decision"]["what"] == "restart"
        assert (fault["decision"]["restarts"], fault["decision"]["intensity"]) == (1, 5)
        engine, requests = reader.nodes["llm/1"], reader.nodes["llm"]["requests"]
        assert (engine["leaf"], engine["incarnation"], engine["chart"]) == ("SERVING", 2, "engine")
        leaves = [place for place, *_ in engine["steps"]]
        assert leaves[-3:] == ["RESTARTING.STOPPING", "RESTARTING.STARTING", "ALIVE.SERVING"]
        assert (requests["replayed"], requests["failed"]) == (2, 0)
        assert reader.nodes["llm"]["restarts"][0] == 1


async def test_a_child_that_waits_says_when_it_is_started_again() -> None:
    broken = anyio.Event()

    async def fail() -> None:
        await broken.wait()
        raise RuntimeError("no")

    backoff = rv.Backoff(initial=50.0, maximum=50.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    child = rv.coroutine("failing", fail, backoff=backoff)
    async with tree(child, intensity=3, period=9000.0) as (_, browser), browser.reading() as reader:
        broken.set()
        await reader.until(lambda r: r.nodes.get("failing", {}).get("due"))
        assert reader.nodes["failing"]["leaf"] == "BACKOFF"
        assert 40.0 < reader.nodes["failing"]["due"] - reader.messages[-1]["now"] <= 50.0
        (fault,) = reader.faults.values()
        assert (fault["decision"]["delay"], fault["recovered"]) == (50.0, None)


async def test_who_was_away_gets_what_differs_and_a_stranger_gets_everything() -> None:
    async with tree(rv.coroutine("a", idle), rv.coroutine("b", idle)) as (sup, browser):
        async with browser.reading() as reader:
            await reader.until(lambda r: "b" in r.nodes)
        await sup.restart("a")
        await sup.start_child(rv.coroutine("c", idle))
        await sup.terminate_child("b")
        await sup.delete_child("b")
        async with browser.reading(reader.last) as again:
            again.nodes, again.order = reader.nodes, reader.order
            await again.until(lambda r: "c" in r.order)
            assert again.messages[0]["full"] is False
            async with browser.reading("of-another-run-7") as fresh:
                await fresh.until(lambda r: "c" in r.order)
                assert fresh.messages[0]["full"] is True
                assert fresh.order == again.order == ["", "a", "c"]
                assert fresh.nodes == again.nodes
        assert again.nodes["a"]["incarnation"] == 2
        for odd in ("-", "x" * 400, reader.last.partition("-")[0] + "-999999", "7"):
            async with browser.reading(odd) as lost:
                await lost.until(lambda r: r.messages)
                assert lost.messages[0]["full"] is True


async def test_a_tree_to_which_nothing_happens_says_that_it_is_there() -> None:
    timeouts = rv.Timeouts(edges=EdgeTimeouts(live_poll=0.01, live_interval=0.01, live_silence=0.3))
    async with (
        tree(rv.coroutine("a", idle), timeouts=timeouts) as (_, browser),
        browser.reading() as reader,
    ):
        await reader.until(lambda r: r.silences >= 2)


async def test_buttons_pause_resume_and_restart() -> None:
    async with tree(rv.coroutine("a", idle)) as (_, browser), browser.reading() as reader:
        assert await browser.post("pause", path="a") == (200, {"path": "a", "mode": "wait", "in_flight": 0})
        await reader.until(lambda r: r.nodes and r.nodes["a"]["state"] == "PAUSED")
        assert reader.nodes["a"]["holds"] == ["REQUESTED"]
        assert (await browser.post("resume", path="a"))[0] == 200
        await reader.until(lambda r: r.nodes["a"]["leaf"] == "SERVING")
        assert (await browser.post("restart", path="a"))[0] == 200
        await reader.until(lambda r: r.nodes["a"]["incarnation"] == 2)
        status, told = await browser.post("restart", path="nobody")
        assert (status, told["error"]["type"]) == (404, "UnknownChildError")


async def test_the_start_is_seen_and_the_end_is_told() -> None:
    authenticator = anyio.Event()
    spec = rv.SupervisorSpec(children=[rv.coroutine("a", idle)])
    sup = rv.Supervisor(spec, local=True, handle_signals=False)
    page = await sup.serve_web()
    browser = Browser(page.url)
    readers: list[Reader] = []

    async def read() -> None:
        async with browser.reading() as reader:
            readers.append(reader)
            await reader.until(lambda r: r.messages)
            assert reader.order == []
            authenticator.set()
            await reader.until(lambda r: r.over)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        with anyio.fail_after(60.0):
            await authenticator.wait()
            await page.visited()
        async with sup:
            await anyio.lowlevel.checkpoint()
    assert readers[0].nodes["a"]["path"] == "a"
    with pytest.raises(OSError, match="connect"):
        await anyio.connect_tcp(browser.host, browser.port)
    with pytest.raises(rv.SupervisorStoppedError):
        await sup.serve_web()


async def test_a_dead_reader_is_dropped_and_holds_nothing_up() -> None:
    timeouts = rv.Timeouts(edges=EdgeTimeouts(write=0.3, live_interval=0.001, live_poll=0.002))
    wide = [rv.coroutine(f"{'wide' * 200}-{number}", idle) for number in range(60)]
    async with tree(*wide, timeouts=timeouts) as (sup, browser):
        (page,) = sup._servers
        assert isinstance(page, rv.WebPage)
        async with browser.reading():  # it never reads
            with anyio.fail_after(60.0):
                await until(lambda: page.readers)
                while page.readers:
                    await sup.restart()
        async with browser.reading() as reader:
            await reader.until(lambda r: len(r.order) == 61)


async def test_more_streams_than_there_are_places_are_refused() -> None:
    async with tree(rv.coroutine("a", idle)) as (_, browser), AsyncExitStack() as readers:
        for _ in range(server.STREAMS_MAX):
            reader = await readers.enter_async_context(browser.reading())
            await reader.until(lambda r: r.messages)
        status, _, content = await browser.ask("/events")
        assert status == 503
        assert b"streams are already open" in content


async def test_two_hundred_children_cost_little_and_only_what_changed_is_sent() -> None:
    children = [rv.coroutine(f"child-{number}", idle) for number in range(200)]
    async with tree(*children) as (sup, browser), browser.reading() as reader:
        await reader.until(lambda r: len(r.order) == 201)
        before = len(reader.messages)
        began, busy = time.monotonic(), time.process_time()
        for number in range(20):
            await sup.restart(f"child-{number}")
            await anyio.sleep(0.05)
        await reader.until(lambda r: r.nodes["child-19"]["incarnation"] == 2)
        taken, busy = time.monotonic() - began, time.process_time() - busy
        after = reader.messages[before:]
        assert len(after) <= taken / DEFAULT_TIMEOUTS.edges.live_interval + 2
        assert sum(len(message["nodes"]) for message in after) <= 60
        assert busy < 0.5 * taken + 0.5


async def test_what_cannot_be_served_is_said_before_it_is_tried() -> None:
    async with tree(rv.coroutine("a", idle)) as (sup, browser):
        with pytest.raises(rv.SpecError, match=r"port=70000: must be a whole number from 0"):
            await sup.serve_web(70_000)
        with pytest.raises(rv.SpecError, match=r"host=''"):
            await sup.serve_web(host="")
        with pytest.raises(rv.ControlSocketError, match=rf"127.0.0.1:{browser.port}.*in use"):
            await sup.serve_web(browser.port)
        assert (await browser.ask("/"))[0] == 200
