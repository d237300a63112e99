"""What an end means for the child: a restart as the strategy says, rest, or the end of its supervisor."""

from __future__ import annotations

from rayvisor._core.supervision import messages as m
from rayvisor._core.supervision.nodes import After, Child, Phase
from rayvisor._core.supervision.plan_runner import Groups
from rayvisor._core.supervision.planning import alone, ask, by_itself, restarts
from rayvisor.errors import StrategyError
from rayvisor.faults import SHUTDOWN, Exit
from rayvisor.specs import Backoff, Restart, Strategy
from rayvisor.specs import backoff as backoffs
from rayvisor.strategies import Escalate, InPlace, Start, Step

__all__ = ["Restarts"]


class Restarts(Groups):
    """Restart types, intensity, backoff, the no-progress rule; what follows a proof that a child is gone."""

    # --- a child ends -----------------------------------------------------------------------

    def _died(self, child: Child, exit: Exit, *, gone: bool) -> None:  # noqa: A002 - OTP's word
        """Go on after a live incarnation that ended without being asked to."""
        supervisor = child.parent
        child.exit = exit
        self._count_barren(child)
        self._reset_if_served(child)
        self._goes_down(child, "fault" if exit.abnormal else "exit", str(exit))
        child.after = After.REST
        if supervisor.phase is Phase.STOPPING:
            pass
        elif supervisor.group is not None or self._in_order_of_init(child):
            if supervisor.group is not None and child in supervisor.group.members:
                child.after = After.GROUP  # absorbed: it was to be stopped anyway (OTP G9)
            else:
                child.unjudged = True
                supervisor.deferred.append((child, child.incarnation))
                self._group_step(supervisor, child)  # a step may have waited for it to serve
        else:
            self._judge(child)
        self._part(child, gone=gone)

    @staticmethod
    def _in_order_of_init(child: Child) -> bool:
        """Whether ends wait until all children have had their first start, as in OTP.

        Not under one_for_one: there an engine of a pool is restarted while others still come up.
        """
        supervisor = child.parent
        return supervisor.phase is Phase.STARTING and supervisor.spec.strategy is not Strategy.ONE_FOR_ONE

    def _part(self, child: Child, *, gone: bool) -> None:
        """Ask for the proof that nothing is left of a child, if it is not there yet."""
        if child.removed:
            return
        if gone:
            self._child_gone(child)
        else:
            self._out.append(m.Clean(child.path, child.incarnation))

    @staticmethod
    def _count_barren(child: Child) -> None:
        child.unproductive_restarts = 0 if child.progressed else child.unproductive_restarts + 1

    def _reset_if_served(self, child: Child) -> None:
        backoff = child.spec.backoff
        if (
            backoff is not None
            and child.up_since is not None
            and self.now - child.up_since >= backoff.reset_after
        ):
            child.attempt = 0
            child.delay = 0.0
            child.failing_since = None

    def _judge(self, child: Child) -> None:
        """Decide what an end means: restart, rest, or the end of the supervisor."""
        child.unjudged = False
        restart = child.spec.restart
        exit = child.exit or SHUTDOWN  # noqa: A001 - OTP's word
        if exit.restarted_by_ray:
            child.delay = 0.0
            child.after = After.RESTART
            self._decided(child, "observe", "it is brought up again by whoever made it")
        elif restart is Restart.TEMPORARY:
            child.after = After.FORGET
            self._decided(child, "forget", "temporary: it is never restarted")
            self._auto_shutdown(child)
        elif exit.permanent:
            self._give_up(child, "no restart can cure the fault", After.FAIL)
        elif restart is Restart.TRANSIENT and not exit.abnormal:
            child.after = After.FORGET if child.disposable else After.REST
            self._decided(child, "rest", "transient: it ended normally")
            self._auto_shutdown(child)
        else:
            self._plan(child)

    # --- what the strategy says ---------------------------------------------------------------

    def _ask_again(self, child: Child) -> None:
        self._plan(child)

    def _plan(self, child: Child, *, counted: bool = False) -> None:
        """Ask the strategy about a failed child, and begin what it says.

        ``counted`` says that this restart is known to be within the intensity, and has waited its delay.
        """
        supervisor = child.parent
        steps = self._ask(child)
        first = steps[0] if steps else None
        if isinstance(first, Escalate):
            self._give_up(child, first.reason, After.EXHAUST)
            return
        starts = restarts(steps)
        if starts:
            supervisor.asks = 0
            if not counted and not self._counted(child):
                return
        if not counted:
            decision = "restart" if starts else "in_place" if isinstance(first, InPlace) else "rest"
            self._decided(child, decision, supervisor.spec.strategy_name)
        if alone(steps, child):
            self._restart_alone(child)
            return
        child.restarting = False
        if not any(isinstance(step, Start) and child.spec.id in step.ids for step in steps):
            if child.configuration.leaf == "BACKOFF":
                self._rest(child, "the strategy leaves it down")
            elif not self._up(child):
                child.after = After.REST
        if steps:
            self._group_begin(supervisor, child, steps, 0.0 if counted else child.delay)

    def _ask(self, child: Child) -> tuple[Step, ...]:
        supervisor = child.parent
        step = supervisor.broken.pop(child, None) if supervisor.broken else None
        if supervisor.phase is Phase.STARTING:
            return by_itself(child)  # there is no group to restart yet
        self.asking = supervisor.spec.strategy_name
        steps = ask(supervisor, child, child.exit or SHUTDOWN, step, self.now)
        self.asking = ""
        if isinstance(steps, StrategyError):
            self._out.append(m.StrategyFailed(supervisor.path, child.path, steps))
            return by_itself(child)
        return steps

    def _restart_alone(self, child: Child) -> None:
        """Start a child again without its siblings, once it is down."""
        if child.begun and child.configuration.leaf != "STOPPING":
            self._stop(child, After.RESTART, m.AGAIN)
        elif child.begun or child.configuration.leaf == "STOPPING":
            child.after = After.RESTART
        else:
            self._start(child)

    def _counted(self, child: Child) -> bool:
        """Count a restart; False when that was one too many and the supervisor gives up."""
        supervisor = child.parent
        spec = supervisor.spec
        within = supervisor.window.add(self.now, spec.intensity, spec.period)
        limit = child.spec.crash_loop_limit
        unproductive_restarts = limit is not None and child.unproductive_restarts >= limit
        if unproductive_restarts:
            why = f"{child.unproductive_restarts} incarnations in a row died before doing useful work"
        elif not within:
            why = f"{len(supervisor.window)} restarts within {spec.period:g} s, intensity is {spec.intensity}"
        else:
            if child.spec.backoff is None:
                return True
            why = self._backed_off(child, child.spec.backoff)
        if why:
            self._give_up(child, why, After.EXHAUST, final=unproductive_restarts)
        return not why

    def _backed_off(self, child: Child, backoff: Backoff) -> str:
        """Choose the delay before the next restart; say what bound it would break, if any."""
        if backoff.max_retries is not None and child.attempt >= backoff.max_retries:
            return f"{child.attempt} restarts in a row, backoff.max_retries is {backoff.max_retries}"
        if child.failing_since is None:
            child.failing_since = self.now
        child.delay = backoffs.delay(backoff, child.attempt, child.delay, self.random)
        if backoff.timeout is not None and self.now + child.delay - child.failing_since > backoff.timeout:
            return f"down for longer than backoff.timeout={backoff.timeout:g} s"
        child.attempt += 1
        return ""

    def _decided(self, child: Child, decision: str, detail: str) -> None:
        supervisor = child.parent
        self._out.append(
            m.Decided(
                child.path,
                child.incarnation,
                decision,
                child.exit or SHUTDOWN,
                detail,
                len(supervisor.window),
                supervisor.spec.intensity,
                child.delay,
            )
        )

    # --- nothing is left of a child -----------------------------------------------------------

    def _child_gone(self, child: Child) -> None:
        """Go on with a child of which nothing is left."""
        child.begun = False
        self._drop_timer(child)
        after = child.after
        if after is After.RESTART:
            self._restart(child)
        elif after is After.GROUP:
            self._move(child, "backoff")
            self._forget_if_disposable(child)
            self._answer_waiting(child)
            self._group_step(child.parent, child)
        elif after is After.RETRY:
            group = child.parent.group
            if group is not None and child.path in group.outstanding:
                group.failure = child
                self._group_step(child.parent, child)
            else:
                self._retry(child)
        elif after is After.REST:
            self._came_down(child)
        else:
            self._ended(child, after)

    def _ended(self, child: Child, after: After) -> None:
        """Let a child come to its last rest: forgotten, failed or exhausted."""
        exit = child.exit or SHUTDOWN  # noqa: A001 - OTP's word
        if after is After.FORGET:
            self._move(child, "completed")
            self._answer_waiting(child)
            self._forget(child)
            self._group_step(child.parent, child)
        elif after is After.FAIL or (after is After.BOOT_FAILED and exit.permanent):
            self._move(child, "failed")
        else:
            self._move(child, "exhausted")
        if after is After.BOOT_FAILED:
            self._boot_failed(child, exit)
        self._answer_waiting(child)
        self._boot_step(child)
        self._step_of_end(child)

    def _came_down(self, child: Child) -> None:
        """Let a child that was stopped, or ended normally, come to rest; answer who waits for it."""
        if child.unjudged:
            return  # a group restart is under way; what its end means is decided after that
        exit = child.exit  # noqa: A001 - OTP's word
        supervisor = child.parent
        start_call = child.start_call
        if child.stop_requested or exit is None or supervisor.phase is Phase.STOPPING:
            event = "stopped"
        elif exit.abnormal:
            event = "failed" if exit.permanent else "stopped"
        else:
            event = "completed"
        if not self._move(child, event) and self._move(child, "stop"):
            self._move(child, event)
        self._refuse_starter(child, None if child.stop_requested else exit)
        if start_call is not None and start_call.verb is m.Verb.START_CHILD:
            self._forget(child)  # never saved (OTP A2)
        elif start_call is None or child.stop_requested:
            self._forget_if_disposable(child)
        self._answer_waiting(child)
        self._group_step(supervisor, child)
        self._boot_step(child)
        self._step_of_end(child)

    def _restart(self, child: Child) -> None:
        """Start a child again by itself: at once, or after its delay."""
        if child.delay > 0:
            child.restarting = True
            child.counted = True
            self._move(child, "backoff", f"{child.delay:.3g} s")
            self._set_timer(child, child.delay)
        else:
            self._start(child)

    def _retry(self, child: Child) -> None:
        """Try a failed restart again: OTP's message to itself, or after the backoff's delay."""
        if not child.parent.active:
            self._came_down(child)
            return
        if child.exit is not None and child.exit.permanent:
            self._give_up(child, "no restart can cure the fault", After.FAIL)
            return
        child.counted = child.spec.backoff is not None
        # With delays, the failed attempt counts now: giving up must not wait for a delay.
        if child.counted and not self._counted(child):
            return
        child.restarting = True
        self._decided(child, "retry_later", "its start failed")
        self._move(child, "backoff", f"{child.delay:.3g} s")
        self._set_timer(child, child.delay if child.counted else 0.0)

    def _retry_due(self, child: Child) -> None:
        """Start again a child whose delay is over."""
        supervisor = child.parent
        if not supervisor.active or not child.restarting:
            self._group_step(supervisor, child)  # a step waited for it to serve, and waits no longer
            return
        if supervisor.group is not None:
            supervisor.deferred.append((child, child.incarnation))
            return
        self._plan(child, counted=child.counted)
