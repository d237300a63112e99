"""Gates: an engine that is up serves only once the user's hook has brought it up to date."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.supervision import messages as m
from rayvisor._log import get_logger
from rayvisor._runtime.deadlines import bounded
from rayvisor.faults import Cause, Termination
from rayvisor.specs import Gate

if TYPE_CHECKING:
    from rayvisor._core.supervision.core import Core
    from rayvisor._runtime.children.engines import EngineBackend
    from rayvisor._runtime.incarnations import IncarnationManager

__all__ = ["Gates"]

log = get_logger("rayvisor.gates")

TRIES = 3
PAUSE_SECONDS = 0.5
"""Between two tries; twice as long each time."""


class Gates:
    """Follows the effects of the core: runs the hook of each child that is stale.

    Parameters
    ----------
    tasks
        Owner of the hooks' tasks.
    core
        Where the specs are.
    engines
        What the hooks talk to.
    lives
        Ends an incarnation whose gate does not open.
    post
        Feeds an event to the core.
    weights
        Told child, incarnation and version when a hook says which weights its engine has now.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        core: Core,
        engines: EngineBackend,
        lives: IncarnationManager,
        post: Callable[[m.Event], None],
        weights: Callable[[str, int, int], None],
    ) -> None:
        self._tasks = tasks
        self._core = core
        self._engines = engines
        self._lives = lives
        self._post = post
        self._weights = weights
        self._under_way: dict[str, anyio.CancelScope] = {}

    def follow(self, effect: m.Effect) -> None:
        """Take note of an effect."""
        if not isinstance(effect, m.Changed) or effect.chart != "engine":
            return
        child, after = effect.child, effect.after
        if after.state not in {"ALIVE", "PAUSED"} or "STALE" not in after.flags:
            self._call_off(child)
        elif effect.event == "stale" or child not in self._under_way:
            self._call_off(child)  # what it was brought up to is out of date again
            node = self._core.status(child)
            if node is not None and node.spec.gate is not None:
                scope = self._under_way[child] = anyio.CancelScope()
                timeout = node.spec.start_timeout
                name = f"gate of {child}#{effect.incarnation}"
                self._tasks.start_soon(
                    self._pass,
                    scope,
                    node.spec.gate,
                    (child, effect.incarnation, node.stales),
                    timeout,
                    name=name,
                )

    def _call_off(self, child: str) -> None:
        scope = self._under_way.pop(child, None)
        if scope is not None:
            scope.cancel()

    async def _pass(
        self,
        scope: anyio.CancelScope,
        hook: Callable[[Any], Awaitable[object]],
        who: tuple[str, int, int],
        timeout: float,
    ) -> None:
        child, incarnation, stales = who
        with scope:
            gate = Gate(child, incarnation, self._engines.ask, self._engines.predecessor(child))
            name = f"the gate of {child}"
            for attempt in range(TRIES):
                try:
                    version = await bounded(self._tasks, lambda: hook(gate), timeout, name)
                except Exception as error:  # noqa: BLE001 - a user's hook may raise anything
                    log.warning(
                        "gate.closed",
                        child=child,
                        incarnation=incarnation,
                        attempt=attempt + 1,
                        of=TRIES,
                        why=f"{type(error).__name__}: {error}",
                    )
                    ending = _ending(error)
                else:
                    log.info("gate.passed", child=child, incarnation=incarnation)
                    if isinstance(version, int) and not isinstance(version, bool):
                        self._weights(child, incarnation, version)  # before its gate is opened
                    self._post(m.Reported(child, incarnation, "synced", stales=stales))
                    return
                if attempt + 1 < TRIES:
                    await anyio.sleep(PAUSE_SECONDS * 2**attempt)
                else:
                    self._lives.condemn(child, incarnation, ending)


def _ending(error: Exception) -> Termination:
    return Termination(
        causes=(
            Cause("GateClosed", f"the gate was tried {TRIES} times"),
            *plain_causes(error),
        ),
        traceback="".join(traceback.format_exception(error)),
        phase="passing its gate",
    )
