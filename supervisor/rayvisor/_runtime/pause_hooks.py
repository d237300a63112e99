"""Runs the pause and resume hooks of actors.

A pause does not depend on its hook: a paused actor gets no new work, whatever the hook does. The hook is for
work that the actor does of its own accord. Hooks of one actor run one at a time; after each, the state that
is wanted by then decides which one is next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.paths import contains
from rayvisor._core.protocol.causes import in_one_line
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.deadlines import bounded
from rayvisor.status import is_up
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RuntimeTimeouts

if TYPE_CHECKING:
    from rayvisor._core.supervision.core import Core
    from rayvisor._runtime.reporting import EventReporter
    from rayvisor.specs import ActorHook, ActorHooks

__all__ = ["PauseHooks"]

log = get_logger("rayvisor.actors")

TRIES = 3
PAUSED = "REQUESTED"
"""The flag of a child that an operator has paused."""


class _PauseState:
    """Whether one incarnation is to be paused, and what its hooks have been called for."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.wanted = False
        self.paused = False
        self.running: anyio.CancelScope | None = None
        """Of the task that calls its hooks; None while none does."""
        self.settled = anyio.Event()
        self.settled.set()


class PauseHooks:
    """Observes the effects of the core: calls the hooks of actors that are paused or resumed.

    Parameters
    ----------
    tasks
        Owner of the hooks' tasks.
    core
        Holds the specs.
    call
        Calls a hook of a child's present incarnation.
    reporter
        Reports hooks that fail.
    timeouts
        Timeout of a hook, and the pauses between its tries.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        core: Core,
        call: Callable[[str, ActorHook], Awaitable[Any]],
        reporter: EventReporter,
        *,
        timeouts: RuntimeTimeouts = DEFAULT_TIMEOUTS.runtime,
    ) -> None:
        self._timeouts = timeouts
        self._tasks = tasks
        self._core = core
        self._call = call
        self._reporter = reporter
        self._states: dict[str, _PauseState] = {}

    def observe(self, effect: m.Effect) -> None:
        """Call hooks if an actor was paused or resumed by an effect."""
        if not isinstance(effect, m.Changed) or effect.chart != "actor":
            return
        child, up, state = effect.child, is_up(effect.after.state), self._states.get(effect.child)
        if state is not None and (not up or state.incarnation != effect.incarnation):
            del self._states[child]
            if state.running is not None:
                state.running.cancel()
            state = None
        if not up:
            return
        wanted = PAUSED in effect.after.flags
        hooks = self._hooks(child)
        if hooks is None or (state is None and not wanted):
            return
        if state is None:
            state = self._states[child] = _PauseState(effect.incarnation)
        state.wanted = wanted
        if state.wanted != state.paused and state.running is None:
            state.running = scope = anyio.CancelScope()
            state.settled = anyio.Event()
            self._tasks.start_soon(self._run, child, state, hooks, scope, name=f"pause hooks of {child}")

    async def settled(self, path: str, timeout: float) -> None:
        """Wait until the hooks of every actor at or below ``path`` have run, or the timeout is over."""
        with anyio.move_on_after(timeout):
            for child, state in list(self._states.items()):
                if contains(path, child):
                    await state.settled.wait()

    def _hooks(self, child: str) -> ActorHooks | None:
        node = self._core.status(child)
        hooks: ActorHooks | None = None if node is None else getattr(node.spec.start, "hooks", None)
        return hooks if hooks is not None and (hooks.pause or hooks.resume) else None

    async def _run(self, child: str, state: _PauseState, hooks: ActorHooks, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                while state.wanted != state.paused:
                    wanted = state.wanted
                    name, hook = ("pause", hooks.pause) if wanted else ("resume", hooks.resume)
                    if hook is not None:
                        await self._try(child, name, hook)
                    state.paused = wanted
        finally:
            state.running = None
            state.settled.set()

    async def _try(self, child: str, name: str, hook: ActorHook) -> None:
        for attempt in range(TRIES):
            try:
                await bounded(
                    self._tasks,
                    lambda: self._call(child, hook),
                    self._timeouts.pause_hook,
                    f"{name} of {child}",
                    unwind=self._timeouts.unwind,
                )
            except Exception as error:  # noqa: BLE001 - a user's hook may raise anything
                why = in_one_line(error)[:500]
                log.warning(
                    "actor.hook.failed", child=child, hook=name, attempt=attempt + 1, of=TRIES, why=why
                )
                if attempt + 1 == TRIES:
                    self._reporter.actor_hook_failed(child, name, why)
                else:
                    await anyio.sleep(self._timeouts.pause_hook_retry * 2**attempt)
            else:
                log.info("actor.hook.called", child=child, hook=name)
                return
