"""Invariants of the core, under any order of deaths, answers, late events, calls and timers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.core import Core
from rayvisor.faults import KILLED, NORMAL, SHUTDOWN, FaultClass
from rayvisor.specs import AutoShutdown, Backoff, ChildSpec, Instance, Restart, Strategy, SupervisorSpec
from rayvisor.strategies import (
    Failure,
    Quorum,
    Rolling,
    Siblings,
    Step,
    escalate,
    in_place,
    start,
    stop,
    wait_serving,
)
from rayvisor.testing import BOOM, NOTHING, fault_of

EXITS = st.sampled_from([NORMAL, SHUTDOWN, KILLED, BOOM, BOOM, BOOM, fault_of(FaultClass.PERMANENT)])
PATHS = st.sampled_from(["a", "b", "t", "s", "s/x", "s/y", "s/new", "pool", "pool/k", "new", "nobody"])


class Dice:
    """A strategy that does anything, sensible or not."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def plan(self, failure: Failure, siblings: Siblings) -> list[Step]:
        ids = [*siblings, *([failure.child] * 3)]
        plan = [self.step(ids) for _ in range(self.random.randrange(6))]
        if self.random.random() < 0.1:
            raise RuntimeError("no luck")
        return plan

    def step(self, ids: list[str]) -> Step:
        some = sorted({self.random.choice(ids) for _ in range(self.random.randrange(1, 4))})
        makers: list[Callable[[], Step]] = [
            lambda: start(some, concurrency=self.random.choice([None, 1, 3])),
            lambda: stop(some),
            lambda: wait_serving(some[0], timeout=2.0),
            lambda: in_place("try"),
            lambda: escalate("enough"),
        ]
        return self.random.choices(makers, [6, 5, 2, 2, 0.5])[0]()


GROUPS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE, Quorum(1), Rolling(timeout=2.0)]
    ),
    st.builds(Dice, st.integers(0, 99)),
)
TYPES = st.sampled_from(list(Restart))
INDEX = st.integers(0, 50)


class Engine(NamedTuple):
    """A start spec of an engine of which nothing is ever started."""

    kind: str = "engine"


async def sync(_: object) -> None: ...


def child(name: str, restart: Restart = Restart.PERMANENT, **more: Any) -> ChildSpec:
    return ChildSpec(id=name, start=more.pop("kind", NOTHING), restart=restart, start_timeout=0.5, **more)


@st.composite
def trees(draw: st.DrawFn) -> SupervisorSpec:
    slow = draw(
        st.sampled_from([None, Backoff(initial=1.0, maximum=2.0), Backoff(maximum=3.0, max_retries=2)])
    )
    automatic = draw(st.sampled_from(list(AutoShutdown)))
    significant = automatic is not AutoShutdown.NEVER and draw(st.booleans())
    inner = SupervisorSpec(
        strategy=draw(GROUPS),
        intensity=draw(st.integers(0, 2)),
        period=5.0,
        max_concurrent_starts=draw(st.integers(1, 2)),
        auto_shutdown=automatic,
        children=[
            child("x", Restart.TRANSIENT, significant=significant, kind=Engine(), recoveries=1),
            child("y", draw(TYPES), kind=Engine(), gate=draw(st.sampled_from([None, sync]))),
        ],
        recover_as_group=draw(st.booleans()),
    )
    pool = SupervisorSpec(
        strategy=Strategy.SIMPLE_ONE_FOR_ONE, intensity=1, children=[child("template", draw(TYPES))]
    )
    return SupervisorSpec(
        strategy=draw(GROUPS),
        intensity=draw(st.integers(0, 4)),
        period=30.0,
        max_concurrent_starts=draw(st.integers(1, 3)),
        children=[
            child("a", draw(TYPES), crash_loop_limit=draw(st.sampled_from([None, 2]))),
            ChildSpec(
                id="s",
                start=inner,
                restart=draw(TYPES),
                shutdown=draw(st.sampled_from([None, 0.0, 2.0])),
            ),
            child("b", backoff=slow, retry_first_start=draw(st.booleans())),
            ChildSpec(id="pool", start=pool),
            child("t", Restart.TEMPORARY),
        ],
    )


