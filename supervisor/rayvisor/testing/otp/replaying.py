"""Runs a scenario through the core in virtual time and records a trace in OTP's format."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, ClassVar

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.core import Core
from rayvisor.errors import CallError, ChildStartError
from rayvisor.faults import KILLED, Exit, ExitKind
from rayvisor.specs import Instance, Shutdown
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

__all__ = ["Replay", "replay"]

_RAISED = "{'EXIT',boom}"


def replay(scenario: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario through the core.

    Returns
    -------
    dict[str, Any]
        A trace in OTP's format: ``steps``, each with op, result, events and tree, and ``final``.
    """
    return Replay(scenario).run()


class Replay:
    """One scenario, one core, one world of processes.

    Parameters
    ----------
    scenario
        The tree, the outcomes of starts, and the steps.
    """

    core: Core
    """Created together with the root's spec."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.scenario = scenario
        self.world = World(scenario.get("starts", {}))
        self.now = 0.0
        # Processed in this order: answers to effects, timed events, the mailbox.
        self._answers: deque[m.Event] = deque()
        self._later: list[tuple[float, int, int, Callable[[], None]]] = []
        self._mailbox: deque[Callable[[], None]] = deque()
        self._order = count()
        self._calls = count(1)
        self._replies: dict[int, m.Reply] = {}
        self._cancelled: set[int] = set()
        self._incarnations: dict[tuple[str, int], Process] = {}
        self._inits: dict[str, dict[str, Any]] = {}
        self._gated: list[dict[str, Any]] = []
        self._gated_results: list[Any] = []

    def run(self) -> dict[str, Any]:
        """Run all steps and return the trace."""
        steps = [self._step({"op": "start"}, self._start_root)]
        final = self.world.final()
        for step in self.scenario["steps"] if self.world.alive("root") else ():
            was_alive = self.world.alive("root")
            steps.append(self._step(step, partial(self._do, step)))
            if was_alive is None:
                break  # at most one step is recorded after the root's exit
        if len(steps) > 1 or self.world.alive("root"):
            final = self.world.final()
        if self.world.alive("root"):
            steps.append(self._step({"op": "stop"}, self._stop_root))
        return {"steps": steps, "final": final}

    def _step(self, op: dict[str, Any], take: Callable[[], Any]) -> dict[str, Any]:
        result = take()
        return {"op": op, "result": result, "events": self.world.take(), "tree": self._tree()}

    # --- steps --------------------------------------------------------------------------------

    def _do(self, step: dict[str, Any]) -> Any:
        return getattr(self, f"_do_{step['op']}")(step)

    def _start_root(self) -> str:
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
            spec = supervisor_spec(tree.get("flags", {}), tree["children"])
        except BadSpecError as error:
            self._fail_to_start(process, error.whole)
            return f"error:{error.whole}"
        process.simple = spec.template is not None
        self.core = Core(spec, Random(0))
        self._feed(m.Boot())
        self._settle()
        return "ok" if process.alive else f"error:{process.reason}"

    def _stop_root(self) -> str:
        self._feed(m.Halt())
        self._settle()
        return f"exited:{self.world.current['root'].reason}"

    def _do_crash(self, step: dict[str, Any]) -> str:
        result = self._crash(step["path"], step["reason"], supervised=True)
        self._settle()
        return result

    def _do_crash_many(self, step: dict[str, Any]) -> list[str] | str:
        if self.world.alive(step["targets"][0]["path"].rpartition("/")[0]) is None:
            return "noproc"  # there is no supervisor to suspend
        results = [self._crash(one["path"], one["reason"], supervised=False) for one in step["targets"]]
        self._settle()
        return results

    def _do_gated(self, step: dict[str, Any]) -> Any:
        self._gated, self._gated_results = step["calls"], []
        result = self._crash(step["path"], step["reason"], supervised=True)
        self._settle()
        return self._gated_results if result == "ok" else result

    def _do_sleep(self, step: dict[str, Any]) -> str:
        self.now += step["ms"] / 1000
        return "ok"

    def _do_align(self, step: dict[str, Any]) -> str:
        self.now += (step["frac_ms"] / 1000 - self.now) % 1
        return "ok"

    def _do_code_change(self, step: dict[str, Any]) -> Any:
        if self.world.supervisor(step["sup"]) is None:
            return "noproc"
        try:
            spec = supervisor_spec(step["flags"], step["children"])
        except BadSpecError as error:
            return f"error:error:{error.term}"
        self._inits[step["sup"]] = {"flags": step["flags"], "children": step["children"]}
        return self._call(m.Verb.APPLY_SPEC, step["sup"], spec, lambda _: "ok")

    def _do_start_child(self, step: dict[str, Any]) -> Any:
        if self.world.supervisor(step["sup"]) is None:
            return "noproc"
        if "key" in step:
            argument: object = Instance(step["key"])
        else:
            try:
                argument = child_spec(step["child"], self.core.supervisors[_core_path(step["sup"])].spec)
            except BadSpecError as error:
                return f"error:{error.term}"
        return self._call(
            m.Verb.START_CHILD,
            step["sup"],
            argument,
            _started,
            "" if "key" in step else "start_failed:",
        )

    def _do_restart_child(self, step: dict[str, Any]) -> Any:
        return self._call_child(m.Verb.RESTART_CHILD, step, _started)

    def _do_terminate_child(self, step: dict[str, Any]) -> Any:
        return self._call_child(m.Verb.TERMINATE_CHILD, step, lambda _: "ok")

    def _do_delete_child(self, step: dict[str, Any]) -> Any:
        return self._call_child(m.Verb.DELETE_CHILD, step, lambda _: "ok")

    def _do_get_childspec(self, step: dict[str, Any]) -> Any:
        return self._call_child(m.Verb.GET_CHILDSPEC, step, spec_lines)

    def _do_which_children(self, step: dict[str, Any]) -> Any:
        return self._call(
            m.Verb.WHICH_CHILDREN, step["sup"], None, lambda lines: self._lines(step["sup"], lines)
        )

    def _do_count_children(self, step: dict[str, Any]) -> Any:
        return self._call(m.Verb.COUNT_CHILDREN, step["sup"], None, lambda counts: counts._asdict())

    # --- calls --------------------------------------------------------------------------------

    def _call_child(self, verb: m.Verb, step: dict[str, Any], say: Callable[[Any], Any]) -> Any:
        if "key" in step and f"{step['sup']}/{step['key']}" not in self.world.current:
            return "noproc"  # no such pid ever existed
        return self._call(verb, step["sup"], step.get("id", step.get("key")), say)

    def _call(
        self, verb: m.Verb, sup: str, argument: Any, say: Callable[[Any], Any], failed: str = ""
    ) -> Any:
        if self.world.supervisor(sup) is None:
            return "noproc"
        number = next(self._calls)
        self._feed(m.Call(number, verb, _core_path(sup), argument))
        self._settle(mailbox=False)
        reply = self._replies.pop(number)
        self._settle(mailbox=not self._gated_results)
        if reply.error is None:
            return say(reply.value)
        if isinstance(reply.error, ChildStartError):
            return f"error:{failed}{term_of(reply.error.exit)}" if reply.error.exit else "error:called_off"
        return f"error:{reply.error.term}" if isinstance(reply.error, CallError) else f"error:{reply.error}"

    def _tree(self) -> dict[str, Any]:
        tree = {}
        for path, process in self.world.current.items():
            if process.supervisor and process.alive:
                children = self._do_which_children({"sup": path})
                tree[path] = {"children": children, "counts": self._do_count_children({"sup": path})}
        return tree

    def _lines(self, sup: str, lines: list[Any]) -> list[dict[str, Any]]:
        found = []
        for line in lines:
            state = "running" if line.running else "restarting" if line.restarting else "undefined"
            entry = {"id": line.id, "state": state, "type": "supervisor" if line.supervisor else "worker"}
            if line.restarting and self.world.current[sup].simple:
                entry["id"] = "undefined"  # OTP lists instances by pid, and this one has none
            if line.running:
                entry["n"] = self.world.current[f"{sup}/{line.id}"].n
            found.append(entry)
        if self.world.current[sup].simple:
            found.sort(key=lambda entry: (entry["id"] != "undefined", entry["id"]))
        return found

    # --- crashes ------------------------------------------------------------------------------

    def _crash(self, path: str, reason: str, *, supervised: bool) -> str:
        """End a process; ``supervised`` is False while its supervisor is suspended."""
        process = self.world.alive(path)
        if process is None:
            return "noproc"
        exit_ = exit_of(reason)
        if not process.supervisor or exit_ is KILLED:
            self.world.end(process, term_of(exit_))
            if process.supervisor and not supervised:
                self._leave_orphans(process)
        elif not supervised:
            self._stop_by_itself(process, term_of(exit_))
        child = self.core.children.get(_core_path(path))
        incarnation = 0 if child is None else child.incarnation
        event = m.Exited(_core_path(path), incarnation, exit_)
        self._mailbox.append(lambda: self._feed(event))
        return "ok"

    def _stop_by_itself(self, supervisor: Process, reason: str) -> None:
        """Stop a supervisor in order before its own, suspended supervisor is notified."""
        supervisor.ending = True
        for process, ending in reversed(self._children(supervisor)):
            if not process.supervisor:
                _, how = self.world.ask(process, ending)
                self.world.end(process, how)
            elif ending.seconds is None:
                self.world.end(process, "killed")
                self._leave_orphans(process)
            else:
                self._stop_by_itself(process, "shutdown")
        self.world.end(supervisor, reason)

    def _leave_orphans(self, supervisor: Process) -> None:
        """Stop the children of a killed supervisor independently of each other."""
        for process, ending in self._children(supervisor):
            if process.supervisor:
                self._stop_by_itself(process, supervisor.reason)
            else:
                _, how = self.world.ask(process, ending)
                self.world.end(process, how)

    def _children(self, supervisor: Process) -> list[tuple[Process, Shutdown]]:
        """Return the living children of a supervisor in start order, with their shutdown."""
        children = self.core.supervisors[_core_path(supervisor.path)].children.values()
        found = [
            (self.world.alive(f"{supervisor.path}/{child.spec.id}"), child.spec.ending) for child in children
        ]
        return [(process, ending) for process, ending in found if process is not None]

    # --- time ---------------------------------------------------------------------------------

    def _feed(self, event: m.Event) -> None:
        for effect in self.core.handle(event, self.now):
            handler = self._EFFECTS.get(type(effect))
            if handler is not None:
                handler(self, effect)

    def _settle(self, *, mailbox: bool = True) -> None:
        """Process events until none is left."""
        while True:
            if self._answers:
                self._feed(self._answers.popleft())
            elif self._later:
                at, _, timer, happen = heappop(self._later)
                if timer not in self._cancelled:
                    self.now = max(self.now, at)
                    happen()
            elif self._mailbox and mailbox:
                self._mailbox.popleft()()
            else:
                return

    def _after(self, delay: float, happen: Callable[[], None], timer: int = 0) -> None:
        heappush(self._later, (self.now + delay, next(self._order), timer, happen))

    # --- effects ------------------------------------------------------------------------------

    def _on_start(self, effect: m.Start) -> None:
        path = _path(effect.child)
        start = effect.spec.start
        json = start.json if isinstance(start, StartFunction) else {}
        n, outcome = self.world.attempt(path)
        if outcome == "ok":
            process = self.world.spawn(path, n, json)
            self._incarnations[effect.child, effect.incarnation] = process
            if "children" in json:
                self._init(effect, process)
            else:
                self.world.record(process, "start", result="ok")
                self._answers.append(m.Started(effect.child, effect.incarnation))
            return
        above, _, _ = path.rpartition("/")
        attempted = Process(path, n, self.world.current.get(above), json)
        if outcome == "ignore":
            self.world.record(attempted, "start", result="ignore")
            self._answers.append(m.Ignored(effect.child, effect.incarnation))
            return
        if outcome == "gate_error":
            self._open_gate()
        reason = "raised" if outcome == "raise" else "boom"
        self.world.record(attempted, "start", result="error", reason=reason)
        term = _RAISED if outcome == "raise" else "boom"
        self._answers.append(m.StartFailed(effect.child, effect.incarnation, Exit(ExitKind.FAULT, term)))

    def _init(self, effect: m.Start, process: Process) -> None:
        self.world.promote(process)
        self.world.record(process, "init")
        init = self._inits.get(process.path, process.json)
        try:
            spec = supervisor_spec(init.get("flags", {}), init["children"])
        except BadSpecError as error:
            self._fail_to_start(process, error.whole)
            failed = Exit(ExitKind.FAULT, error.whole)
            self._answers.append(m.StartFailed(effect.child, effect.incarnation, failed))
        else:
            process.simple = spec.template is not None
            self._answers.append(m.Prepared(effect.child, effect.incarnation, spec))

    def _fail_to_start(self, process: Process, reason: str) -> None:
        self.world.record(process, "start", result="error", reason=reason)
        process.alive, process.reason = False, reason

    def _open_gate(self) -> None:
        """Put calls into the mailbox while a start function blocks; crashes among them happen now."""
        calls, self._gated = self._gated, []
        for index, call in enumerate(calls):
            self._gated_results.append(None)
            if call["op"] == "crash":
                self._gated_results[index] = self._crash(call["path"], call["reason"], supervised=False)
            else:
                called = self.world.current[call["sup"]]
                self._mailbox.append(partial(self._answer_gated, index, call, called))

    def _answer_gated(self, index: int, call: dict[str, Any], called: Process) -> None:
        # A call that the supervisor did not process is not passed on to its next incarnation.
        self._gated_results[index] = self._do(call) if called.alive else "noproc"

    def _on_stop(self, effect: m.Stop) -> None:
        process = self._incarnations.get((effect.child, effect.incarnation))
        if process is None or not process.alive:
            exit_ = KILLED if process is None else exit_of(process.reason)
            self._answers.append(m.Exited(effect.child, effect.incarnation, exit_))
            return
        delay, reason = self.world.ask(process, effect.shutdown)
        if delay == 0:
            self._gone(effect, process, reason)
        else:
            self._after(delay, lambda: self._gone(effect, process, reason))

    def _gone(self, effect: m.Stop, process: Process, reason: str) -> None:
        self.world.end(process, reason)
        self._answers.append(m.Exited(effect.child, effect.incarnation, exit_of(reason or "killed")))

    def _on_set_timer(self, effect: m.SetTimer) -> None:
        fire = partial(self._feed, m.TimerFired(effect.timer))
        if effect.delay > 0:
            self._after(effect.delay, fire, effect.timer)
        else:
            self._mailbox.append(fire)

    def _on_cancel_timer(self, effect: m.CancelTimer) -> None:
        self._cancelled.add(effect.timer)

    def _on_reply(self, effect: m.Reply) -> None:
        self._replies[effect.call] = effect

    def _on_supervisor_changed(self, effect: m.SupervisorChanged) -> None:
        process = self.world.current[_path(effect.path)]
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
                self._fail_to_start(process, term_of(exit_))
            elif process.orphan and process.parent is not None:
                self.world.end(process, process.parent.reason)
            else:
                self.world.end(process, term_of(exit_))

    _EFFECTS: ClassVar[dict[type, Callable[[Replay, Any], None]]] = {
        m.Start: _on_start,
        m.Stop: _on_stop,
        m.SetTimer: _on_set_timer,
        m.CancelTimer: _on_cancel_timer,
        m.Reply: _on_reply,
        m.SupervisorChanged: _on_supervisor_changed,
    }


def _started(value: object) -> str:
    return "ok" if value is not None else "ok:undefined"


def _path(core: str) -> str:
    return f"root/{core}" if core else "root"


def _core_path(path: str) -> str:
    return path.removeprefix("root").removeprefix("/")
