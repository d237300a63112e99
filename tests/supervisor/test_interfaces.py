"""Pages, control socket and publisher are closed on every way out, also where the block is not entered."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor._edges.control.server import ControlServer
from rayvisor._edges.publish.publisher import Publisher
from rayvisor._edges.web.server import WebPage
from rayvisor.timeouts import RuntimeTimeouts


async def idle() -> None:
    await anyio.sleep_forever()


async def fail() -> None:
    raise rv.SpecError("mine", 1, "cannot work")


async def fail_at_once(*, task_status: anyio.abc.TaskStatus[None]) -> None:
    del task_status
    raise OSError("no")


async def never_up(*, task_status: anyio.abc.TaskStatus[None]) -> None:
    del task_status
    await anyio.sleep_forever()


def tree(function: Callable[..., Any] = idle, **options: Any) -> rv.Supervisor:
    spec = rv.SupervisorSpec(intensity=0, children=[rv.coroutine("a", function)])
    return rv.Supervisor(spec, local=True, handle_signals=False, **options)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def there(path: Path) -> bool:
    return path.exists()


def occupy(path: Path) -> None:
    path.write_text("somebody's file")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "control"


async def test_a_page_ends_with_the_tree(path: Path) -> None:
    sup = tree(control=path)
    page = await sup.serve_web()
    async with sup:
        assert listens(page.port)
        assert there(path)
    assert not listens(page.port)
    assert not there(path)


async def test_a_page_is_closed_when_the_control_socket_cannot_be_opened(path: Path) -> None:
    occupy(path)
    sup = tree(control=path, publish=True)
    page = await sup.serve_web()
    with pytest.raises(rv.ControlSocketError):
        await sup.__aenter__()
    assert not listens(page.port)
    assert sup._publisher is not None
    assert sup._publisher._socket is None


async def test_a_page_is_closed_when_nothing_can_be_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    sup = tree(publish=True)
    page = await sup.serve_web()
    with pytest.raises(rv.PublishError):
        await sup.__aenter__()
    assert not listens(page.port)


async def test_everything_is_closed_when_a_first_start_fails(path: Path) -> None:
    sup = tree(fail_at_once, control=path, publish=True)
    page = await sup.serve_web()
    with pytest.raises(rv.StartFailedError):
        await sup.__aenter__()
    assert not listens(page.port)
    assert not there(path)
    assert sup._publisher is not None
    assert sup._publisher._socket is None


async def test_everything_is_closed_when_a_start_is_cancelled(path: Path) -> None:
    sup = tree(never_up, control=path, publish=True)
    page = await sup.serve_web()
    with anyio.move_on_after(0.2) as scope:
        await sup.__aenter__()
    assert scope.cancelled_caught
    assert not listens(page.port)
    assert not there(path)


async def test_everything_is_closed_when_the_opening_of_the_control_socket_is_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: ControlServer) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(ControlServer, "open", hang)
    sup = tree(control=path, publish=True)
    page = await sup.serve_web()
    with anyio.move_on_after(0.1) as scope:
        await sup.__aenter__()
    assert scope.cancelled_caught
    assert not listens(page.port)
    assert sup._publisher is not None
    assert sup._publisher._socket is None


async def test_one_that_cannot_be_closed_keeps_none_of_the_others_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ControlServer, "end", lambda _: fail())
    closed: list[str] = []
    plain = Publisher.end

    async def end(publisher: Publisher) -> None:
        closed.append("publisher")
        await plain(publisher)

    monkeypatch.setattr(Publisher, "end", end)
    sup = tree(control=path, publish=True)
    page = await sup.serve_web()
    async with sup:
        pass
    assert not listens(page.port)
    assert closed == ["publisher"]
    assert sup._control is not None
    sup._control.close()


async def test_one_that_does_not_close_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebPage, "end", lambda _: anyio.sleep_forever())
    sup = tree(control=path, timeouts=rv.Timeouts(runtime=RuntimeTimeouts(resisting_tasks=0.2)))
    page = await sup.serve_web()
    with anyio.fail_after(10):
        async with sup:
            pass
    assert not there(path)
    page.close()


async def test_a_page_that_is_opened_while_the_tree_ends_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opening, may_open = anyio.Event(), anyio.Event()
    plain = WebPage.open

    async def slow(page: WebPage) -> None:
        opening.set()
        await may_open.wait()
        await plain(page)

    monkeypatch.setattr(WebPage, "open", slow)
    async with tree() as sup:
        task = asyncio.create_task(sup.serve_web())
        await opening.wait()
    may_open.set()
    with pytest.raises(rv.SupervisorStoppedError):
        await task
    assert sup._servers == []


async def test_a_page_that_could_not_be_opened_is_not_kept() -> None:
    async with tree() as sup:
        page = await sup.serve_web()
        with pytest.raises(rv.ControlSocketError):
            await sup.serve_web(page.port)
        assert sup._servers == [page]


async def test_children_and_the_environment_are_closed_when_the_session_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As ``asyncio.run`` does it to every task when it ends."""
    sup = tree(never_up)
    closed: list[str] = []

    async def close() -> None:
        closed.append("environment")

    monkeypatch.setattr(sup._environment, "close", close)
    entering = asyncio.create_task(sup.__aenter__())
    while sup._session is None or not sup._session.begun:  # noqa: ASYNC110 - nothing tells of it
        await anyio.sleep(0.01)
    assert sup._task is not None
    sup._task.cancel()
    await asyncio.wait((entering,))
    assert closed == ["environment"]
