"""The process that EngineCores are forked from; here without vLLM, which takes 13 s to import."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from rayvisor._backends.process.engine_tree import TAG, ProcessTree, new_tag
from rayvisor._backends.process.identity import alive, identify
from rayvisor._backends.vllm import lease as leases
from rayvisor._backends.vllm import template as templates
from rayvisor._backends.vllm.lease import ForkedProcess, forked_from
from rayvisor._backends.vllm.plugin import OWN_METHOD
from rayvisor.timeouts import DEFAULT_TIMEOUTS, VllmTimeouts

_PROGRAM = (
    "from rayvisor._backends.vllm import forking; "
    "forking._import_all = lambda: {refusal!r}; forking.serve({arguments})"
)
_ARGUMENTS = "{descriptor}, {host_check}"
_SOON = 60.0


@pytest.fixture(autouse=True)
def _nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_PROGRAM", _PROGRAM.format(refusal="", arguments=_ARGUMENTS))
    monkeypatch.setattr(templates, "expected_additions", lambda _: {})
    monkeypatch.setattr(leases, "_registry", leases._TemplateRegistry())
    monkeypatch.setenv(OWN_METHOD, "fork")


class Host:
    """Holds a lease of the template, and has processes forked from it."""

    def __init__(self, folder: Path, timeouts: VllmTimeouts) -> None:
        self.timeouts = timeouts
        self.lease = leases.Lease()
        self.log = folder / "engine.log"
        self.cancelled = threading.Event()

    def template(self) -> templates.Template:
        found = self.lease.template({}, str(self.log), timeouts=self.timeouts)
        assert found is not None
        return found

    def start(self, work: Callable[..., None], *given: object, tag: str = "") -> ForkedProcess:
        process = ForkedProcess(target=work, args=given, name="EngineCore")
        with forked_from(self.template(), tag or new_tag(), str(self.log), self.cancelled.is_set):
            process.start()
        return process


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host; a test may parametrize it with other timeouts of its templates."""
    host = Host(tmp_path, getattr(request, "param", DEFAULT_TIMEOUTS.vllm))
    yield host
    leases._registry.clear()
    for child in multiprocessing.active_children():
        child.kill()
        child.join(_SOON)


def _send_state(into: Connection) -> None:
    """Send the state of this process, and wait for a message."""
    os.write(1, b"hello from the fork")
    parent = multiprocessing.parent_process()
    into.send(
        {
            "pid": os.getpid(),
            "parent": parent.pid if parent else None,
            "name": multiprocessing.current_process().name,
            "colour": os.environ.get("COLOUR"),
            "tag": os.environ.get(TAG),
            "folder": str(Path.cwd()),
            "interrupted": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        }
    )
    into.poll(_SOON)


def _leave(code: int) -> None:
    sys.exit(code)


