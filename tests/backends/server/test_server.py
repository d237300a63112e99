"""Simulated servers in a tree: the behaviour that is particular to servers."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import rayvisor as rv
from rayvisor import records as r
from rayvisor._backends.host.host import EngineHost
from rayvisor._backends.process.identity import alive, identify
from rayvisor._backends.server.ports import PortTakenError
from rayvisor._backends.server.server_engine import ServerEngine
from rayvisor._backends.server.usage_errors import with_usage_error
from rayvisor._core.protocol.wire import Worked
from rayvisor.config import load_tree
from rayvisor.faults import Cause, Termination, classify
from rayvisor.specs import StallLimits
from rayvisor.testing import wait_for_state
from rayvisor.timeouts import ServerTimeouts, Timeouts
from tests.backends.server.http_client import complete, get
from tests.waiting import until

QUICK: dict[str, Any] = {"stall_after": 1.5, "probe_interval": 0.4}


def web(**options: Any) -> rv.ChildSpec:
    return rv.server("web", model="sim", engine="sim", **options)


def tree(**options: Any) -> rv.Supervisor:
    spec = rv.SupervisorSpec(intensity=3, period=900.0, children=[web(**options)])
    return rv.Supervisor(spec, local=True, seed=7)


def pid_of(sup: rv.Supervisor, name: str) -> int:
    return next(process.pid for _, process in sup.processes("web") if name in process.name)


def faults(watch: Any) -> list[rv.Fault]:
    return [record.fault for record in watch.rest() if isinstance(record, r.FaultSeen)]


async def test_a_step_that_never_returns_is_found_by_what_does_not_move_while_requests_run() -> None:
    async with tree(engine_args={"tokens_per_second": 50}, **QUICK) as sup:
        watch = sup.watch()
        url = await sup["web"].serving()

        async def ask() -> None:
            with pytest.raises(OSError):  # noqa: PT011 - the error depends on the moment at which the connection breaks
                await complete(url, "sim", tokens=1000)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: has_tokens(url))
            os.kill(pid_of(sup, "Worker"), signal.SIGUSR1)
            await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=60.0)
        assert str(faults(watch)[0].root).startswith("EngineStalled: no token for ")


def has_tokens(url: str) -> bool:
    lines = get(url, "/metrics").splitlines()
    return any("generation_tokens" in line and not line.endswith(" 0.0") for line in lines if line[0] != "#")


async def test_a_burst_of_work_raises_no_alarm() -> None:
    # Four prompts in one step take longer than the stall limit.
    busy = {"prefill_seconds": 0.45, "max_num_seqs": 4}
    async with tree(engine_args=busy, **QUICK) as sup:
        watch = sup.watch()
        url = await sup["web"].serving()
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(complete, url, "sim", f"prompt {number}", 4)
        assert sup.status("web").incarnation == 1
        assert sup.status("web").leaf == "SERVING"
        assert faults(watch) == []


async def test_a_wrong_argument_is_a_permanent_fault_that_says_which() -> None:
    sup = tree(args=["--no-such-option", "3"])
    watch = sup.watch()
    with pytest.raises(
        rv.StartFailedError, match="ArgumentError: unrecognized arguments: --no-such-option 3"
    ):
        async with sup:
            pass
    assert [fault.fault_class for fault in faults(watch)] == [rv.FaultClass.PERMANENT]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_fault_is_recovered_from_in_place_wherever_the_fault_tolerance_is_served(prefix: str) -> None:
    tolerant = {"fault_tolerance": True, "ft_prefix": prefix}
    async with tree(engine_args=tolerant) as sup:
        watch = sup.watch()
        url = await sup["web"].serving()
        assert sup.recovery_instructions("web") == ("retry",)
        os.kill(pid_of(sup, "EngineCore"), signal.SIGUSR1)
        assert await complete(url, "sim") < 8  # the fault ends its request early
        await until(lambda: recovered(watch))
        assert sup.status("web").incarnation == 1
        assert await sup["web"].serving(60.0) == url
        assert await complete(url, "sim") == 8
        # A fault that it has recovered from does not explain its later exit.
        os.kill(pid_of(sup, "APIServer"), signal.SIGTERM)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=60.0)
        assert str(faults(watch)[-1].root).endswith("ended with exit code 0")


def recovered(watch: Any) -> bool:
    return any(isinstance(x, r.StateChanged) and x.event == "recovered" for x in watch.rest())


async def test_the_port_that_was_asked_for_is_had_and_kept_over_restarts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with tree(port=port) as sup:
        assert await sup["web"].serving() == f"http://127.0.0.1:{port}"
        await sup.restart("web")
        assert sup["web"].url == f"http://127.0.0.1:{port}"


async def test_a_port_that_is_taken_after_the_server_has_served_is_one_permanent_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The restart waits, so that somebody else is certain to have the port by then.
    later = rv.Backoff(initial=3.0, maximum=3.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    sup = tree(port=port, backoff=later, start_timeout=60.0)
    watch = sup.watch()

    async def steal(thief: socket.socket) -> None:
        async with sup:
            await sup["web"].serving()
            os.kill(pid_of(sup, "APIServer"), signal.SIGKILL)
            await wait_for_state(sup, "web", "RESTARTING.BACKOFF", timeout=60.0)
            thief.bind(("127.0.0.1", port))
            thief.listen()
            await anyio.sleep(60.0)

    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(rv.SupervisorGaveUpError, match="PortTakenError"):
            await steal(thief)
    killed, taken = faults(watch)
    assert killed.fault_class is rv.FaultClass.FATAL
    assert taken.fault_class is rv.FaultClass.PERMANENT
    assert f"port {port} of 127.0.0.1 is taken by" in taken.root.message


async def test_a_server_that_counts_no_tokens_is_productive_once_it_has_been_healthy_for_a_time(
    tmp_path: Path,
) -> None:
    timeouts = Timeouts(server=ServerTimeouts(settled=0.1))  # by default a minute
    host = EngineHost("web", 1, "server", str(tmp_path), timeouts=timeouts)
    arguments = {
        "program": "sim",
        "model": "sim",
        "args": ["--disable-log-stats"],
        "host": "127.0.0.1",
        "port": 0,
        "probe_interval": 0.2,
    }
    await host.ensure_started(1, arguments, 60, StallLimits(probe_interval=0.2))
    with anyio.fail_after(30):
        async for items in host.stream():
            if Worked(1) in items:
                break
    await host.stop_engine(1, 0.0)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (PortTakenError("port 1 is taken"), True),
        (ValueError("model: /nowhere does not exist"), True),
        (OSError(errno.EMFILE, "too many open files"), False),
        (BlockingIOError(errno.EAGAIN, "no process can be made now"), False),
    ],
)
async def test_only_errors_of_the_configuration_are_known_to_be_permanent(
    error: Exception, *, permanent: bool
) -> None:
    engine = ServerEngine(1, {"program": "sim", "model": "sim", "args": [], "host": "127.0.0.1", "port": 0})
    termination = await engine._describe_failed_start(error)
    assert termination.permanent is permanent
    assert termination.root.type == type(error).__name__
    expected = rv.FaultClass.PERMANENT if permanent else rv.FaultClass.FATAL
    assert classify(termination, starting=True, served=True) is expected


def test_a_usage_error_is_the_root_cause_and_permanent_whatever_has_served() -> None:
    log = "usage: vllm serve [options]\nvllm serve: error: unrecognized arguments: --modle x\n"
    left = Termination(causes=(Cause("ProcessExited", "exit code 2"),), exit_code=2)
    complained = with_usage_error(left, log)
    assert complained.root == Cause("ArgumentError", "unrecognized arguments: --modle x")
    assert classify(complained, starting=True, served=True) is rv.FaultClass.PERMANENT
    assert with_usage_error(left, "no complaint") is left
    assert with_usage_error(replace(left, exit_code=1), log).exit_code == 1
    assert not with_usage_error(replace(left, exit_code=1), log).permanent


async def test_a_server_that_nobody_will_start_again_is_not_waited_for() -> None:
    async with tree() as sup:
        ref = sup["web"]
        assert isinstance(ref, rv.ServerRef)
        await sup.terminate_child("web")
        with pytest.raises(rv.ChildUnavailableError, match="STOPPED"):
            await ref.serving()
        with pytest.raises(rv.ChildUnavailableError, match="not up"):
            _ = ref.url


async def test_a_paused_server_is_not_given_out_and_does_nothing_until_it_is_resumed() -> None:
    done: list[int] = []

    async def ask(url: str) -> None:
        done.append(await complete(url, "sim"))

    async with tree(env={"VLLM_SERVER_DEV_MODE": "1"}) as sup:
        url = await sup["web"].serving()
        await sup.pause("web", mode="keep")
        with pytest.raises(TimeoutError):
            await sup["web"].serving(0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, url)
            await until(lambda: get(url, "/load") == '{"server_load": 1}')
            assert not done
            await sup.resume("web")
        assert done == [8]
        assert await sup["web"].serving(10.0) == url
        assert sup.status("web").incarnation == 1


async def test_servers_that_die_before_anybody_had_a_token_end_the_child() -> None:
    async def kill_twice() -> None:
        async with tree(crash_loop_limit=2) as sup:
            for incarnation in (1, 2):
                await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=incarnation, timeout=60.0)
                os.kill(pid_of(sup, "APIServer"), signal.SIGKILL)
            await anyio.sleep_forever()  # until the tree ends

    with pytest.raises(rv.SupervisorGaveUpError, match="APIServer"):
        await kill_twice()


async def test_a_server_that_somebody_had_tokens_of_is_started_again_and_again() -> None:
    async with tree(crash_loop_limit=1, **QUICK) as sup:
        assert await complete(await sup["web"].serving(), "sim") == 8
        core = sup._running.runtime.core
        await until(lambda: core.children["web"].progressed)
        os.kill(pid_of(sup, "APIServer"), signal.SIGKILL)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=60.0)


def test_a_blocking_program_gets_the_url() -> None:
    spec = rv.SupervisorSpec(children=[web()])
    with rv.run_in_thread(spec, local=True) as sup:
        assert sup["web"].serving(60.0) == sup["web"].url


DRIVER = """
import anyio, sys
import rayvisor as rv

