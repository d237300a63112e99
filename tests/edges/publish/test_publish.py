"""Records on a PUB socket, read by real subscribers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import zmq
from structlog.testing import capture_logs

import rayvisor as rv
from rayvisor import records as r
from rayvisor._edges.publish.messages import TOPICS, Messages, topic_of
from rayvisor._edges.publish.publisher import Publisher
from rayvisor.faults import Cause, Fault, FaultClass

EVENTS = Path(__file__).parents[3] / "docs" / "events.md"
FAULT = Fault(
    child="llm/1",
    incarnation=2,
    at=5.0,
    source="host",
    fault_class=FaultClass.FATAL,
    causes=(Cause("RuntimeError", "outermost"), Cause("OSError", "the disk is full")),
)
WITHIN = 30.0


def moved(path: str = "llm", why: str = "") -> r.SupervisorStateChanged:
    return r.SupervisorStateChanged(at=1.0, path=path, state="running", why=why)


def sample(kind: type[Any]) -> Any:
    values = {"int": 3, "float": 1.5, "str": "words", "Fault": FAULT}
    return kind(**{field.name: values[str(field.type)] for field in dataclasses.fields(kind)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@contextmanager
def subscriber(address: str, topic: str = "", **options: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(address)
        socket.subscribe(topic)
        yield socket


def read(socket: zmq.Socket[bytes], seconds: float = WITHIN) -> tuple[str, dict[str, Any]]:
    assert socket.poll(int(seconds * 1000)), "nothing came"
    topic, body = socket.recv_multipart()
    return topic.decode(), json.loads(body)


def joined(publisher: Publisher, *sockets: zmq.Socket[bytes]) -> None:
    """Publish until each socket has received something, which proves that its subscription has arrived."""
    late = time.monotonic() + WITHIN
    for socket in sockets:
        while not socket.poll(20):
            assert time.monotonic() < late, "a subscription did not arrive"
            publisher.put(moved("joining"))
        while socket.poll(100):
            socket.recv_multipart()


@pytest.mark.parametrize("kind", typing.get_args(r.Record), ids=lambda kind: kind.__name__)
def test_every_record_becomes_json_and_is_described_field_by_field(kind: type[Any]) -> None:
    topic, body = Messages("a").of(sample(kind), wall=100.0)
    message = json.loads(body)
    assert message["record"] == kind.__name__
    fields = {field.name for field in dataclasses.fields(kind)}
    assert set(message) == {"schema", "run", "sequence", "overflows", "record", "time", *fields}
    assert topic.startswith(b"rayvisor.")
    (row,) = re.findall(rf"^\| `{kind.__name__}` \|(.+)$", EVENTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row.split("|")[0])) == fields - {"at"}


def test_a_topic_is_the_path_of_the_child_and_each_is_numbered_by_itself() -> None:
    assert topic_of(r.FaultSeen(at=5.0, fault=FAULT)) == "rayvisor.llm/1"
    assert topic_of(r.EventLoopBlocked(at=5.0, seconds=1.0, activity="", stack="")) == "rayvisor."
    messages = Messages("a")
    order = [json.loads(messages.of(moved(path), 0.0)[1])["sequence"] for path in ("a", "b", "a", "a", "b")]
    assert order == [1, 1, 2, 3, 2]
    for number in range(TOPICS):  # children come and go; their sequences are not kept forever
        messages.of(moved(f"c{number}"), 0.0)
    assert json.loads(messages.of(moved("a"), 0.0)[1])["sequence"] == 1


async def test_a_subscriber_sees_what_happens_to_its_child_without_a_gap_until_the_end() -> None:
    async def work() -> None:
        await anyio.sleep(0.05)
        raise OSError("the disk is full")

    spec = rv.SupervisorSpec(
        children=[rv.coroutine("worker", work), rv.coroutine("other", anyio.sleep_forever)],
        intensity=1000,
    )
    seen: list[tuple[str, dict[str, Any]]] = []
    async with rv.Supervisor(spec, local=True, publish=True) as sup:
        address = sup.publish_address
        assert address is not None
        assert address.startswith("tcp://127.0.0.1:")
        with subscriber(address, "rayvisor.worker") as own, subscriber(address) as every:
            seen.extend([await anyio.to_thread.run_sync(read, own) for _ in range(12)])
            await sup.stop()
            while True:
                topic, last = await anyio.to_thread.run_sync(read, every)
                if topic == "rayvisor." and last.get("state") == "ended":
                    break
    assert {topic for topic, _ in seen} == {"rayvisor.worker"}
    numbers = [message["sequence"] for _, message in seen]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len({message["run"] for _, message in seen}) == 1
    fault = next(message for _, message in seen if message["record"] == "FaultSeen")
    assert fault["fault"]["root"] == "OSError: the disk is full"
    assert abs(fault["time"] - time.time()) < 600
    assert {"StateChanged", "DecisionMade"} <= {message["record"] for _, message in seen}


async def test_who_does_not_read_misses_messages_alone_and_nobody_waits_for_it(folder: Path) -> None:
    address = f"ipc://{folder}/a.sock"
    publisher = Publisher(address, high_water=50)
    await publisher.start()
    with subscriber(address, rcvhwm=1) as slow, subscriber(address) as fast:
        joined(publisher, slow, fast)
        numbers, more = [], 10
        with capture_logs() as logs:
            while more:
                publisher.put(moved(why="x" * 50_000))
                numbers.append(read(fast)[1]["sequence"])
                assert len(numbers) < 1000, "a subscriber that reads nothing has been given it all"
                more -= publisher.overflows
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert [line["event"] for line in logs] == ["publish.overflow"]
        got = [read(slow)[1]["sequence"]]
        while slow.poll(500):
            got.append(read(slow)[1]["sequence"])
        assert got == numbers[: len(got)]
        assert len(got) == len(numbers) - 10
        while not slow.poll(20):
            publisher.put(moved())
        _, message = read(slow)
        assert message["overflows"] == 1
        assert message["sequence"] > got[-1] + 10  # the gap
    await publisher.end()


@pytest.mark.parametrize(
    "where", ["", "5570", "tcp://", "tcp://:5", "tcp://a:99999", "ipc://@a", "udp://a:1", 5, []]
)
def test_what_is_no_address_is_refused_when_the_supervisor_is_made(where: Any) -> None:
    with pytest.raises(rv.SpecError, match=r"publish=.*must be True or an address"):
        rv.Supervisor(rv.SupervisorSpec(), publish=where)


async def test_an_address_that_cannot_be_had_is_said_before_anything_starts(folder: Path) -> None:
    started: list[bool] = []

    async def work() -> None:
        started.append(True)
        await anyio.sleep_forever()

    spec = rv.SupervisorSpec(children=[rv.coroutine("worker", work)])
    (folder / "file").write_text("precious")
    first, second = Publisher(where=True), Publisher(f"ipc://{folder}/a.sock")
    await first.start()
    await second.start()
    refused = {
        first.address: "Address already in use",
        second.address: "a running tree listens there",
        f"ipc://{folder}/file": "exists and is not a socket",
        "tcp://192.0.2.1:5570": "cannot be bound",
    }
    for address, why in refused.items():
        with pytest.raises(rv.PublishError, match=why) as caught:
            async with rv.Supervisor(spec, local=True, publish=address):
                pass
        assert caught.value.address == address
    assert not started
    assert (folder / "file").read_text() == "precious"
    await first.end()
    await second.end()
    assert os.listdir(folder) == ["file"]  # noqa: PTH208 - a list of names is compared


async def test_without_pyzmq_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(rv.PublishError, match=r"needs pyzmq.*pip install 'rayvisor\[publish\]'"):
        await Publisher(where=True).start()


async def test_an_address_that_others_reach_has_to_be_named_and_is_said_in_the_log() -> None:
    for where, exposed in ((True, False), ("tcp://0.0.0.0:0", True)):
        with capture_logs() as logs:
            publisher = Publisher(where)
            await publisher.start()
            await publisher.end()
        assert ("publish.exposed" in [line["event"] for line in logs]) == exposed


async def test_a_socket_that_fails_does_not_reach_the_tree() -> None:
    publisher = Publisher(where=True)
    await publisher.start()
    assert publisher._socket is not None
    publisher._socket.close()
    with capture_logs() as logs:
        publisher.put(moved())
    assert [line["event"] for line in logs] == ["publish.failed"]
    await publisher.end()