def test_a_fork_is_what_a_spawned_process_would_be(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host.template()
    monkeypatch.setenv("COLOUR", "green")  # after the template was started
    monkeypatch.chdir(tmp_path)
    ours, theirs = multiprocessing.Pipe()
    tag = new_tag()
    process = host.start(_send_state, theirs, tag=tag)
    assert ours.poll(_SOON)
    state = ours.recv()
    assert state == {
        "pid": process.pid,
        "parent": os.getpid(),
        "name": "EngineCore",
        "colour": "green",
        "tag": tag,
        "folder": str(tmp_path),
        "interrupted": False,
    }
    forked = psutil.Process(process.pid)
    assert forked.environ()[TAG] == tag
    assert forked.ppid() == host.template().pid
    assert "hello from the fork" in host.log.read_text()
    ours.send("go")
    process.join(_SOON)
    assert process.exitcode == 0


@pytest.mark.asyncio
async def test_a_fork_is_found_by_its_tag_and_its_template_is_not(host: Host) -> None:
    tree = ProcessTree(new_tag())
    other = ProcessTree(new_tag())
    ours, theirs = multiprocessing.Pipe()
    process = host.start(_send_state, theirs, tag=tree.tag)
    ours.poll(_SOON)
    for each in (tree, other):
        await each.scan()
        await each.sweep()
    assert [(found.pid, found.name) for found in tree.processes] == [(process.pid, "::EngineCore")]
    assert other.processes == ()
    assert await tree.end(_SOON, lambda: None) == ()
    process.join(_SOON)
    assert process.exitcode == -signal.SIGKILL
    assert not host.template().ended()
    tree.close()
    other.close()


def test_exit_codes_come_back(host: Host) -> None:
    processes = [host.start(_leave, code) for code in (0, 7)]
    for process in processes:
        process.join(_SOON)
    assert [process.exitcode for process in processes] == [0, 7]
    assert len({process.pid for process in processes}) == 2


def test_the_death_of_the_template_is_not_that_of_what_it_has_forked_and_another_one_follows(
    host: Host,
) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = host.start(_send_state, theirs)
    ours.poll(_SOON)
    first = host.template()
    os.kill(first.pid, signal.SIGKILL)
    psutil.Process(first.pid).wait(_SOON)
    assert process.is_alive()
    second = host.start(_leave, 3)
    assert host.template().pid != first.pid
    second.join(_SOON)
    assert second.exitcode == 3
    process.kill()
    process.join(_SOON)
    assert process.exitcode == 255  # the template that knows the exit code is gone


@pytest.mark.parametrize("host", [VllmTimeouts(template_answer=1.0)], indirect=True)
def test_where_the_template_stands_still_the_process_is_spawned(host: Host) -> None:
    stopped = host.template()
    host.start(_leave, 0).join(_SOON)
    os.kill(stopped.pid, signal.SIGSTOP)
    process = host.start(_leave, 4)
    process.join(_SOON)
    assert process.exitcode == 4
    assert stopped.ended()
    assert host.template().pid != stopped.pid


def test_a_template_that_cannot_be_started_leaves_no_socket_open(tmp_path: Path) -> None:
    def descriptors() -> list[str]:
        return sorted(each.name for each in Path("/proc/self/fd").iterdir())

    before = descriptors()
    with pytest.raises(FileNotFoundError) as raised:  # it keeps the failed constructor's frame alive
        templates.Template(str(tmp_path / "missing" / "engine.log"))
    assert descriptors() == before
    assert raised.type is FileNotFoundError


def test_a_start_that_is_called_off_does_not_wait_for_the_template(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_PROGRAM", "import time; time.sleep(600)")
    template = host.template()
    threading.Timer(0.2, host.cancelled.set).start()
    with pytest.raises(templates.TemplateGoneError, match="start was cancelled"):
        host.start(_leave, 0)
    assert not template.ended()


@pytest.mark.parametrize("program", [_PROGRAM.format(refusal="no", arguments=_ARGUMENTS), "import nowhere"])
def test_a_template_that_cannot_be_used_is_tried_a_few_times_only(
    host: Host, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(templates, "_PROGRAM", program)
    monkeypatch.setattr(leases, "_MAX_FAILURES", 1)
    process = host.start(_leave, 5)
    process.join(_SOON)
    assert process.exitcode == 5
    assert host.lease.template({}, str(host.log)) is None


def test_a_template_that_was_loaded_with_other_settings_gives_way_to_one_that_fits(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = host.template()
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    process = host.start(_leave, 6)
    process.join(_SOON)
    assert process.exitcode == 6
    assert unfit.ended()
    assert not host.template().ended()


def test_the_last_who_needs_it_ends_it(host: Host) -> None:
    template = host.template()
    other = leases.Lease()
    host.lease.close()
    assert not template.ended()
    other.close()
    assert template.ended()


@pytest.mark.parametrize(
    ("arguments", "method"),
    [({"numa_bind": True}, "fork"), ({"data_parallel_backend": "ray"}, "fork"), ({}, "")],
)
def test_there_is_none_where_vllm_has_ways_of_its_own(
    host: Host, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object], method: str
) -> None:
    monkeypatch.setenv(OWN_METHOD, method)
    assert host.lease.template(arguments, str(host.log)) is None


_HOST = """
import sys
from rayvisor._backends.vllm import template as templates
templates._PROGRAM = sys.argv[1]
made = templates.Template(sys.argv[2])
print(made.pid, flush=True)
sys.stdin.read()
"""


def test_it_does_not_outlive_its_host(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOST, templates._PROGRAM, str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        template = identify(int(process.stdout.readline()))
        process.kill()
    assert template is not None
    deadline = time.monotonic() + _SOON
    while alive(template):
        assert time.monotonic() < deadline
        time.sleep(0.02)
