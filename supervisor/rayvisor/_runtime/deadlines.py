"""Timeouts that hold whatever is awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from rayvisor.timeouts import DEFAULT_TIMEOUTS

__all__ = ["bounded", "outlast"]

T = TypeVar("T")


async def bounded(
    tasks: TaskGroup,
    call: Callable[[], Awaitable[T]],
    seconds: float,
    name: str,
    *,
    unwind: float = DEFAULT_TIMEOUTS.runtime.unwind,
) -> T:
    """Await a call, giving up after ``seconds`` even if it ignores cancellation.

    Parameters
    ----------
    tasks
        Owner of the call's task: at its end it waits for a task that still runs.
    call
        Returns the awaitable.
    seconds
        The timeout; ``math.inf`` for none.
    name
        Name of the task.
    unwind
        Seconds that a cancelled call may take to clean up before it is abandoned.

    Raises
    ------
    TimeoutError
        It was not done in that time.
    """
    over = anyio.Event()
    results: list[T] = []
    errors: list[Exception] = []
    scope = anyio.CancelScope()

    async def run() -> None:
        try:
            with scope:
                results.append(await call())
        except Exception as error:  # noqa: BLE001 - raised below, in the task that waits
            errors.append(error)
        finally:
            over.set()

    tasks.start_soon(run, name=name)
    try:
        with anyio.move_on_after(seconds):
            await over.wait()
    finally:
        scope.cancel()
    if not over.is_set():
        with anyio.move_on_after(unwind):
            await over.wait()
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"{name} was not done within {seconds:g} s")
    return results[0]


async def outlast(event: anyio.Event, cancelled: Callable[[], object] = lambda: None) -> BaseException | None:
    """Wait for an event, even if the waiting task is cancelled.

    Parameters
    ----------
    event
        The caller makes sure that it is set.
    cancelled
        Called at each cancellation.

    Returns
    -------
    BaseException | None
        The last cancellation that came meanwhile, to be raised when everything is done.
    """
    pending: BaseException | None = None
    # Shielded from scopes around it; a task's own cancel() reaches it all the same, hence the loop.
    with anyio.CancelScope(shield=True):
        while not event.is_set():
            try:
                await event.wait()
            except anyio.get_cancelled_exc_class() as error:
                pending = error
                cancelled()
    return pending