async def main():
    spec = rv.SupervisorSpec(children=[rv.server("web", model="sim", engine="sim")])
    async with rv.Supervisor(spec, local=True) as sup:
        print(*(process.pid for _, process in sup.processes("web")), flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_a_driver_that_is_killed_takes_its_servers_with_it() -> None:
    command = [sys.executable, "-c", DRIVER]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - starting a process blocks for milliseconds only
    try:
        assert driver.stdout is not None
        line = await anyio.to_thread.run_sync(driver.stdout.readline)
        processes = [process for pid in line.split() if (process := identify(int(pid))) is not None]
        assert len(processes) == 3
    finally:
        driver.kill()
        driver.communicate()
    await until(lambda: not any(map(alive, processes)))


def test_a_file_can_say_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text(
        '[[children]]\nkind = "server"\nid = "web"\nmodel = "sim"\nengine = "sim"\nport = 8000\n'
        'args = ["--max-num-seqs", "8"]\nenv = { A = "b" }\n[children.engine_args]\nmax_model_len = 256\n'
    )
    (child,) = load_tree(file).spec.children
    assert child == rv.server(
        "web",
        model="sim",
        engine="sim",
        port=8000,
        args=("--max-num-seqs", "8"),
        env={"A": "b"},
        engine_args={"max_model_len": 256},
    )


@pytest.mark.ray
@pytest.mark.usefixtures("cluster_address")
async def test_on_a_cluster_it_runs_below_an_actor_and_outlives_it() -> None:
    spec = rv.SupervisorSpec(intensity=3, period=900.0, children=[web(num_cpus=0.5)])
    async with rv.Supervisor(spec, handle_signals=False) as sup:
        url = await sup["web"].serving(60.0)
        assert await complete(url, "sim") == 8
        first = sup.processes("web")
        host = next(process for role, process in first if role == "host")
        os.kill(host.pid, signal.SIGKILL)
        await wait_for_state(sup, "web", "ALIVE.SERVING", incarnation=2, timeout=60.0)
        assert not [process for _, process in first if alive(process)]
        assert await complete(sup["web"].url, "sim") == 8
