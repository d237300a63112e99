"""The control socket: its permissions, what it replaces, and its removal."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

import rayvisor as rv
from rayvisor._edges.control.client import find
from rayvisor._edges.control.server import ControlServer
from rayvisor._edges.live.history import History
from rayvisor._edges.sockets import default_folder, is_listening, live_sockets
from tests.edges.control.http_client import get, idle, tree
from tests.waiting import until, until_now

SPEC = rv.SupervisorSpec(children=[rv.coroutine("idler", idle)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    return private


@pytest.fixture
def own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYVISOR_CONTROL_DIR", str(folder))
    return folder


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("between", ["", "deep/deeper/"])
@pytest.mark.parametrize("through_link", [False, True])
async def test_a_folder_below_another_users_is_refused(
    tmp_path: Path, between: str, *, through_link: bool
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 65534, 65534)
    if through_link:
        (tmp_path / "link").symlink_to(theirs)
    path = tmp_path / ("link" if through_link else "theirs") / f"{between}mine" / "a.sock"
    with pytest.raises(rv.ControlSocketError, match=rf"the folder {theirs} above it belongs to another user"):
        await rv.Supervisor(SPEC, control=path).__aenter__()
    assert files_in(theirs) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_link_that_another_user_can_exchange_is_refused(tmp_path: Path, folder: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    (theirs / "link").symlink_to(folder)
    os.chown(theirs, 65534, 65534)
    with pytest.raises(rv.ControlSocketError, match=rf"the folder {theirs} above it belongs to another user"):
        await served(theirs / "link" / "a.sock").start()
    assert files_in(folder) == []


@pytest.mark.parametrize(("mode", "fine"), [(0o777, False), (0o775, False), (0o1777, True), (0o755, True)])
async def test_a_folder_below_one_that_others_can_write_to_is_refused(
    tmp_path: Path, mode: int, *, fine: bool
) -> None:
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True, mode=0o700)
    shared.chmod(mode)
    server = served(shared / "mine" / "a.sock")
    if fine:
        await server.start()
        await server.end()
    else:
        with pytest.raises(rv.ControlSocketError, match=rf"can write to the folder {shared} above it"):
            await server.start()


async def test_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server = served(tmp_path / "one" / "two" / "a.sock")
        await server.start()
        await server.end()
    finally:
        os.umask(before)
    for folder in (tmp_path / "one", tmp_path / "one" / "two"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("foreign", ["listener", "file", "link"])
def test_nothing_is_sent_to_a_socket_of_another_user(folder: Path, foreign: str) -> None:
    path = folder / "tree.sock"
    program = (
        "import os, socket, sys\n"
        "here = socket.socket(socket.AF_UNIX)\n"
        "here.bind(sys.argv[1])\n"
        "if sys.argv[2] == 'listener': os.setuid(65534)\n"
        "here.listen()\n"
        "print('ready', flush=True)\n"
        "there, _ = here.accept()\n"
        "print(there.recv(100), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path), foreign], stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        if foreign == "file":
            os.chown(path, 65534, 65534)
        if foreign == "link":
            (folder / "link").symlink_to(path)
            os.chown(folder / "link", 65534, 65534, follow_symlinks=False)
            path = folder / "link"
        with pytest.raises(rv.ControlSocketError, match=r"belongs to another user \(uid 65534\)"):
            find(path).get("/v1/status")
        assert listener.stdout.read() == "b''\n"


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def stale(path: Path) -> None:
    """Leave a socket file without a listener, as a killed process does."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()


def served(path: Path) -> ControlServer:
    return ControlServer(rv.Supervisor(SPEC), path, History(0.0, tuple))


async def test_whoever_sees_the_socket_is_answered(folder: Path) -> None:
    answered: list[bool] = []

    def look(path: Path) -> None:
        until_now(path.exists, interval=0.0)
        answered.append(is_listening(path))

    for turn in range(20):
        path = folder / f"{turn}.sock"
        server = served(path)
        looking = threading.Thread(target=look, args=(path,))
        looking.start()
        await server.start()
        await anyio.to_thread.run_sync(looking.join)
        assert files_in(folder) == [path]
        await server.end()
    assert answered == [True] * 20