class AnyOrder(RuleBasedStateMachine):
    """Holds every answer back, and gives the core events in any order."""

    core: Core

    @initialize(spec=trees(), seed=st.integers(0, 9))
    def boot(self, spec: SupervisorSpec, seed: int) -> None:
        self.core = Core(spec, Random(seed))
        self.now = 0.0
        self.live: dict[str, int] = {}
        self.up: dict[str, int] = {}
        self.newest: dict[str, int] = defaultdict(int)
        self.starting: dict[str, m.Start] = {}
        self.stopping: dict[str, m.Stop] = {}
        self.dirty: dict[str, m.Clean] = {}
        self.acting: dict[str, m.Act] = {}
        self.timers: dict[int, float] = {}
        self.calls: dict[int, int] = {}
        self.restarts: dict[str, list[float]] = defaultdict(list)
        self.places: dict[str, tuple[str, list[str], list[str]]] = {}
        self.where: dict[str, Any] = {}
        self.past: list[m.Event] = []
        self.ending = self.ended = False
        self.feed(m.Boot())

    # --- what happens ---------------------------------------------------------------------------

    @rule(index=INDEX)
    @precondition(lambda self: self.starting)
    def a_start_succeeds(self, index: int) -> None:
        start = self.starting.pop(self.pick(self.starting, index))
        if self.live.get(start.child) == start.incarnation:
            self.up[start.child] = start.incarnation
        self.feed(m.Started(start.child, start.incarnation))

    @rule(index=INDEX, exit_=EXITS, gone=st.booleans())
    @precondition(lambda self: self.starting)
    def a_start_fails(self, index: int, exit_: Any, *, gone: bool) -> None:
        start = self.starting.pop(self.pick(self.starting, index))
        if gone:
            self.gone(start.child, start.incarnation)
        self.feed(m.StartFailed(start.child, start.incarnation, exit_, gone))

    @rule(index=INDEX)
    @precondition(lambda self: self.starting)
    def a_start_is_ignored(self, index: int) -> None:
        start = self.starting.pop(self.pick(self.starting, index))
        self.gone(start.child, start.incarnation)
        self.feed(m.Ignored(start.child, start.incarnation))

    @rule(index=INDEX, exit_=EXITS)
    @precondition(lambda self: self.stopping)
    def a_stop_is_done(self, index: int, exit_: Any) -> None:
        stop = self.stopping.pop(self.pick(self.stopping, index))
        self.gone(stop.child, stop.incarnation)
        self.feed(m.Exited(stop.child, stop.incarnation, exit_))

    @rule(index=INDEX)
    @precondition(lambda self: self.dirty)
    def a_proof_arrives(self, index: int) -> None:
        clean = self.dirty.pop(self.pick(self.dirty, index))
        self.gone(clean.child, clean.incarnation)
        self.feed(m.Gone(clean.child, clean.incarnation))

    @rule(index=INDEX, ok=st.booleans())
    @precondition(lambda self: self.acting)
    def something_in_place_is_done(self, index: int, *, ok: bool) -> None:
        act = self.acting.pop(self.pick(self.acting, index))
        self.feed(m.Acted(act.child, act.incarnation, ok))

    @rule(index=INDEX)
    @precondition(lambda self: self.timers)
    def a_timer_fires(self, index: int) -> None:
        timer = list(self.timers)[index % len(self.timers)]
        self.now = max(self.now, self.timers.pop(timer))
        self.feed(m.TimerFired(timer))

    @rule(index=INDEX, exit_=EXITS, gone=st.booleans())
    @precondition(lambda self: self.up)
    def a_child_dies(self, index: int, exit_: Any, *, gone: bool) -> None:
        path = self.pick(self.up, index)
        incarnation = self.up.pop(path)
        if gone:
            self.gone(path, incarnation)
        self.feed(m.Exited(path, incarnation, exit_, gone))

    @rule(path=PATHS, exit_=EXITS)
    def a_supervisor_dies(self, path: str, exit_: Any) -> None:
        node = self.core.children.get(path)
        if node is not None and node.subtree is not None and exit_ in {KILLED, BOOM}:
            self.feed(m.Exited(path, node.incarnation, exit_))

    @rule(index=INDEX)
    @precondition(lambda self: self.past)
    def something_is_said_again(self, index: int) -> None:
        again = self.past[-1 - index % len(self.past)]
        true = not isinstance(again, (m.Exited, m.StartFailed, m.Ignored, m.Gone)) or (
            self.live.get(again.child) != again.incarnation
        )
        if true and not isinstance(again, (m.Call, m.Boot, m.Halt, m.Started)):
            self.feed(again, note=False)

    @rule(path=PATHS, incarnation=st.integers(0, 3))
    def a_start_is_reported_late(self, path: str, incarnation: int) -> None:
        if incarnation < self.newest[path]:
            effects = self.feed(m.Started(path, incarnation), note=False)
            assert effects == [m.Kill(path, incarnation)]

    @rule(
        index=INDEX,
        word=st.sampled_from(
            ["suspect", "clear", "standby", "promote", "fault", "stop", "unhealthy", "synced"]
        ),
    )
    @precondition(lambda self: self.live)
    def something_is_reported(self, index: int, word: str) -> None:
        path = self.pick(self.live, index)
        self.feed(m.Reported(path, self.live[path], word))

    @rule(index=INDEX)
    @precondition(lambda self: self.up)
    def a_child_makes_progress(self, index: int) -> None:
        path = self.pick(self.up, index)
        self.feed(m.Progressed(path, self.up[path]))

    @rule(verb=st.sampled_from(list(m.Verb)), path=PATHS, of_root=st.booleans())
    def a_call_comes(self, verb: m.Verb, path: str, *, of_root: bool) -> None:
        target, _, name = ("", "", path) if of_root else path.rpartition("/")
        argument: Any = name
        if verb is m.Verb.START_CHILD:
            argument = Instance("k") if target == "pool" else child("new")
        elif verb is m.Verb.APPLY_SPEC:
            supervisor = self.core.supervisors.get(target)
            argument = None if supervisor is None else supervisor.spec
        number = len(self.calls) + 1
        self.calls[number] = 0
        self.feed(m.Call(number, verb, target, argument))

    @rule(under=st.sampled_from(["", "s"]), kind=TYPES)
    def a_call_adds_a_child(self, under: str, kind: Restart) -> None:
        number = len(self.calls) + 1
        self.calls[number] = 0
        self.feed(m.Call(number, m.Verb.START_CHILD, under, child("new", kind)))

    @rule(
        index=INDEX,
        verb=st.sampled_from([m.Verb.TERMINATE_CHILD, m.Verb.RESTART_CHILD, m.Verb.DELETE_CHILD]),
        again=st.booleans(),
    )
    @precondition(lambda self: self.live)
    def a_call_comes_on_what_lives(self, index: int, verb: m.Verb, *, again: bool) -> None:
        target, _, name = self.pick(self.live, index).rpartition("/")
        for one in (m.Verb.TERMINATE_CHILD, verb) if again else (verb,):
            number = len(self.calls) + 1
            self.calls[number] = 0
            self.feed(m.Call(number, one, target, name))

    @rule(seconds=st.sampled_from([0.1, 3.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(really=st.integers(0, 9))
    def the_tree_is_halted(self, really: int) -> None:
        if really == 0:
            self.feed(m.Halt())

    # --- invariants -----------------------------------------------------------------------------

    @staticmethod
    def pick(items: dict[str, Any], index: int) -> str:
        return list(items)[index % len(items)]

    def gone(self, path: str, incarnation: int) -> None:
        for what in (self.live, self.up):
            if what.get(path) == incarnation:
                del what[path]
        for waiting in (self.starting, self.stopping, self.dirty):
            if path in waiting and waiting[path].incarnation == incarnation:
                del waiting[path]

    def feed(self, event: m.Event, *, note: bool = True) -> list[m.Effect]:
        if note:
            self.past.append(event)
        effects = self.core.handle(event, self.now)
        for effect in effects:
            assert not self.ended or isinstance(effect, (m.Reply, m.Kill)), effect
            name = f"see_{type(effect).__name__.lower()}"
            getattr(self, name, lambda _: None)(effect)
        return effects

    def see_start(self, effect: m.Start) -> None:
        assert effect.child not in self.live, "two live incarnations"
        assert effect.incarnation > self.newest[effect.child], "a number used twice"
        self.newest[effect.child] = self.live[effect.child] = effect.incarnation
        self.starting[effect.child] = effect
        self.in_order(effect.child, "starting")

    def see_stop(self, effect: m.Stop) -> None:
        assert self.live.get(effect.child) == effect.incarnation, "stopped, but not alive"
        assert effect.child not in self.stopping, "asked to end twice"
        self.stopping[effect.child] = effect
        self.up.pop(effect.child, None)
        self.in_order(effect.child, "stopping")

    def see_clean(self, effect: m.Clean) -> None:
        assert self.live.get(effect.child) == effect.incarnation, "to be cleaned, but proven gone"
        assert effect.child not in self.dirty
        self.up.pop(effect.child, None)
        self.starting.pop(effect.child, None)
        self.dirty[effect.child] = effect

    def see_act(self, effect: m.Act) -> None:
        assert self.up.get(effect.child) == effect.incarnation, "to act, but not up"
        self.acting[effect.child] = effect

    def see_settimer(self, effect: m.SetTimer) -> None:
        assert effect.delay >= 0
        self.timers[effect.timer] = self.now + effect.delay

    def see_canceltimer(self, effect: m.CancelTimer) -> None:
        self.timers.pop(effect.timer, None)

    def see_reply(self, effect: m.Reply) -> None:
        self.calls[effect.call] += 1
        assert self.calls[effect.call] == 1, "answered twice"

    def see_changed(self, effect: m.Changed) -> None:
        known = self.where.get(effect.child)
        assert known is None or known == effect.before, "a change without an effect"
        self.where[effect.child] = effect.after

    def see_removed(self, effect: m.Removed) -> None:
        assert effect.child not in self.live, "forgotten while it may be alive"
        self.forget_below(effect.child)

    def see_decided(self, effect: m.Decided) -> None:
        if effect.decision != "restart":
            return
        path = effect.child.rpartition("/")[0]
        supervisor = self.core.supervisors.get(path)
        if supervisor is None:
            return  # it is forgotten already
        times = self.restarts[path]
        times.append(self.now)
        recent = [at for at in times if self.now - at <= supervisor.spec.period]
        assert len(recent) <= supervisor.spec.intensity, "a restart beyond intensity"

    def see_supervisorchanged(self, effect: m.SupervisorChanged) -> None:
        path = effect.path
        if effect.state == "starting":
            self.restarts.pop(path, None)
            self.forget_below(path, itself=False)
        if effect.state in {"starting", "stopping"}:
            supervisor = self.core.supervisors.get(path)
            if supervisor is None:
                return  # it is forgotten already
            names = [spec.id for spec in supervisor.spec.children]
            if effect.state == "stopping":
                names = [node.spec.id for node in supervisor.children.values()]
            self.places[path] = (effect.state, names, [])
        else:
            self.places.pop(path, None)
        if effect.state == "ended":
            below = [one for one in self.live if one.startswith(f"{path}/" if path else "")]
            assert not below, f"{path!r} has ended, but {below} may be alive"

    def see_treeended(self, _: m.TreeEnded) -> None:
        assert not self.live, "the tree has ended, but not all of it"
        self.ended = True

    def forget_below(self, path: str, *, itself: bool = True) -> None:
        below = f"{path}/" if path else ""
        for one in list(self.where):
            if (itself and one == path) or one.startswith(below):
                del self.where[one]

    def in_order(self, path: str, what: str) -> None:
        """While a supervisor starts, its children start in order; while it ends, they end in reverse."""
        above, _, name = path.rpartition("/")
        state, names, done = self.places.get(above, ("", [], []))
        if state != what or name not in names or (what == "starting" and name in done):
            return  # a restart while others still start has no place in that order
        places = [names.index(one) for one in [*done, name]]
        assert places == sorted(places, reverse=what == "stopping"), f"{path} is {what} out of order"
        done.append(name)

    def settle(self) -> bool:
        """Give the core one outstanding answer; False when there is none."""
        if self.starting:
            start = next(iter(self.starting.values()))
            if start.child in self.stopping:  # the stop's answer is the end of the start as well
                del self.starting[start.child]
            elif self.ending:
                self.a_start_fails(0, BOOM, gone=True)
            else:
                self.a_start_succeeds(0)
        elif self.stopping:
            self.a_stop_is_done(0, SHUTDOWN)
        elif self.dirty:
            self.a_proof_arrives(0)
        elif self.acting:
            self.something_in_place_is_done(0, ok=True)
        elif self.timers:
            self.a_timer_fires(0)
        else:
            return False
        return True

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        assert any(not self.settle() for _ in range(1000)), "the tree does not come to rest"
        assert all(answers == 1 for answers in self.calls.values()), "a call was not answered"
        self.ending = True
        self.feed(m.Halt())
        assert any(not self.settle() for _ in range(1000)), "the tree does not end"
        assert self.ended, "the tree does not end"
        assert not self.live
        assert all(answers == 1 for answers in self.calls.values()), "a call was not answered"


AnyOrder.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
TestAnyOrder = AnyOrder.TestCase
