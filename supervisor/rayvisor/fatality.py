"""``rv.fatal``: errors after which the process must end, so that its work is done again elsewhere.

Ray knows two ends of an actor: an intentional exit, after which nothing is retried, and a crash, after which
the actor is restarted and its tasks run again. An error is neither: the actor lives on, and a retried task
goes to the same broken actor, forever. So a *fatal application error* needs a crash, in an orderly way.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from rayvisor._backends.process.crash import arm, end_children, end_process
from rayvisor._backends.process.last_words import Folder
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.last_words import LastWords, Store
from rayvisor._core.tasks.matching import find, matcher
from rayvisor._log import get_logger
from rayvisor._validation import seconds, whole
from rayvisor.errors import SpecError

__all__ = ["LastWords", "fatal", "last_words"]

F = TypeVar("F", bound=Callable[..., Any])
log = get_logger("rayvisor.fatal")

MOST_EXIT_CODE = 255
"""A parent process gets one byte."""
_MOST_TRACEBACK = 16_000


def last_words(name: str = "") -> tuple[LastWords, ...]:
    """Return the last words of processes that ``rv.fatal`` ended, oldest first.

    In a process of a Ray cluster these are the processes of the same job, on any node; elsewhere those with
    the same parent. The next incarnation can read why its predecessor ended, and the driver how many crashes
    a job has had.

    Parameters
    ----------
    name
        Only those that were guarded under this name; empty: all.
    """
    return tuple(store().read(name))


class fatal:  # noqa: N801 - used as a decorator and in `with`, as contextlib.suppress is
    """Crash this process when one of these errors is raised, anywhere in the chain of causes.

    It is a decorator for functions, methods, coroutine functions, generators and asynchronous generators; for
    a class, whose ``__call__`` and public methods it guards (such as a UDF of Ray Data); and a context
    manager, ``with rv.fatal(...):``. Other errors pass unchanged.

    Before ``os._exit``, which skips everything that Python does at exit, it leaves last words (see
    [`last_words`][rayvisor.last_words]), kills the processes below this one (an engine's core and workers
    would live on as orphans), and flushes logs. No ``except`` and no continue-on-error switch outside of the
    guarded code sees the error.

    Use it in an actor with ``max_restarts`` and ``max_task_retries`` other than 0, as Ray Data's have: Ray
    then restarts the actor and runs the task again. Don't guard an ``__init__``: Ray would restart it
    forever.

    Parameters
    ----------
    errors
        Types, or dotted names (``"vllm.v1.engine.exceptions.EngineDeadError"``), which need no import.
        Subclasses count.
    name
        Name under which the last words are left, and crashes are counted. Default: the name of the decorated
        object, ``"fatal"`` for a context manager.
    limit
        How many crashes of this name a job may have. When as many are on record the error is raised
        unchanged, with a note: an application error again, which Ray does not retry. None: no such limit.
    exit_code
        Exit code of the process; not 0, which Ray would take for an intended exit.
    timeout
        Seconds that the whole ending may take.

    Raises
    ------
    SpecError
        No error is given, or a value cannot work.

    Examples
    --------
    ::

        @rv.fatal("vllm.v1.engine.exceptions.EngineDeadError")
        class Generate:
            def __init__(self) -> None:
                self.engine = start_engine()

            async def __call__(self, batch): ...

        dataset.map_batches(Generate, concurrency=2)
    """

    def __init__(
        self,
        *errors: type[BaseException] | str,
        name: str = "",
        limit: int | None = 16,
        exit_code: int = 1,
        timeout: float = 10.0,
    ) -> None:
        self._matches = matcher(errors)
        if limit is not None:
            whole("limit", limit)
        whole("exit_code", exit_code)
        if exit_code > MOST_EXIT_CODE:
            raise SpecError("exit_code", exit_code, f"must be {MOST_EXIT_CODE} or less")
        seconds("timeout", timeout, exclusive=True, below=math.inf)
        self._errors = errors
        self._name = name
        self._limit = limit
        self._exit_code = exit_code
        self._timeout = timeout

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self._errors, self._name, self._limit, self._exit_code, self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._judge(error, self._name or "fatal")

    def __call__(self, target: F) -> F:
        """Guard a function or a class."""
        kind: Any = target
        name = self._name or getattr(target, "__qualname__", type(target).__name__).rpartition(".")[2]
        if isinstance(kind, type):
            self._guard_class(kind, name)
            return target
        if not callable(target):
            raise SpecError("target", target, "must be a function or a class")
        guarded: Any = self._guard(target, name)
        return guarded  # type: ignore[no-any-return]

    def _guard_class(self, cls: type, name: str) -> None:
        inherited: dict[str, Any] = {}
        for base in reversed(cls.__mro__[:-1]):
            inherited |= vars(base)
        methods = {
            attribute: value
            for attribute, value in inherited.items()
            if inspect.isfunction(value) and (attribute == "__call__" or not attribute.startswith("_"))
        }
        if not methods:
            raise SpecError("target", cls, "has neither __call__ nor a public method to guard")
        for attribute, method in methods.items():
            setattr(cls, attribute, self._guard(method, name))

    def _guard(self, function: Any, name: str) -> Any:
        guard = _made_again(self._errors, name, self._limit, self._exit_code, self._timeout)
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def guarded(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                with guard:
                    async for item in function(*args, **kwargs):
                        yield item

        elif inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                with guard:
                    return (yield from function(*args, **kwargs))

        elif inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded(*args: Any, **kwargs: Any) -> Any:
                with guard:
                    return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                with guard:
                    return function(*args, **kwargs)

        return guarded

    def _judge(self, error: BaseException, name: str) -> None:
        """End the process if it is one of the given errors; else do nothing."""
        # Ctrl-C, sys.exit() and a cancelled task are not errors, whatever their context is.
        if not isinstance(error, Exception | BaseExceptionGroup) or find(error, self._matches) is None:
            return
        timer = arm(self._exit_code, self._timeout)
        keeper: Any = None
        crashes: list[LastWords] = []
        try:
            keeper = store()
            crashes = keeper.read(name)
        except Exception as failure:  # noqa: BLE001 - ending the process comes first, counted or not
            log.warning("fatal.uncounted", name=name, error=f"{type(failure).__name__}: {failure}"[:500])
        if self._limit is not None and len(crashes) >= self._limit:
            said = f"{name} has ended {len(crashes)} processes, limit={self._limit}: no further one"
            timer.cancel()
            error.add_note(f"rayvisor.fatal: {said}")
            log.error("fatal.limit", name=name, crashes=len(crashes), limit=self._limit)
            return
        text = "".join(traceback.format_exception(error))
        words = LastWords(
            name=name,
            at=time.time(),
            pid=os.getpid(),
            causes=plain_causes(error),
            traceback=text[-_MOST_TRACEBACK:],
            exit_code=self._exit_code,
            **dict(zip(("actor_id", "node_id"), keeper.where() if keeper else ("", ""), strict=True)),
        )
        end_process(
            self._exit_code,
            (
                lambda: sys.stderr.write(
                    f"{text}rayvisor: {name} ends its process, crash {len(crashes) + 1}, pid {words.pid}\n"
                ),
                lambda: keeper and keeper.put(words),
                lambda: _tell_children(end_children(self._timeout / 2)),
            ),
        )


def _made_again(errors: Any, name: str, limit: int | None, exit_code: int, timeout: float) -> fatal:
    return fatal(*errors, name=name, limit=limit, exit_code=exit_code, timeout=timeout)


def _tell_children(killed: Any) -> None:
    if killed:
        names = ", ".join(f"{process.name} ({process.pid})" for process in killed)
        sys.stderr.write(f"rayvisor: killed {names}\n")


def store() -> Store:
    """Return the store of this process: the cluster's if the process is part of one."""
    if "ray" in sys.modules:
        from rayvisor._backends.ray.last_words import connected

        found = connected()
        if found is not None:
            return found
    return Folder()
