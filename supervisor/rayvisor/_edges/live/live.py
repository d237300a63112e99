"""The versioned state of a tree for its readers.

Nothing is queued per reader. Every node and every fault has the version at which it last changed. A reader
sends the version it knows and gets the current form of everything that changed since. A reader that was
disconnected or slow may miss intermediate steps but never shows a wrong state; a new reader gets everything.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import anyio

from rayvisor._edges.live.history import FAULTS_KEPT
from rayvisor.errors import SupervisorStoppedError
from rayvisor.status import ChildKind, chart_of, walk
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

if TYPE_CHECKING:
    from rayvisor._edges.controls import Controls
    from rayvisor._edges.live.history import History
    from rayvisor.status import Node

__all__ = ["Live", "VersionedState"]


class VersionedState:
    """The state that readers see, with the version at which each part last changed."""

    def __init__(self) -> None:
        self.version = 0
        self._order: tuple[int, list[str]] = (0, [])
        self._nodes: dict[str, tuple[int, dict[str, Any]]] = {}
        self._faults: dict[int, tuple[int, dict[str, Any]]] = {}
        self._run: tuple[int, dict[str, Any]] = (0, {})

    def put(self, nodes: list[dict[str, Any]], faults: Iterable[dict[str, Any]], run: dict[str, Any]) -> bool:
        """Set the current state; return whether it differs from the one before."""
        version = self.version + 1
        changed = False
        for node in nodes:
            known = self._nodes.get(node["path"])
            if known is None or known[1] != node:
                self._nodes[node["path"]] = (version, node)
                changed = True
        order = [node["path"] for node in nodes]
        if order != self._order[1]:
            self._order = (version, order)
            for path in self._nodes.keys() - set(order):
                del self._nodes[path]
            changed = True
        for fault in faults:
            seen = self._faults.get(fault["id"])
            if seen is None or seen[1] is not fault:  # the history replaces changed faults
                self._faults[fault["id"]] = (version, fault)
                changed = True
        for number in list(self._faults)[: max(0, len(self._faults) - FAULTS_KEPT)]:
            del self._faults[number]
        if run != self._run[1]:
            self._run = (version, run)
            changed = True
        if changed:
            self.version = version
        return changed

    def since(self, version: int) -> dict[str, Any]:
        """Return the changes after ``version``; everything for version 0."""
        changes: dict[str, Any] = {"full": version == 0}
        if self._run[0] > version:
            changes["run"] = self._run[1]
        if self._order[0] > version:
            changes["order"] = self._order[1]
        changes["nodes"] = [node for number, node in self._nodes.values() if number > version]
        changes["faults"] = [fault for number, fault in self._faults.values() if number > version]
        return changes

    def last(self) -> list[dict[str, Any]]:
        """Return all nodes, in their order."""
        return [self._nodes[path][1] for path in self._order[1]]

    def node(self, path: str) -> dict[str, Any] | None:
        """Return the form of a node that readers know."""
        known = self._nodes.get(path)
        return None if known is None else known[1]


class Live:
    """Follows a tree for its readers. Without readers the state is not refreshed.

    Parameters
    ----------
    controls
        The supervisor.
    history
        The recent history of the tree.
    timeouts
        Its intervals (``live_...``).
    """

    def __init__(
        self, controls: Controls, history: History, *, timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges
    ) -> None:
        self._timeouts = timeouts
        self._controls = controls
        self._watch = controls.watch()
        self._history = history
        self._wall = history.wall
        self._state = VersionedState()
        self._name = secrets.token_hex(4)
        self._rates: dict[str, tuple[float, int, float]] = {}
        self._dirty = anyio.Event()
        self._ticked = anyio.Event()
        self._wanted = anyio.Event()
        self._refreshed_at = 0.0
        self._over = False
        self.readers = 0
        """Number of current readers."""
        self.visited = anyio.Event()
        """Set when the first reader connects."""

    async def follow(self) -> None:
        """Follow the tree until it has ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_pace)
            async for _ in self._watch:
                self._dirty.set()
            self._over = True
            self._tick()
            tasks.cancel_scope.cancel()

    async def _keep_pace(self) -> None:
        while True:
            if not self.readers:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            with anyio.move_on_after(self._timeouts.live_poll):
                await self._dirty.wait()
                if not self._state.last():
                    self._refresh()  # the tree may end before its first refresh
                await anyio.sleep(self._timeouts.live_gather)
            self._dirty = anyio.Event()
            self._tick()
            await anyio.sleep(self._timeouts.live_interval)

    def _tick(self) -> None:
        self._refresh()
        self._ticked.set()
        self._ticked = anyio.Event()

    async def events(self, last: str) -> AsyncIterator[bytes]:
        """Yield the messages of the event stream until the tree has ended.

        Parameters
        ----------
        last
            Id of the last message that the reader received. If it is empty or of another run, the first
            message holds the complete state.
        """
        version = self._known(last)
        self.readers += 1
        self.visited.set()
        self._wanted.set()
        try:
            yield b"retry: 1000\n\n"
            if time.monotonic() - self._refreshed_at >= self._timeouts.live_interval:
                self._refresh()
            sent_at = time.monotonic()
            while True:
                if self._state.version > version or not version:
                    changes = self._state.since(version)
                    version = self._state.version
                    yield self._message(version, changes)
                    sent_at = time.monotonic()
                    continue
                if self._over:
                    yield b"event: over\ndata: {}\n\n"
                    return
                # A tick without a change sends nothing and does not reset the heartbeat.
                with anyio.move_on_after(sent_at + self._timeouts.live_silence - time.monotonic()) as silence:
                    await self._ticked.wait()
                if silence.cancelled_caught:
                    yield b": still there\n\n"
                    sent_at = time.monotonic()
        finally:
            self.readers -= 1

    def _known(self, last: str) -> int:
        name, _, number = last.partition("-")
        if name != self._name or not number.isdecimal():
            return 0
        version = int(number[:18])
        return version if version <= self._state.version else 0

    def _message(self, version: int, changes: dict[str, Any]) -> bytes:
        now = round(time.monotonic() + self._wall, 3)
        body = json.dumps({"now": now, **changes}, separators=(",", ":"))
        return f"id: {self._name}-{version}\nevent: state\ndata: {body}\n\n".encode()

    # --- the current state --------------------------------------------------------------------

    def _refresh(self) -> None:
        self._refreshed_at = now = time.monotonic()
        run: dict[str, Any] = {"over": self._over}
        try:
            root = None if self._over else self._controls.status()
        except SupervisorStoppedError:  # not started yet, or already ended
            root = None
        if root is None:
            # The last known state is kept for the readers.
            self._state.put(self._state.last(), self._history.faults, run)
            return
        nodes = [self._form(node, now) for node in walk(root)]
        self._state.put(nodes, self._history.faults, run)

    def _form(self, node: Node, now: float) -> dict[str, Any]:
        known = self._state.node(node.path) or {}
        form: dict[str, Any] = {
            "path": node.path,
            "kind": node.kind,
            "chart": chart_of(node),
            "state": node.state,
            "leaf": node.leaf,
            "holds": list(node.holds),
            "incarnation": node.incarnation,
            "epoch": node.epoch,
            "since": self._steady(known.get("since"), node.uptime, now),
            "due": self._history.due(node.path) if node.leaf == "BACKOFF" else None,
            "url": node.url,
            "processes": [f"{name} (pid {pid})" for _, pid, name in node.processes],
            "steps": list(self._history.steps.get(node.path, ())),
            "passes": self._history.passes(node.path),
        }
        if node.restarts is not None:
            form["restarts"] = [node.restarts.used, node.restarts.intensity, node.restarts.period]
        if node.fault is not None:
            before = (known.get("fault") or {}).get("at")
            form["fault"] = {
                "root": node.fault.root[:500],
                "class": node.fault.fault_class,
                "incarnation": node.fault.incarnation,
                "at": self._steady(before, node.fault.age, now),
                "log": node.fault.log_file,
            }
        if node.requests is not None:
            requests = node.requests
            form["requests"] = {
                "waiting": requests.waiting,
                "in_flight": requests.in_flight,
                "finished": requests.finished,
                "failed": requests.failed,
                "replayed": requests.replayed,
                "tokens": requests.tokens,
            }
            if node.kind == ChildKind.ENGINE_POOL:
                form["requests"]["rate"] = self._rate(node.path, requests.tokens, now)
        return form

    def _steady(self, known: float | None, age: float | None, now: float) -> float | None:
        if age is None:
            return None
        moment = round(now - age + self._wall, 1)
        return known if known is not None and abs(known - moment) < self._timeouts.live_jitter else moment

    def _rate(self, path: str, tokens: int, now: float) -> float:
        """Return the tokens per second over at least the window of rates."""
        at, count, rate = self._rates.get(path, (now, tokens, 0.0))
        if now - at >= self._timeouts.live_rate:
            rate = round((tokens - count) / (now - at), 1)
            at, count = now, tokens
        self._rates[path] = (at, count, rate)
        return rate
