"""No client, however broken, slow or numerous, harms the tree."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import rayvisor as rv
from rayvisor._edges.http import server
from rayvisor.timeouts import EdgeTimeouts
from tests.edges.control.http_client import exchange, get, idle, pool, states, tree
from tests.waiting import until

GARBAGE = [
    b"\x00\x01\x02\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /status HTTP/1.1\r\n\r\n",  # no Host
    b"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n",  # no URL
    b"GET http://[::1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST //] HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(data[:40]))
async def test_what_is_no_http_is_answered_with_400_or_more(tmp_path: Path, data: bytes) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        status, told = await exchange(path, data)
        assert 400 <= status < 500
        assert told["error"]["type"] == "BadRequest"
        assert (await get(path, "/status"))[0] == 200


async def raw(path: Path, data: bytes) -> bytes:
    with anyio.fail_after(60.0):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(data)
            answer = b""
            with suppress(anyio.EndOfStream):
                while True:
                    answer += await stream.receive()
    return answer


@pytest.mark.parametrize(
    ("target", "status"),
    [("/status", 200), ("/metrics", 200), ("/events", 200), ("/live", 200), ("/pause", 405), ("/none", 404)],
)
async def test_a_head_request_gets_the_head_of_the_answer_only(
    tmp_path: Path, target: str, status: int
) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (sup, path):
        answer = await raw(path, f"HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert (int(head.split()[1]), body) == (status, b"")
        streams = target in ("/events", "/live")
        assert (b"content-length" in head.lower()) is not streams
        assert sup._control is not None
        assert sup._control._streams == set()


async def test_a_refused_head_request_has_no_body_either(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        head = f"HEAD /status HTTP/1.1\r\nHost: x\r\nContent-Length: {server.BODY_BYTES + 1}\r\n\r\n"
        answer = await raw(path, head.encode() + b" " * (server.BODY_BYTES + 1))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\n")


async def test_an_unforeseen_error_of_a_handler_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise TimeoutError("unforeseen")

    monkeypatch.setattr("rayvisor._edges.http.routes.Routes.answer", fail)
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        status, told = await get(path, "/status")
        assert (status, told["error"]["type"]) == (500, "TimeoutError")


async def test_a_body_that_is_too_large_is_refused_without_being_kept(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        body = b" " * (server.BODY_BYTES + 1)
        head = f"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        status, told = await exchange(path, head + body)
        assert (status, told["error"]["type"]) == (413, "TooLarge")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_at_all_leave_the_tree_as_it_was(tmp_path: Path, data: bytes) -> None:
    async def run() -> None:
        async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
            async with await anyio.connect_unix(path) as stream:
                await stream.send(data or b"x")
            assert await states(path) == {"idler": "ALIVE.SERVING"}

    anyio.run(run)


async def test_one_that_says_nothing_is_let_go_after_a_while(tmp_path: Path) -> None:
    timeouts = rv.Timeouts(edges=EdgeTimeouts(read=0.2))
    async with tree(tmp_path, rv.coroutine("idler", idle), timeouts=timeouts) as (_, path):
        status, told = await exchange(path, b"GET /status HTTP/1.1\r\nHo")
        assert (status, told["error"]["type"]) == (408, "TooSlow")


async def test_one_that_breaks_off_does_not_call_off_what_it_asked_for(tmp_path: Path) -> None:
    async with tree(tmp_path, pool(engine_args={"start_delay": 0.3})) as (sup, path):
        async with await anyio.connect_unix(path) as stream:
            body = b'{"path": "llm/1"}'
            head = f"POST /restart HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            await stream.send(head + body)
            await until(lambda: sup.status("llm/1").state != "ALIVE")
        await until(lambda: sup.status("llm/1").leaf == "SERVING")
        assert sup.status("llm/1").incarnation == 2


async def test_more_connections_than_there_may_be_are_closed_and_the_tree_goes_on(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (sup, path):
        idlers = [await anyio.connect_unix(path) for _ in range(server.CONNECTIONS_MAX)]
        over = await anyio.connect_unix(path)
        with anyio.fail_after(60.0), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await over.receive()
        await over.aclose()
        await sup.pause("idler")
        assert sup.status("idler").leaf == "REQUESTED"
        for stream in idlers:
            await stream.aclose()

        async def answers() -> bool:
            with suppress(anyio.BrokenResourceError, IndexError):
                return (await get(path, "/status"))[0] == 200
            return False

        await until(answers)


async def test_more_streams_than_there_may_be_are_refused(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (_, path):
        readers: list[anyio.abc.SocketStream] = []
        for _ in range(server.STREAMS_MAX):
            stream = await anyio.connect_unix(path)
            await stream.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in await stream.receive()
            readers.append(stream)
        assert (await get(path, "/events"))[0] == 503
        for reader in readers:  # one that leaves an idle stream makes room at once
            await reader.aclose()
        async with await anyio.connect_unix(path) as late:
            with anyio.fail_after(60.0):
                await late.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 200 " in await late.receive()


async def test_a_slow_reader_is_told_how_much_it_missed_and_holds_nobody_up(tmp_path: Path) -> None:
    names = [f"idler{number}" for number in range(40)]
    async with tree(tmp_path, *(rv.coroutine(name, idle) for name in names)) as (sup, path):
        reader = socket.socket(socket.AF_UNIX)
        reader.connect(str(path))
        reader.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(sup._broadcaster._streams) == 1)
        for _ in range(200):  # 16,000 records, where 10,000 are kept for it
            await sup.pause()
            await sup.resume()
        reader.settimeout(60.0)

        def read() -> dict[str, Any]:
            received = b""
            with reader:
                while b'"RecordsMissed"' not in received or not received.endswith(b"\r\n"):
                    received += reader.recv(1 << 20)
            lines = [json.loads(line) for line in received.split(b"\r\n") if line.startswith(b"{")]
            return next(each for each in lines if each["record"] == "RecordsMissed")

        missed = await anyio.to_thread.run_sync(read)
        assert missed["count"] > 1000


async def test_a_client_that_takes_no_answer_is_let_go(tmp_path: Path) -> None:
    timeouts = rv.Timeouts(edges=EdgeTimeouts(write=0.3))
    names = [f"{'x' * 500}{number}" for number in range(500)]  # an answer larger than the socket's buffer
    children = [rv.coroutine(name, idle) for name in names]
    async with tree(tmp_path, *children, timeouts=timeouts) as (sup, path):
        unresponsive = socket.socket(socket.AF_UNIX)
        with unresponsive:
            unresponsive.connect(str(path))
            unresponsive.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            control = sup._control
            assert control is not None
            await until(lambda: control._open == 1)
            await until(lambda: control._open == 0)
        assert (await get(path, f"/status?path={names[0]}"))[0] == 200


async def test_refused_connections_are_logged_together(tmp_path: Path) -> None:
    timeouts = rv.Timeouts(edges=EdgeTimeouts(report=0.5))
    with capture_logs() as logs:
        async with tree(tmp_path, rv.coroutine("idler", idle), timeouts=timeouts) as (_, path):
            idlers = [await anyio.connect_unix(path) for _ in range(server.CONNECTIONS_MAX)]
            for _ in range(100):
                await (await anyio.connect_unix(path)).aclose()
            await until(lambda: sum(each.get("times", 0) for each in logs) == 100)
            await (await anyio.connect_unix(path)).aclose()  # reported even if the tree ends before
            await anyio.sleep(0.1)
            for stream in idlers:
                await stream.aclose()
    assert [each["event"] for each in logs if "times" in each] == ["control.full"] * 2
    assert sum(each.get("times", 0) for each in logs) == 101


async def test_a_reader_that_has_ended_its_own_direction_still_gets_events(tmp_path: Path) -> None:
    async with tree(tmp_path, rv.coroutine("idler", idle)) as (sup, path):
        async with await anyio.connect_unix(path) as reader:
            await reader.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.send_eof()
            with anyio.fail_after(60.0):
                assert b" 200 " in await reader.receive()
                await anyio.sleep(0.3)
                await sup.pause("idler")
                assert b'"StateChanged"' in await reader.receive()
        control = sup._control
        assert control is not None
        await until(lambda: control._streams == set())  # it is noticed that it has left


async def test_readers_that_never_read_make_room_for_one_that_does(tmp_path: Path) -> None:
    timeouts = rv.Timeouts(edges=EdgeTimeouts(unread=0.3))
    async with tree(tmp_path, rv.coroutine("idler", idle), timeouts=timeouts) as (sup, path):
        control = sup._control
        assert control is not None
        request = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
        reading = await anyio.connect_unix(path)
        await reading.send(request)
        assert b" 200 " in await reading.receive()
        unread = [await anyio.connect_unix(path) for _ in range(server.STREAMS_MAX - 1)]
        for stream in unread:
            await stream.send(request)
        await until(lambda: len(control._streams) == server.STREAMS_MAX)
        await sup.pause("idler")  # a blocked or an idle stream makes no difference
        assert b'"StateChanged"' in await reading.receive()
        await anyio.sleep(0.5)
        late = []
        for _ in range(server.STREAMS_MAX - 1):
            late.append(await anyio.connect_unix(path))
            await late[-1].send(request)
            with anyio.fail_after(60.0):
                assert b" 200 " in await late[-1].receive()
        await anyio.sleep(0.5)
        assert (await get(path, "/events"))[0] == 503  # all of these read
        await sup.resume("idler")
        for reader in (reading, *late):
            with anyio.fail_after(60.0):
                assert b'"StateChanged"' in await reader.receive()
        for stream in (reading, *unread, *late):
            await stream.aclose()
