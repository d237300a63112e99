"""Actors are told of the holds on them: the user's pause and resume hooks.

The hold itself needs nobody's consent: an actor that is held gets no new work, whatever its hook does. The
hook is for what the actor does of its own. It is told in order, one thing at a time, and of what is wanted
last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.deadlines import bounded

if TYPE_CHECKING:
    from rayvisor._core.supervision.core import Core
    from rayvisor._runtime.reporting import EventReporter
    from rayvisor.specs import ActorHook, ActorHooks

__all__ = ["Hooks"]

log = get_logger("rayvisor.actors")

HOOK_SECONDS = 60.0
"""How long a hook may take."""
TRIES = 3
PAUSE_SECONDS = 0.5
"""Between two tries; twice as long each time."""
HELD = "REQUESTED"


class _Told:
    """What one incarnation has been told."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.wanted = False
        self.paused = False
        self.scope = anyio.CancelScope()
        self.at_work = False
        self.quiet = anyio.Event()
        self.quiet.set()


class Hooks:
    """Follows the effects of the core: calls the hooks of actors that are held, or go on.

    Parameters
    ----------
    tasks
        Owner of the hooks' tasks.
    core
        Where the specs are.
    call
        Calls a hook of a child's present incarnation.
    reporter
        Who tells of hooks that fail.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        core: Core,
        call: Callable[[str, ActorHook], Awaitable[Any]],
        reporter: EventReporter,
    ) -> None:
        self._tasks = tasks
        self._core = core
        self._call = call
        self._reporter = reporter
        self._told: dict[str, _Told] = {}

    def follow(self, effect: m.Effect) -> None:
        """Take note of an effect."""
        if not isinstance(effect, m.Changed) or effect.chart != "actor":
            return
        child, told = effect.child, self._told.get(effect.child)
        if told is not None and (
            effect.after.state not in {"ALIVE", "PAUSED"} or told.incarnation != effect.incarnation
        ):
            del self._told[child]
            told.scope.cancel()
            told = None
        if effect.after.state not in {"ALIVE", "PAUSED"}:
            return
        held = HELD in effect.after.flags
        hooks = self._hooks(child)
        if hooks is None or (told is None and not held):
            return
        if told is None:
            told = self._told[child] = _Told(effect.incarnation)
        told.wanted = held
        if told.wanted != told.paused and not told.at_work:
            told.at_work = True
            told.quiet = anyio.Event()
            self._tasks.start_soon(self._tell, child, told, hooks, name=f"holds of {child}")

    async def settled(self, path: str, timeout: float) -> None:
        """Wait until every actor at or below ``path`` has been told, for at most so many seconds."""
        below = f"{path}/"
        with anyio.move_on_after(timeout):
            for child, told in list(self._told.items()):
                if not path or child == path or child.startswith(below):
                    await told.quiet.wait()

    def _hooks(self, child: str) -> ActorHooks | None:
        node = self._core.status(child)
        hooks: ActorHooks | None = None if node is None else getattr(node.spec.start, "hooks", None)
        return hooks if hooks is not None and (hooks.pause or hooks.resume) else None

    async def _tell(self, child: str, told: _Told, hooks: ActorHooks) -> None:
        try:
            with told.scope:
                while told.wanted != told.paused:
                    wanted = told.wanted
                    name, hook = ("pause", hooks.pause) if wanted else ("resume", hooks.resume)
                    if hook is not None:
                        await self._try(child, name, hook)
                    told.paused = wanted
        finally:
            told.at_work = False
            told.quiet.set()

    async def _try(self, child: str, name: str, hook: ActorHook) -> None:
        for attempt in range(TRIES):
            try:
                await bounded(
                    self._tasks, lambda: self._call(child, hook), HOOK_SECONDS, f"{name} of {child}"
                )
            except Exception as error:  # noqa: BLE001 - a user's hook may raise anything
                said = f"{type(error).__name__}: {error}"[:500]
                log.warning(
                    "actor.hook.failed", child=child, hook=name, attempt=attempt + 1, of=TRIES, why=said
                )
                if attempt + 1 == TRIES:
                    self._reporter.actor_hook_failed(child, name, said)
                else:
                    await anyio.sleep(PAUSE_SECONDS * 2**attempt)
            else:
                log.info("actor.told", child=child, hook=name)
                return
