"""The node agent: records the process trees of the hosts on its node, and ends them.

One agent runs on each node that has hosts. It records the tree of each adopted host twice a second, kills
what is left as soon as the host's pidfd reports its death, and proves it: `NodeAgent.end` returns what
was killed and whether anything is left. It does not use Ray; `rayvisor._backends.ray.agents` puts it into
an actor.

State that several calls share is changed on the event loop only. Threads work on a snapshot of it and
return what they found.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import anyio

from rayvisor._backends.process.identity import alive, same
from rayvisor._backends.process.killing import end_processes
from rayvisor._backends.process.observation import observe
from rayvisor._backends.process.pidfd import PidfdHandle
from rayvisor._backends.process.stack_dump import stack_of
from rayvisor._backends.process.threads import run_in_thread
from rayvisor._backends.process.tree import tree
from rayvisor._core.protocol.links import CleanupReport, HostView
from rayvisor._core.protocol.wire import ProcessId
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ProcessTimeouts

__all__ = ["NodeAgent"]

log = get_logger("rayvisor.process")

HowEnded = tuple[int | None, int | None]
"""Exit code and signal, as far as the kernel shows them."""


class _AdoptedHost:
    """One adopted host, and its known processes."""

    def __init__(self, key: str, process: ProcessId) -> None:
        self.key = key
        self.process = process
        self.known: dict[int, ProcessId] = {process.pid: process}
        self.killed: dict[int, ProcessId] = {}
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[HowEnded | None] = asyncio.get_running_loop().create_future()

    def report_end(self, how: HowEnded | None) -> None:
        """Wake those that wait for its end."""
        if not self.ended.done():
            self.ended.set_result(how)

    def note(self, processes: Iterable[ProcessId]) -> None:
        """Add processes to the known ones."""
        self.known.update((process.pid, process) for process in processes)

    async def refresh(self) -> None:
        """Record the tree as it is now: drop the dead, and keep orphans."""
        before = tuple(self.known.values())
        living = await run_in_thread(_living_tree, before)
        dead = {*before} - living
        # Processes that were noted meanwhile stay.
        self.known = {pid: process for pid, process in self.known.items() if process not in dead}
        self.note(living)


def _living_tree(known: Iterable[ProcessId]) -> set[ProcessId]:
    living = {process for process in known if alive(process)}
    pids = {process.pid for process in living}
    return living | {process for process in tree(*living) if process.pid not in pids}


class NodeAgent:
    """Accounts for the processes of the hosts on one node.

    Parameters
    ----------
    timeouts
        Interval between two records of a tree, and times for killing and observing.
    """

    def __init__(self, *, timeouts: ProcessTimeouts = DEFAULT_TIMEOUTS.process) -> None:
        self._timeouts = timeouts
        self._hosts: dict[str, _AdoptedHost] = {}

    async def adopt(self, key: str, process: ProcessId) -> bool:
        """Account for a host from now on; return False if it is already gone.

        Adopting it again has no effect.
        """
        host = self._hosts.get(key)
        if host is None or not same(host.process, process):
            await self._drop(host)
            # Its title changes with each call that it serves.
            host = self._hosts[key] = _AdoptedHost(key, process._replace(name="host"))
            host.task = asyncio.create_task(self._watch(host), name=f"agent {key}")
        return alive(process)

    async def record(self, key: str, processes: Iterable[ProcessId]) -> None:
        """Note processes that the host itself has named."""
        host = self._hosts.get(key)
        if host is not None:
            host.note(processes)

    async def snapshot(self, key: str) -> tuple[ProcessId, ...]:
        """Return every live process of a host's tree, the host included."""
        host = self._hosts.get(key)
        if host is None:
            return ()
        await host.refresh()
        return tuple(host.known.values())

    async def view(self, key: str, stack_file: str) -> HostView:
        """Observe a host that does not answer: its processes, the host first, and the stack of its loop."""
        host = self._hosts.get(key)
        if host is None:
            return HostView(())
        others = [process for process in host.known.values() if process.pid != host.process.pid]
        observations = await observe([host.process, *others], load=self._timeouts.load)
        stack = await run_in_thread(stack_of, stack_file) if stack_file else ""
        return HostView(tuple(observations), stack)

    async def end(self, key: str, timeout: float) -> CleanupReport:
        """Kill a host with its tree and everything that carries its key, and wait for the proof."""
        host = self._hosts.get(key)
        known = host.known.values() if host is not None else ()
        killed = host.killed if host is not None else None
        report = await end_processes(
            tuple(known), key=key, timeout=timeout, killed=killed, timeouts=self._timeouts
        )
        if report.verified:
            await self.forget(key)
        return report

    async def forget(self, key: str) -> None:
        """Stop accounting for this host."""
        await self._drop(self._hosts.pop(key, None))

    async def host_ended(self, key: str) -> HowEnded | None:
        """Wait until a host has ended, and return how; None if the agent does not account for it (any more).

        This is known some milliseconds after its death, before its memory is released and Ray notices.
        """
        host = self._hosts.get(key)
        return None if host is None else await asyncio.shield(host.ended)

    async def watch(self) -> None:
        """Never return: a caller learns of the agent's death because this call fails."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Forget all hosts."""
        for key in tuple(self._hosts):
            await self.forget(key)

    async def _drop(self, host: _AdoptedHost | None) -> None:
        if host is not None and host.task is not None:
            host.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await host.task
        if host is not None:
            host.report_end(None)

    async def _watch(self, host: _AdoptedHost) -> None:
        try:
            await self._wait_for_death(host)
            report = await end_processes(
                tuple(host.known.values()),
                key=host.key,
                timeout=self._timeouts.agent_kill,
                killed=host.killed,
                timeouts=self._timeouts,
            )
        except Exception:
            # The host stays adopted: end() still kills everything known, and what carries the key.
            log.exception("agent.watch.failed", host=host.key, pid=host.process.pid)
            return
        finally:
            host.report_end(None)
        log.info(
            "agent.host.died",
            host=host.key,
            pid=host.process.pid,
            killed=[f"{process.name} ({process.pid})" for process in report.killed],
            left=[f"{process.name} ({process.pid})" for process in report.left],
        )

    async def _wait_for_death(self, host: _AdoptedHost) -> None:
        handle = PidfdHandle(host.process)
        died = asyncio.Event()
        try:
            while alive(host.process):
                handle.watch(died.set)  # also watches threads that were started since
                with anyio.move_on_after(self._timeouts.agent_scan):
                    await died.wait()
                    break
                try:
                    await host.refresh()
                except Exception:
                    # A tree that cannot be read now must not end the watch for the host's death.
                    log.exception("agent.refresh.failed", host=host.key, pid=host.process.pid)
            host.report_end(handle.how_it_ended())
        finally:
            handle.close()
