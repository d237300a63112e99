"""Plays a recorded OTP scenario through ``rv.Supervisor``, in real time, with coroutines as its processes.

What a scenario's processes do is done for real: each is a task that starts, waits, obeys or ignores its
shutdown, raises, returns, is cancelled. Only the names of exit reasons that asyncio does not know (who was
asked, who was killed) are taken from the tree. The trace has the form of the recorded one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

import rayvisor as rv
from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import Phase
from rayvisor._runtime.reporting import EventReporter
from rayvisor.faults import ExitKind
from rayvisor.testing.otp.terms import (
    BadSpecError,
    StartFunction,
    child_spec,
    exit_of,
    spec_lines,
    supervisor_spec,
    term_of,
)
from rayvisor.testing.otp.world import Process, World
from tests.supervisor.gate import Gate, term

SETTLE_SECONDS = 30.0
"""How long a step may take until nothing is under way any more."""

_Cancelled = asyncio.CancelledError


async def play(scenario: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario; its trace."""
    traces = []
    async with anyio.create_task_group() as tasks:
        traces.append(await Player(scenario, tasks).run())
    return traces[0]


class Recorder(EventReporter):
    """Writes down what supervisors do, in its order among what their children do."""

    def __init__(self, player: Player, reporter: EventReporter) -> None:
        super().__init__(reporter._broadcaster)
        self._player = player

    def supervisor_changed(self, effect: m.SupervisorChanged) -> None:
        super().supervisor_changed(effect)
        self._player.supervisor_changed(effect)

    def decided(self, effect: m.Decided) -> None:
        super().decided(effect)
        if effect.decision == "retry_later":
            self._player.open_gate()


