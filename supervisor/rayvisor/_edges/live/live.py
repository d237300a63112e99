"""What those who look on are told: the tree's state, by versions.

Nothing is queued for anybody. Every node and every fault has the version at which it last changed; a reader
says which version it knows and gets what changed since, as it is now. One that was away, or slow, has missed
steps then but never ends up wrong; one that knows nothing gets everything.
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
from rayvisor.status import chart_of, walk

if TYPE_CHECKING:
    from rayvisor._edges.controls import Controls
    from rayvisor._edges.live.history import History
    from rayvisor.status import Node

__all__ = ["Live", "VersionedState"]

MESSAGE_INTERVAL_SECONDS = 0.2
"""The shortest time between two messages: five a second."""
GATHER_SECONDS = 0.02
"""What happens within this time of the first thing is told with it: a fault with its decision."""
REFRESH_SECONDS = 1.0
"""How often figures that no record announces are looked at, while somebody reads."""
SILENCE_SECONDS = 5.0
"""How long a reader hears nothing at most; the page takes three times that for a broken connection."""
JITTER_SECONDS = 0.5
"""A time that is computed from an age again and again moves a little: less than this is no change."""
RATE_SECONDS = 1.0


class VersionedState:
    """The state that readers see, with the version at which each part of it last changed."""

    def __init__(self) -> None:
        self.version = 0
        self._order: tuple[int, list[str]] = (0, [])
        self._nodes: dict[str, tuple[int, dict[str, Any]]] = {}
        self._faults: dict[int, tuple[int, dict[str, Any]]] = {}
        self._run: tuple[int, dict[str, Any]] = (0, {})

    def put(self, nodes: list[dict[str, Any]], faults: Iterable[dict[str, Any]], run: dict[str, Any]) -> bool:
        """Take the present state; tell whether anything differs from the one before."""
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
            if seen is None or seen[1] is not fault:  # the story replaces what changes
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
        """What changed after ``version``; zero: everything."""
        told: dict[str, Any] = {"full": version == 0}
        if self._run[0] > version:
            told["run"] = self._run[1]
        if self._order[0] > version:
            told["order"] = self._order[1]
        told["nodes"] = [node for number, node in self._nodes.values() if number > version]
        told["faults"] = [fault for number, fault in self._faults.values() if number > version]
        return told

    def last(self) -> list[dict[str, Any]]:
        """All nodes as they were put, in their order."""
        return [self._nodes[path][1] for path in self._order[1]]

    def node(self, path: str) -> dict[str, Any] | None:
        """A node as readers know it."""
        known = self._nodes.get(path)
        return None if known is None else known[1]


class Live:
    """Follows a tree for its readers. What nobody reads is not looked at.

    Parameters
    ----------
    controls
        The supervisor.
    history
        What has happened in it.
    """

    def __init__(self, controls: Controls, history: History) -> None:
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
        """How many read at present."""
        self.visited = anyio.Event()
        """Somebody has begun to read."""

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
            with anyio.move_on_after(REFRESH_SECONDS):
                await self._dirty.wait()
                if not self._state.last():
                    self._refresh()  # a tree may end before anything of it was seen
                await anyio.sleep(GATHER_SECONDS)
            self._dirty = anyio.Event()
            self._tick()
            await anyio.sleep(MESSAGE_INTERVAL_SECONDS)

    def _tick(self) -> None:
        self._refresh()
        self._ticked.set()
        self._ticked = anyio.Event()

    async def events(self, last: str) -> AsyncIterator[bytes]:
        """Yield messages of the event stream, until the tree has ended.

        Parameters
        ----------
        last
            Id of the last message that the reader has got; empty, or of another run: it gets everything.
        """
        version = self._known(last)
        self.readers += 1
        self.visited.set()
        self._wanted.set()
        try:
            yield b"retry: 1000\n\n"
            if time.monotonic() - self._refreshed_at >= MESSAGE_INTERVAL_SECONDS:
                self._refresh()
            said = time.monotonic()
            while True:
                if self._state.version > version or not version:
                    told = self._state.since(version)
                    version = self._state.version
                    yield self._message(version, told)
                    said = time.monotonic()
                    continue
                if self._over:
                    yield b"event: over\ndata: {}\n\n"
                    return
                # A tick at which nothing has changed says nothing, and ends no silence.
                with anyio.move_on_after(said + SILENCE_SECONDS - time.monotonic()) as silence:
                    await self._ticked.wait()
                if silence.cancelled_caught:
                    yield b": still there\n\n"
                    said = time.monotonic()
        finally:
            self.readers -= 1

    def _known(self, last: str) -> int:
        name, _, number = last.partition("-")
        if name != self._name or not number.isdecimal():
            return 0
        version = int(number[:18])
        return version if version <= self._state.version else 0

    def _message(self, version: int, told: dict[str, Any]) -> bytes:
        body = json.dumps({"now": round(time.monotonic() + self._wall, 3), **told}, separators=(",", ":"))
        return f"id: {self._name}-{version}\nevent: state\ndata: {body}\n\n".encode()

    # --- looking ------------------------------------------------------------------------------

    def _refresh(self) -> None:
        self._refreshed_at = now = time.monotonic()
        run: dict[str, Any] = {"over": self._over}
        try:
            root = None if self._over else self._controls.status()
        except SupervisorStoppedError:  # not begun, or over
            root = None
        if root is None:
            # What is known stays on the board: the last state is what a reader wants to see then.
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
            if node.kind == "engine_pool":
                form["requests"]["rate"] = self._rate(node.path, requests.tokens, now)
        return form

    def _steady(self, known: float | None, age: float | None, now: float) -> float | None:
        if age is None:
            return None
        moment = round(now - age + self._wall, 1)
        return known if known is not None and abs(known - moment) < JITTER_SECONDS else moment

    def _rate(self, path: str, tokens: int, now: float) -> float:
        """Tokens a second, over the last second or more."""
        at, count, rate = self._rates.get(path, (now, tokens, 0.0))
        if now - at >= RATE_SECONDS:
            rate = round((tokens - count) / (now - at), 1)
            at, count = now, tokens
        self._rates[path] = (at, count, rate)
        return rate
