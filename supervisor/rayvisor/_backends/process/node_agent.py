"""The node agent: keeps account of the process trees of the hosts on its node, and ends them.

One runs on each node that has hosts. It notes each adopted host's tree twice a second, kills what is left
the moment the host's pidfd says that it died, and gives proof: `NodeAgent.end` returns what was killed and
whether anything is left. Ray-free: `rayvisor._backends.ray.agents` puts it into an actor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import anyio
import anyio.to_thread
import psutil

from rayvisor._backends.process.engine_tree import process_id
from rayvisor._backends.process.killing import end_processes
from rayvisor._backends.process.observation import look_twice
from rayvisor._backends.process.pidfd import PidfdHandle
from rayvisor._backends.process.stack_dump import stack_of
from rayvisor._backends.process.tree import alive, tree
from rayvisor._core.protocol.links import CleanupReport, HostView
from rayvisor._core.protocol.wire import ProcessId
from rayvisor._log import get_logger

__all__ = ["NodeAgent"]

log = get_logger("rayvisor.process")

_SWEEP_SECONDS = 5.0

HowEnded = tuple[int | None, int | None]
"""Exit code and signal, as far as the system tells."""


class _Ward:
    """One adopted host, and what is known of its processes."""

    def __init__(self, key: str, host: ProcessId) -> None:
        self.key = key
        self.host = host
        self.known: dict[int, ProcessId] = {host.pid: host}
        self.killed: dict[int, ProcessId] = {}
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[HowEnded | None] = asyncio.get_running_loop().create_future()

    def tell(self, how: HowEnded | None) -> None:
        """Tell those who wait for its end."""
        if not self.ended.done():
            self.ended.set_result(how)

    def note(self, processes: Iterable[ProcessId]) -> None:
        self.known.update((process.pid, process) for process in processes)

    def look(self) -> None:
        """Note the tree as it is now. What is dead is dropped, orphans stay."""
        self.known = {pid: process for pid, process in self.known.items() if alive(process)}
        self.note(tree(*self.known.values()))


class NodeAgent:
    """Accounts for the processes of the hosts on one node.

    Parameters
    ----------
    interval
        Seconds between two notes of a tree.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self._interval = interval
        self._wards: dict[str, _Ward] = {}

    async def adopt(self, key: str, pid: int, start_time: float) -> bool:
        """Keep account of a host from now on; False if it is already gone. Adopting twice is once."""
        host = ProcessId(pid, start_time, "host")
        ward = self._wards.get(key)
        if ward is None or ward.host != host:
            await self._drop(ward)
            ward = self._wards[key] = _Ward(key, host)
            ward.task = asyncio.create_task(self._attend(ward), name=f"agent {key}")
        return alive(host)

    async def record(self, key: str, processes: Iterable[ProcessId]) -> None:
        """Note processes that the host says are its own."""
        ward = self._wards.get(key)
        if ward is not None:
            ward.note(processes)

    async def snapshot(self, key: str) -> tuple[ProcessId, ...]:
        """Look at a host's tree now: every live process of it, the host included."""
        ward = self._wards.get(key)
        if ward is None:
            return ()
        await anyio.to_thread.run_sync(ward.look)
        return tuple(ward.known.values())

    async def view(self, key: str, stack_file: str) -> HostView:
        """Look at a host that does not answer: its processes, itself first, and where its loop stands."""
        ward = self._wards.get(key)
        if ward is None:
            return HostView(())
        others = [process for process in ward.known.values() if process.pid != ward.host.pid]
        sights = await look_twice([ward.host, *others])
        stack = await anyio.to_thread.run_sync(stack_of, stack_file) if stack_file else ""
        return HostView(tuple(sights), stack)

    async def end(self, key: str, timeout: float) -> CleanupReport:
        """Kill a host and everything of it, also what carries its key, and wait for the proof."""
        ward = self._wards.get(key)
        known = ward.known.values() if ward is not None else ()
        killed = ward.killed if ward is not None else None
        report = await end_processes(tuple(known), key=key, timeout=timeout, killed=killed)
        if report.verified:
            await self.forget(key)
        return report

    async def forget(self, key: str) -> None:
        """Keep no account of this host any more."""
        await self._drop(self._wards.pop(key, None))

    async def host_ended(self, key: str) -> HowEnded | None:
        """Wait until a host has ended, and say how; None when no account of it is kept (any more).

        Known some milliseconds after its death, before its memory is given back and Ray notices.
        """
        ward = self._wards.get(key)
        return None if ward is None else await asyncio.shield(ward.ended)

    async def watch(self) -> None:
        """Never return: whoever waits for it learns of the agent's death."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Forget everything."""
        for key in tuple(self._wards):
            await self.forget(key)

    async def _drop(self, ward: _Ward | None) -> None:
        if ward is not None and ward.task is not None:
            ward.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ward.task
        if ward is not None:
            ward.tell(None)

    async def _attend(self, ward: _Ward) -> None:
        try:
            await self._wait_for_death(ward)
            report = await end_processes(
                tuple(ward.known.values()), key=ward.key, timeout=_SWEEP_SECONDS, killed=ward.killed
            )
        except Exception:
            # The account stays as it is: end() still kills everything known, and what carries the key.
            log.exception("agent.attend.failed", host=ward.key, pid=ward.host.pid)
            return
        finally:
            ward.tell(None)
        log.info(
            "agent.host.died",
            host=ward.key,
            pid=ward.host.pid,
            killed=[f"{process.name} ({process.pid})" for process in report.killed],
            left=[f"{process.name} ({process.pid})" for process in report.left],
        )

    async def _wait_for_death(self, ward: _Ward) -> None:
        try:
            held = PidfdHandle(process_id(ward.host.pid))  # as this process counts time
        except psutil.NoSuchProcess:
            return
        died = asyncio.Event()
        try:
            while alive(ward.host):
                held.watch(died.set)  # threads that have come up since, too
                with anyio.move_on_after(self._interval):
                    await died.wait()
                    ward.tell(held.how_it_ended())
                    return
                await anyio.to_thread.run_sync(ward.look)
        finally:
            held.close()