class Player:
    """One scenario, one supervisor, one world of tasks."""

    def __init__(self, scenario: dict[str, Any], tasks: TaskGroup) -> None:
        self.scenario = scenario
        self.world = World(scenario.get("starts", {}))
        self.tasks = tasks
        self.sup = rv.Supervisor(rv.SupervisorSpec())
        self.leave = anyio.Event()
        self.up = anyio.Event()
        self.left = anyio.Event()
        self.inits: dict[str, dict[str, Any]] = {}
        # How each living task is made to end, and the word for it.
        self.deaths: dict[str, tuple[anyio.Event, list[str], asyncio.Task[Any]]] = {}
        # Calls that are to be served after a start has failed and before it is tried again.
        self.gated: list[tuple[int, dict[str, Any]]] = []
        self.gated_results: list[Any] = []
        self.gate = Gate()

    async def run(self) -> dict[str, Any]:
        steps = [await self._step({"op": "start"}, self._start_root)]
        final = self.world.final()
        for step in self.scenario["steps"] if self.world.alive("root") else ():
            was_alive = self.world.alive("root")
            steps.append(await self._step(step, partial(self._do, step)))
            if was_alive is None:
                break  # at most one step is kept after the root's end
        if len(steps) > 1 or self.world.alive("root"):
            final = self.world.final()
        if self.world.alive("root"):
            steps.append(await self._step({"op": "stop"}, self._stop_root))
        return {"steps": steps, "final": final}

    async def _step(self, op: dict[str, Any], take: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        result = await take()
        await self._settle()
        if op["op"] == "gated" and result == "ok":
            result = self.gated_results
        return {"op": op, "result": result, "events": self.world.take(), "tree": await self._tree()}

    # --- the tree -------------------------------------------------------------------------------

    async def _start_root(self) -> str:
        tree = self.scenario["tree"]
        n, outcome = self.world.attempt("root")
        process = self.world.spawn("root", n, tree)
        self.world.promote(process)
        if outcome != "ok":
            self.world.record(process, "start", result="error", reason=outcome)
            process.alive, process.reason = False, outcome
            return f"error:{outcome}"
        self.world.record(process, "init")
        try:
            spec = self._real(supervisor_spec(tree.get("flags", {}), tree["children"]), "root")
        except BadSpecError as error:
            self._fail_to_start(process, error.whole)
            return f"error:{error.whole}"
        process.simple = spec.template is not None
        self.sup = rv.Supervisor(spec, handle_signals=False, seed=0)
        self.sup._reporter = Recorder(self, self.sup._reporter)
        self.tasks.start_soon(self._hold)
        await self.up.wait()
        return "ok" if process.alive else f"error:{process.reason}"

    async def _hold(self) -> None:
        try:
            async with self.sup:
                self.up.set()
                await self.leave.wait()
        except (rv.SupervisorGaveUpError, rv.StartFailedError):
            pass
        finally:
            self.up.set()
            self.left.set()

    async def _stop_root(self) -> str:
        self.leave.set()
        await self.left.wait()
        return f"exited:{self.world.current['root'].reason}"

    def _real(self, spec: rv.SupervisorSpec, path: str) -> rv.SupervisorSpec:
        return replace(spec, children=[self._real_child(child, path) for child in spec.children])

    def _real_child(self, spec: rv.ChildSpec, above: str) -> rv.ChildSpec:
        assert isinstance(spec.start, StartFunction)
        json = spec.start.json
        if "children" in json:
            made = rv.subtree(spec.id, self.init, args=(above, json))
        else:
            made = rv.coroutine(spec.id, self.work, args=(above, json))
        return replace(spec, start=made.start)

    async def _settle(self) -> None:
        """Wait until nothing is under way."""
        quiet = 0
        with anyio.move_on_after(SETTLE_SECONDS):
            while quiet < 3:
                await anyio.sleep(0.001)
                quiet = quiet + 1 if self._idle() else 0
            return
        raise AssertionError(f"not settled: {self._under_way()}")

    def _idle(self) -> bool:
        session = self.sup._session
        if session is None or self.left.is_set():
            return True
        if session.over.is_set():
            return False  # the block is about to be left
        core = session.runtime.core
        alive = {path for path, process in self.world.current.items() if process.alive}
        known = {f"root/{path}" for path, child in core.children.items() if child.up} | {"root"}
        return (
            not self.gate.waiting
            and len(session.runtime._mailbox) == 0
            and all(each.phase in {Phase.RUNNING, Phase.DOWN} for each in core.supervisors.values())
            and all(child.configuration.state != "RESTARTING" for child in core.children.values())
            and alive == known
        )

    def _under_way(self) -> str:
        session = self.sup._session
        assert session is not None
        leaves = {path: str(child.configuration) for path, child in session.runtime.core.children.items()}
        alive = sorted(path for path, process in self.world.current.items() if process.alive)
        return f"children {leaves}, processes {alive}, over {session.over.is_set()}"

    # --- processes ------------------------------------------------------------------------------

    async def init(self, above: str, json: dict[str, Any], key: str = "") -> rv.SupervisorSpec:
        """Stand for a supervisor's init."""
        path = f"{above}/{key or json['id']}"
        n = await self._attempt(path, json)
        process = self.world.spawn(path, n, json)
        self.world.promote(process)
        self.world.record(process, "init")
        init = self.inits.get(path, json)
        try:
            spec = self._real(supervisor_spec(init.get("flags", {}), init["children"]), path)
        except BadSpecError as error:
            self._fail_to_start(process, error.whole)
            raise ConnectionResetError(error.whole) from None
        process.simple = spec.template is not None
        return spec

    async def work(
        self, above: str, json: dict[str, Any], key: str = "", *, task_status: TaskStatus[None]
    ) -> None:
        """Stand for a worker."""
        path = f"{above}/{key or json['id']}"
        n = await self._attempt(path, json)
        process = self.world.spawn(path, n, json)
        self.world.record(process, "start", result="ok")
        task = asyncio.current_task()
        assert task is not None
        event, words, _ = self.deaths[path] = (anyio.Event(), [], task)
        try:
            task_status.started()
            await event.wait()
        except _Cancelled:
            if words:  # killed from elsewhere
                self.world.end(process, words[0])
                raise
            await self._asked(process)
            raise
        self.world.end(process, term_of(exit_of(words[0])))
        if words[0] == "boom":
            raise RuntimeError("boom")

    async def _attempt(self, path: str, json: dict[str, Any]) -> int:
        """Count a start; it fails, or is ignored, as the scenario says."""
        n, outcome = self.world.attempt(path)
        if outcome == "ok":
            return n
        attempted = Process(path, n, self.world.current.get(path.rpartition("/")[0]), json)
        if outcome == "ignore":
            self.world.record(attempted, "start", result="ignore")
            raise rv.IgnoreStart
        if outcome == "gate_error":
            await self._crash_gated()
        raised = outcome == "raise"
        self.world.record(attempted, "start", result="error", reason="raised" if raised else "boom")
        # A kind of error that may pass: another one, at a first start, would be PERMANENT here.
        raise ConnectionResetError("{'EXIT',boom}" if raised else "boom")

    async def _asked(self, process: Process) -> None:
        """End as the worker does when it is asked to."""
        orphan = process.orphan
        asked = process.parent.reason if orphan and process.parent is not None else "shutdown"
        seconds = self._seconds(process.path)
        if seconds is None and not orphan:
            self.world.end(process, "killed")
            return
        if not process.json.get("trap", True):
            self.world.end(process, asked)
            return
        if seconds != 0 or orphan:
            self.world.record(process, "stopping", reason=asked)
        answer = process.json.get("on_shutdown", "exit")
        try:
            with anyio.CancelScope(shield=True):
                if answer == "hang":
                    await anyio.sleep_forever()
                elif isinstance(answer, dict):
                    await anyio.sleep(answer["delay_ms"] / 1000)
        except _Cancelled:  # by force: the shield did not hold
            self.world.end(process, "" if orphan else "killed")
            return
        self.world.end(process, {"exit_boom": "boom", "exit_normal": "normal"}.get(str(answer), asked))
        if answer == "exit_boom":
            raise RuntimeError("boom")

    def _seconds(self, path: str) -> float | None:
        child = self.sup._running.runtime.core.children[_core(path)]
        return child.spec.ending.seconds

    def _fail_to_start(self, process: Process, reason: str) -> None:
        self.world.record(process, "start", result="error", reason=reason)
        process.alive, process.reason = False, reason

    def supervisor_changed(self, effect: m.SupervisorChanged) -> None:
        process = self.world.current[f"root/{effect.path}" if effect.path else "root"]
        exit_ = effect.exit
        if not process.alive:
            return
        if effect.state == "running":
            process.came_up = True
            self.world.record(process, "start", result="ok")
        elif effect.state == "stopping" and exit_ is not None:
            process.ending = True
            if exit_.kind is ExitKind.KILLED:
                self.world.end(process, "killed")
        elif effect.state == "ended" and exit_ is not None:
            if not process.came_up:
                self._fail_to_start(process, term(exit_))
            elif process.orphan and process.parent is not None:
                self.world.end(process, process.parent.reason)
            else:
                self.world.end(process, term(exit_))

    # --- steps ----------------------------------------------------------------------------------

    async def _do(self, step: dict[str, Any]) -> Any:
        return await getattr(self, f"_do_{step['op']}")(step)

    def _crash(self, path: str, reason: str) -> str:
        process = self.world.alive(path)
        if process is None:
            return "noproc"
        if process.supervisor:
            runtime = self.sup._running.runtime
            child = runtime.core.children.get(_core(path))
            incarnation = 0 if child is None else child.incarnation
            runtime.post(m.Exited(_core(path), incarnation, exit_of(reason)))
            return "ok"
        event, words, task = self.deaths[path]
        words.append(reason)
        if reason == "killed":
            task.cancel()
        else:
            event.set()
        return "ok"

    async def _do_crash(self, step: dict[str, Any]) -> str:
        return self._crash(step["path"], step["reason"])

    async def _do_crash_many(self, step: dict[str, Any]) -> list[str] | str:
        if self.world.alive(step["targets"][0]["path"].rpartition("/")[0]) is None:
            return "noproc"
        return [self._crash(one["path"], one["reason"]) for one in step["targets"]]

    async def _do_gated(self, step: dict[str, Any]) -> str:
        self.gated = list(enumerate(step["calls"]))
        self.gated_results = [None] * len(step["calls"])
        return self._crash(step["path"], step["reason"])

    async def _crash_gated(self) -> None:
        """Have siblings die while a start is under way."""
        for index, call in self.gated:
            if call["op"] == "crash":
                self.gated_results[index] = self._crash(call["path"], call["reason"])
                while self.gated_results[index] == "ok" and self.world.alive(call["path"]):  # noqa: ASYNC110 - no event
                    await anyio.sleep(0.001)
        self.gated = [(index, call) for index, call in self.gated if call["op"] != "crash"]

    def open_gate(self) -> None:
        """Make the calls: they overtake the retry that has been decided just now."""
        calls, self.gated = self.gated, []
        if calls:
            self.gate.hold(self.sup._running.runtime._mailbox, len(calls))
        for index, call in calls:
            self.tasks.start_soon(self._gated_call, index, call)

    async def _gated_call(self, index: int, call: dict[str, Any]) -> None:
        self.gated_results[index] = await self._do(call)
        self.gate.answered()

    async def _do_sleep(self, step: dict[str, Any]) -> str:
        await anyio.sleep(step["ms"] / 1000)
        return "ok"

    async def _do_code_change(self, step: dict[str, Any]) -> Any:
        if self.world.supervisor(step["sup"]) is None:
            return "noproc"
        try:
            spec = self._real(supervisor_spec(step["flags"], step["children"]), step["sup"])
        except BadSpecError as error:
            return f"error:error:{error.term}"
        self.inits[step["sup"]] = {"flags": step["flags"], "children": step["children"]}
        return await self._call(step, self.sup.apply_spec(spec, under=_core(step["sup"])), lambda _: "ok")

    async def _do_start_child(self, step: dict[str, Any]) -> Any:
        under = _core(step["sup"])
        if self.world.supervisor(step["sup"]) is None:
            return "noproc"
        if "key" in step:
            instance = rv.Instance(step["key"], args=(step["key"],))
            return await self._call(step, self.sup.start_child(instance, under=under), _started)
        try:
            supervisor = self.sup._running.runtime.core.supervisors[under].spec
            spec = self._real_child(child_spec(step["child"], supervisor), step["sup"])
        except BadSpecError as error:
            return f"error:{error.term}"
        return await self._call(step, self.sup.start_child(spec, under=under), _started, "start_failed:")

    async def _do_restart_child(self, step: dict[str, Any]) -> Any:
        return await self._call_child(self.sup.restart_child, step, lambda _: self._restarted(step))

    async def _do_terminate_child(self, step: dict[str, Any]) -> Any:
        return await self._call_child(self.sup.terminate_child, step, lambda _: "ok")

    async def _do_delete_child(self, step: dict[str, Any]) -> Any:
        return await self._call_child(self.sup.delete_child, step, lambda _: "ok")

    async def _do_get_childspec(self, step: dict[str, Any]) -> Any:
        return await self._call_child(self.sup.get_childspec, step, spec_lines)

    async def _do_which_children(self, step: dict[str, Any]) -> Any:
        call = self.sup.which_children(_core(step["sup"]))
        return await self._call(step, call, partial(self._lines, step["sup"]))

    async def _do_count_children(self, step: dict[str, Any]) -> Any:
        call = self.sup.count_children(_core(step["sup"]))
        return await self._call(step, call, lambda counts: counts._asdict())

    def _restarted(self, step: dict[str, Any]) -> str:
        return _started(step["id"] if self.world.alive(f"{step['sup']}/{step['id']}") else None)

    async def _call_child(
        self, verb: Callable[[str], Awaitable[Any]], step: dict[str, Any], say: Callable[[Any], Any]
    ) -> Any:
        if "key" in step and f"{step['sup']}/{step['key']}" not in self.world.current:
            return "noproc"  # there never was such a pid
        path = f"{step['sup']}/{step.get('id', step.get('key'))}"
        return await self._call(step, verb(_core(path)), say)

    async def _call(
        self, step: dict[str, Any], call: Any, say: Callable[[Any], Any], failed: str = ""
    ) -> Any:
        if self.world.supervisor(step["sup"]) is None:
            call.close()
            return "noproc"
        try:
            return say(await call)
        except rv.ChildStartError as error:
            return f"error:{failed}{term(error.exit)}" if error.exit else "error:called_off"
        except rv.SupervisorStoppedError:
            return "noproc"
        except rv.CallError as error:
            return f"error:{error.term}"

    async def _tree(self) -> dict[str, Any]:
        tree = {}
        for path, process in list(self.world.current.items()):
            if process.supervisor and process.alive:
                children = await self._do_which_children({"sup": path})
                tree[path] = {"children": children, "counts": await self._do_count_children({"sup": path})}
        return tree

    def _lines(self, sup: str, lines: list[Any]) -> list[dict[str, Any]]:
        found = []
        for line in lines:
            state = "running" if line.running else "restarting" if line.restarting else "undefined"
            entry = {"id": line.id, "state": state, "type": "supervisor" if line.supervisor else "worker"}
            if line.restarting and self.world.current[sup].simple:
                entry["id"] = "undefined"
            if line.running:
                entry["n"] = self.world.current[f"{sup}/{line.id}"].n
            found.append(entry)
        if self.world.current[sup].simple:
            found.sort(key=lambda entry: (entry["id"] != "undefined", entry["id"]))
        return found


def _started(value: object) -> str:
    return "ok" if value is not None else "ok:undefined"


def _core(path: str) -> str:
    return path.removeprefix("root").removeprefix("/")
