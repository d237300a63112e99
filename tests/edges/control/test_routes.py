"""The routes: the tree, its events, vLLM's paths, and one clear error for each invalid request."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

import rayvisor as rv
from rayvisor._core.supervision import messages as m
from tests.edges.control.http_client import exchange, get, idle, pool, post, states, tree
from tests.waiting import until


async def test_status_shows_the_whole_tree(tmp_path: Path) -> None:
    inner = rv.SupervisorSpec(strategy="one_for_all", intensity=2, children=[rv.coroutine("idler", idle)])
    async with tree(tmp_path, pool(), rv.subtree("side", inner)) as (_, path):
        status, told = await get(path, "/status")
        assert status == 200
        root = told["tree"]
        assert (root["path"], root["kind"], root["state"]) == ("", "supervisor", "RUNNING")
        assert root["restarts"] == {"used": 0, "intensity": 3, "period": 900.0}
        llm, side = root["children"]
        assert (llm["kind"], side["kind"]) == ("engine_pool", "supervisor")
        assert llm["requests"] == {
            "waiting": 0,
            "in_flight": 0,
            "finished": 0,
            "failed": 0,
            "tokens": 0,
            "replayed": 0,
        }
        (engine,) = llm["children"]
        assert (engine["path"], engine["state"], engine["leaf"]) == ("llm/1", "ALIVE", "SERVING")
        assert (engine["incarnation"], engine["epoch"], engine["holds"]) == (1, 1, [])
        assert engine["uptime"] > 0
        assert {name for _, _, name in engine["processes"]} == {"sim::EngineCore", "sim::Worker"}
        assert side["children"][0]["kind"] == "coroutine"
        assert (await get(path, "/v1/status?path=llm/1"))[1]["tree"]["path"] == "llm/1"


async def test_status_tells_the_last_faults_root_cause_and_the_restarts_in_the_window(tmp_path: Path) -> None:
    fail = anyio.Event()
    raised: list[str] = []

    async def work() -> None:
        if not raised:
            await fail.wait()
            raised.append("once")
            raise RuntimeError("the disk is full") from OSError("ENOSPC")
        await anyio.sleep_forever()

    async with tree(tmp_path, rv.coroutine("worker", work)) as (_, path):
        fail.set()

        async def restarted() -> bool:
            return (await states(path))["worker"] == "ALIVE.SERVING" and bool(raised)

        await until(restarted)
        root = (await get(path, "/status"))[1]["tree"]
        (worker,) = root["children"]
        assert worker["incarnation"] == 2
        assert worker["fault"]["root"] == "OSError: ENOSPC"
        assert worker["fault"]["incarnation"] == 1
        assert root["restarts"]["used"] == 1


async def test_events_are_lines_of_json_until_the_tree_has_ended(tmp_path: Path) -> None:
    received = b""
    reading = anyio.Event()

    async def read(path: Path) -> None:
        nonlocal received
        async with await anyio.connect_unix(path) as stream:
            await stream.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            with suppress(anyio.EndOfStream):
                while True:
                    received += await stream.receive()
                    reading.set()

    async with anyio.create_task_group() as tasks, tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        tasks.start_soon(read, path)
        with anyio.fail_after(60.0):
            await reading.wait()
            assert (await post(path, "/pause", {"path": "idler"}))[0] == 200
    assert b"application/jsonl" in received
    body = received.partition(b"\r\n\r\n")[2]
    assert body.endswith(b"0\r\n\r\n")  # a complete chunked body
    lines = [json.loads(line) for line in body.split(b"\r\n") if line.startswith(b"{")]
    paused = next(each for each in lines if each["record"] == "StateChanged")
    assert (paused["child"], paused["before"], paused["after"]) == (
        "idler",
        "ALIVE.SERVING",
        "PAUSED.REQUESTED",
    )
    assert lines[-1]["record"] == "SupervisorStateChanged"
    assert lines[-1]["state"] == "ended"


async def test_vllms_paths_are_answered_in_vllms_form(tmp_path: Path) -> None:
    async with tree(tmp_path, pool()) as (sup, path):
        healthy = {"id": 0, "status": "healthy", "path": "llm/1"}
        for spelling in ("/fault_tolerance/status", "/v1/fault_tolerance/status"):
            expected = {"schema_version": 1, "total_engines": 1, "engines": [healthy]}
            assert await get(path, spelling) == (200, expected)
        runtime = sup._running.runtime
        runtime.post(m.Reported("llm/1", 1, "suspect"))
        await until(lambda: sup.status("llm/1").leaf == "SUSPECT")
        (engine,) = (await get(path, "/fault_tolerance/status"))[1]["engines"]
        assert engine["status"] == "unhealthy"
        await sup.terminate_child("llm/1")
        (engine,) = (await get(path, "/fault_tolerance/status"))[1]["engines"]
        assert engine["status"] == "dead"


async def test_an_instruction_is_accepted_at_once_and_what_became_of_it_is_told(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        status, told = await post(
            path, "/fault_tolerance/apply", {"instruction": "pause", "params": {"path": "idler"}}
        )
        assert status == 202
        status, wrong = await post(path, "/apply", {"instruction": "restart", "params": {"path": "nobody"}})
        assert status == 202

        found: dict[str, tuple[str, str]] = {}

        async def carried_out() -> bool:
            known = (await get(path, "/status"))[1]["instructions"]
            found.update({each["request_id"]: (each["state"], each["error"]) for each in known})
            return all(state != "running" for state, _ in found.values())

        await until(carried_out)
        assert found[told["request_id"]] == ("done", "")
        assert found[wrong["request_id"]][0] == "failed"
        assert "no child has the id 'nobody'" in found[wrong["request_id"]][1]
        assert (await states(path))["idler"] == "PAUSED.REQUESTED"


WRONG: list[tuple[str, str, object, int, str]] = [
    ("GET", "/nothing", None, 404, "no such route: /nothing"),
    ("GET", "/pause", None, 405, "/pause takes POST, not GET"),
    ("POST", "/status", None, 405, "/status takes GET, not POST"),
    ("GET", "/status?path=llm", None, 404, "no child has the id 'llm'"),
    ("GET", "/status?paht=llm", None, 400, "did you mean 'path'?"),
    ("POST", "/pause", {"mod": "wait"}, 400, "did you mean 'mode'?"),
    ("POST", "/pause", {"mode": "soft"}, 400, "mode='soft': must be one of 'wait', 'keep', 'abort'"),
    ("POST", "/pause", {"timeout": "soon"}, 400, "timeout='soon': must be a number of seconds"),
    ("POST", "/pause", {"timeout": -1}, 400, "timeout=-1: must be a number of seconds"),
    ("POST", "/pause", {"path": 3}, 400, "path=3"),
    ("POST", "/pause", {"path": "nobody"}, 404, "no child has the id 'nobody'; there are: idler"),
    ("POST", "/resume", {"path": "a/b/c"}, 404, "no child has the id 'a/b'"),
    ("POST", "/restart", [], 400, "must be a JSON object, not list"),
    ("POST", "/stop", {"path": "nobody"}, 404, "no child has the id 'nobody'"),
    ("POST", "/apply", {}, 400, "instruction=None: must be one of pause, resume, restart, stop"),
    ("POST", "/apply", {"instruction": "scale_down"}, 400, "instruction='scale_down'"),
    ("POST", "/apply", {"instruction": "pause", "params": 3}, 400, "params=3: must be an object"),
]


async def test_what_is_wrong_is_one_clear_error_and_changes_nothing(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        for method, target, body, expected, words in WRONG:
            status, told = await (get(path, target) if method == "GET" else post(path, target, body))
            assert (status, set(told)) == (expected, {"error"}), target
            assert words in told["error"]["message"]
        assert await states(path) == {"idler": "ALIVE.SERVING"}


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 50_000, b"NaN"])
async def test_a_body_that_is_no_json_object_is_refused(tmp_path: Path, body: bytes) -> None:
    async with tree(tmp_path) as (_, path):
        head = f"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert (await exchange(path, head + body))[0] == 400


async def test_a_tree_that_is_coming_up_can_be_looked_at_and_stopped(tmp_path: Path) -> None:
    path = tmp_path / "private" / "tree.sock"
    spec = rv.SupervisorSpec(children=[pool(engine_args={"start_delay": 60.0}, start_timeout=120.0)])
    supervisor = rv.Supervisor(spec, local=True, control=path, handle_signals=False)

    async def enter() -> None:
        with pytest.raises(rv.SupervisorStoppedError):
            await supervisor.__aenter__()

    async def children_are_told() -> bool:
        return bool((await get(path, "/status"))[1]["tree"]["children"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        await until(path.exists)
        await until(children_are_told)
        assert (await states(path))["llm/1"] == "RESTARTING.STARTING"
        assert (await post(path, "/stop"))[0] == 200
    assert not path.exists()


async def test_stopping_the_tree_cancels_the_block_and_raises_nothing(tmp_path: Path) -> None:
    after: list[str] = []
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        assert (await post(path, "/stop"))[0] == 200
        with anyio.fail_after(60.0):
            await anyio.sleep_forever()
        after.append("not reached")
    assert after == []


async def test_an_instruction_of_the_engines_own_goes_to_those_that_know_it(tmp_path: Path) -> None:
    tolerant = rv.engine_pool("llm", engine="sim", engine_args={"fault_tolerance": True})
    plain = rv.engine_pool("plain", engine="sim", engine_args={})
    async with tree(tmp_path, tolerant, plain) as (sup, path):
        assert sup.recovery_instructions() == ("retry",)
        given = {"instruction": "retry", "params": {}, "request_id": "mine"}
        assert (await post(path, "/v1/fault_tolerance/apply", given))[0] == 202

        async def settled() -> dict[str, str]:
            while True:
                (one,) = (await get(path, "/status"))[1]["instructions"]
                if one["state"] != "running":
                    return dict(one)

        with anyio.fail_after(60.0):
            told = await settled()
        # vLLM's engines refuse a retry while they are healthy.
        assert (told["request_id"], told["state"]) == ("mine", "failed")
        assert told["error"] == "llm/1: [FT] Rejecting retry on engine 0: status is HEALTHY"
        refused = {"instruction": "retry", "params": {"path": "plain"}}
        status, said = await post(path, "/fault_tolerance/apply", refused)
        assert status == 400
        assert said["error"]["type"] == "UnknownInstruction"
        with pytest.raises(rv.SpecError, match="they know none"):
            await sup.set_recovery_instruction("retry", "plain")
        with pytest.raises(rv.UnknownChildError):
            await sup.set_recovery_instruction("retry", "nobody")
        assert (await sup.set_recovery_instruction("retry", "llm/1"))["llm/1"]["success"] is False
