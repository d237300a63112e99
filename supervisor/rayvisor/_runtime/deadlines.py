"""Timeouts that hold whatever is awaited, and faults that stay with the code that raised them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from rayvisor._core.protocol.user_code import concerns_program
from rayvisor.timeouts import DEFAULT_TIMEOUTS

__all__ = ["UserCodeError", "bounded", "must_pass", "outlast"]

T = TypeVar("T")


class UserCodeError(Exception):
    """User code raised what is no ``Exception``, or a cancellation that nothing requested: its cause."""

    def __init__(self, error: BaseException) -> None:
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        what = "a cancellation that nothing requested" if cancelled else "an exception that is no Exception"
        super().__init__(f"the call raised {what}")
        self.__cause__ = error


def must_pass(error: BaseException) -> bool:
    """Whether an exception that came out of user code is no fault of that code, and must be raised further.

    It is not if it is meant for the program, or if it is the cancellation of a scope around the caller. A
    cancellation that no scope has requested is a fault of the code: raised further, it would end the group of
    the task, and with it the tree.
    """
    if isinstance(error, anyio.get_cancelled_exc_class()):
        return anyio.current_effective_deadline() == -math.inf
    return concerns_program(error)


async def bounded(
    tasks: TaskGroup,
    call: Callable[[], Awaitable[T]],
    seconds: float,
    name: str,
    *,
    unwind: float = DEFAULT_TIMEOUTS.runtime.unwind,
) -> T:
    """Await a call, giving up after ``seconds`` even if it ignores cancellation.

    Whatever the call raises is raised here as an ``Exception``; only what must pass through user code (see
    `must_pass`) does not come here.

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
    UserCodeError
        It raised what is no ``Exception``, which is the cause.
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
        except BaseException as error:
            if must_pass(error):
                raise
            if not (scope.cancel_called and isinstance(error, anyio.get_cancelled_exc_class())):
                errors.append(UserCodeError(error))
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