async def test_only_its_user_can_open_the_socket(tmp_path: Path) -> None:
    async with tree(tmp_path) as (_, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_folder_that_others_can_enter_is_refused_before_anything_is_started(
    open_folder: Path,
) -> None:
    started: list[int] = []

    async def work() -> None:
        started.append(1)
        await anyio.sleep_forever()

    spec = rv.SupervisorSpec(children=[rv.coroutine("worker", work)])
    with pytest.raises(rv.ControlSocketError, match=r"other users can enter its folder .* mode 0700"):
        await rv.Supervisor(spec, control=open_folder / "a.sock").__aenter__()
    assert not started


async def test_a_socket_that_a_dead_process_left_is_replaced(folder: Path) -> None:
    path = folder / "tree.sock"
    stale(path)
    assert not is_listening(path)
    async with rv.Supervisor(SPEC, control=path, handle_signals=False):
        assert (await get(path, "/status"))[0] == 200


async def test_a_living_tree_keeps_its_socket(tmp_path: Path) -> None:
    async with tree(tmp_path) as (_, path):
        with pytest.raises(rv.ControlSocketError, match="a running tree listens there"):
            await rv.Supervisor(SPEC, control=path, handle_signals=False).__aenter__()
        assert (await get(path, "/status"))[0] == 200


async def test_what_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "notes.txt"
    path.write_text("mine")
    with pytest.raises(rv.ControlSocketError, match="is not a socket"):
        await rv.Supervisor(SPEC, control=path).__aenter__()
    assert path.read_text() == "mine"


async def test_a_path_that_is_too_long_is_said_so(folder: Path) -> None:
    with pytest.raises(rv.ControlSocketError, match="longer than the 107 bytes"):
        await rv.Supervisor(SPEC, control=folder / ("x" * 120)).__aenter__()


async def test_the_socket_is_removed_when_the_tree_has_ended(tmp_path: Path) -> None:
    async with tree(tmp_path) as (_, path):
        assert path.exists()
    assert not path.exists()


async def test_the_socket_is_removed_when_the_tree_could_not_be_started(folder: Path) -> None:
    async def fail(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        del task_status
        raise ValueError("no")

    spec = rv.SupervisorSpec(children=[rv.coroutine("worker", fail)])
    with pytest.raises(rv.StartFailedError):
        await rv.Supervisor(spec, control=folder / "a.sock", handle_signals=False).__aenter__()
    assert files_in(folder) == []


async def test_what_somebody_put_in_its_place_is_not_removed(tmp_path: Path) -> None:
    async with tree(tmp_path) as (_, path):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


async def test_of_many_that_want_one_path_at_once_one_gets_it(folder: Path) -> None:
    path = folder / "tree.sock"
    stale(path)
    begin, over = threading.Barrier(6), threading.Event()
    got: list[bool] = []

    async def open_it() -> None:
        server = served(path)
        begin.wait()
        try:
            await server.start()
            got.append(True)
        except rv.ControlSocketError:
            got.append(False)
        await anyio.to_thread.run_sync(over.wait)  # a closed socket would count as dead
        await server.end()

    threads = [threading.Thread(target=anyio.run, args=(open_it,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    await until(lambda: len(got) == 6)
    assert is_listening(path)
    over.set()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert sorted(got) == [False] * 5 + [True]


async def test_trees_are_found_by_themselves(own_folder: Path) -> None:
    assert default_folder() == own_folder
    with pytest.raises(rv.ControlSocketError, match="no tree runs"):
        find()
    stale(own_folder / "1.sock")
    async with rv.Supervisor(SPEC, control=True, handle_signals=False) as one:
        assert await anyio.to_thread.run_sync(lambda: find().path) == one.control
        async with rv.Supervisor(SPEC, control=True, handle_signals=False) as two:
            assert one.control != two.control
            assert live_sockets() == [one.control, two.control]
            with pytest.raises(rv.ControlSocketError) as several:
                await anyio.to_thread.run_sync(find)
            message = str(several.value)
            assert message.count("running: idler") == 2
            assert f"--socket {one.control}" in message
            assert f"--socket {two.control}" in message


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYVISOR_CONTROL_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_folder() == tmp_path / "rayvisor"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert f"rayvisor-{os.getuid()}" in str(default_folder())


async def test_a_killed_process_leaves_a_socket_that_the_next_one_replaces(folder: Path) -> None:
    path = folder / "tree.sock"
    program = (
        "import anyio, os, signal, sys, rayvisor as rv\n"
        "async def idle(): await anyio.sleep_forever()\n"
        "async def main():\n"
        "    spec = rv.SupervisorSpec(children=[rv.coroutine('idler', idle)])\n"
        "    async with rv.Supervisor(spec, control=sys.argv[1]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "anyio.run(main)"
    )
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    )
    assert done.returncode == -9
    assert path.exists()
    assert not is_listening(path)
    async with rv.Supervisor(SPEC, control=path, handle_signals=False):
        assert (await get(path, "/status"))[0] == 200
