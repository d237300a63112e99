"""Children that are supervisors whose spec a function returns at each of their starts."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import anyio

from rayvisor._core.protocol.causes import plain_causes, traceback_text
from rayvisor._runtime.children.protocol import StartIgnored, StartRefusedError, with_predecessor
from rayvisor._runtime.deadlines import must_pass
from rayvisor.errors import SpecError
from rayvisor.faults import Cause, Termination
from rayvisor.specs import IgnoreStart, SupervisorSpec

if TYPE_CHECKING:
    from rayvisor.faults import Exit
    from rayvisor.specs import ChildSpec, Shutdown, SupervisorStart

__all__ = ["SubtreeBackend"]


class SubtreeBackend:
    """Calls the functions that return the specs of supervisors.

    Parameters
    ----------
    prepare
        Opens the backends that the children of a spec need.
    """

    def __init__(self, prepare: Callable[[SupervisorSpec], Awaitable[None]]) -> None:
        self._prepare = prepare

    async def open(self) -> None:
        """Do nothing: there is nothing to prepare."""

    def create_incarnation(
        self, child: str, incarnation: int, spec: ChildSpec, predecessor: Exit | None
    ) -> SubtreeIncarnation:
        """Create an incarnation; nothing is started by it."""
        del child, incarnation
        return SubtreeIncarnation(self._prepare, spec, predecessor)

    async def release(self, child: str) -> None:
        """Do nothing: nothing outlives an incarnation."""

    async def close(self) -> None:
        """Do nothing: nothing is left."""


class SubtreeIncarnation:
    """One start of a supervisor; from then on the core supervises its children."""

    def __init__(
        self,
        prepare: Callable[[SupervisorSpec], Awaitable[None]],
        spec: ChildSpec,
        predecessor: Exit | None,
    ) -> None:
        self._prepare = prepare
        self._start = cast("SupervisorStart", spec.start)
        self._timeout = spec.start_timeout
        self._predecessor = predecessor

    async def start(self) -> SupervisorSpec:
        """Call the function, and open the backends of the children in its spec."""
        try:
            with anyio.fail_after(self._timeout):
                spec = await self._make()
                await self._prepare(spec)
        except IgnoreStart:
            raise StartIgnored from None
        except TimeoutError as error:
            why = str(error) or f"no spec was returned within start_timeout={self._timeout:g} s"
            cause = Cause("StartTimeout", why)
            raise StartRefusedError(Termination(causes=(cause,), overdue=True, phase="starting")) from None
        except BaseException as error:
            if must_pass(error):
                raise
            causes, text = plain_causes(error), traceback_text(error)
            raise StartRefusedError(Termination(causes=causes, traceback=text, phase="starting")) from None
        return spec

    async def _make(self) -> SupervisorSpec:
        start = self._start
        keywords = with_predecessor(start.function, self._predecessor)
        made: Any = start.function(*start.args, **keywords)
        spec = await made if inspect.isawaitable(made) else made
        if not isinstance(spec, SupervisorSpec):
            raise SpecError("spec", spec, "was returned by the function; it must be a SupervisorSpec")
        return spec

    async def ended(self) -> Termination:
        """Wait forever: a supervisor ends with its children, and the core decides when."""
        await anyio.sleep_forever()
        raise AssertionError

    async def stop(self, shutdown: Shutdown, reason: str) -> bool:
        """Return True: nothing is left of a call that was cancelled."""
        del shutdown, reason
        return True

    async def clean(self) -> bool:
        """Return True: nothing is left of it."""
        return True
