"""``rv.fatal``: an error after which the process has to go, and its work is to be done again elsewhere.

Ray knows two ends of an actor: one that it meant, after which nothing is retried, and a crash, after which
the actor is restarted and its tasks run again. An error is neither: the actor lives on, and a retried task
goes to the same broken actor, for ever. So what a *fatal application error* asks for is a crash, in order.
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

_MOST_TRACEBACK = 16_000


def last_words(name: str = "") -> tuple[LastWords, ...]:
    """What processes that ``rv.fatal`` ended have left behind, oldest first.

    In a process of a Ray cluster these are those of the same job, on whatever node; elsewhere those of
    processes with the same parent. The next incarnation reads there why its predecessor ended, and the
    driver which crashes a job has cost.

    Parameters
    ----------
    name
        Only of what was guarded under this name; empty: all.
    """
    return tuple(store().read(name))


class fatal:  # noqa: N801 - used as a decorator and in `with`, as contextlib.suppress is
    """End this process as a crash when one of these errors comes up, anywhere in the chain of causes.

    A decorator for functions, methods, coroutine functions, generators and asynchronous generators; for a
    class, whose ``__call__`` and public methods it guards (a class as Ray Data's UDF); and a context
    manager, ``with rv.fatal(...):``. Other errors pass as they are.

    Before ``os._exit``, which runs nothing of what Python runs at exit, it leaves last words (see
    [`last_words`][rayvisor.last_words]), kills the processes below this one (an engine's core and
    workers would live on as orphans), and flushes logs. No ``except`` and no continue-on-error switch
    outside of what is guarded sees the error.

    Where it stands matters: in an actor with ``max_restarts`` and ``max_task_retries`` other than 0, as Ray
    Data's have, Ray restarts the actor and runs the task again. Don't guard an ``__init__``: Ray would
    restart it without end.

    Parameters
    ----------
    errors
        Types, or dotted names (``"vllm.v1.engine.exceptions.EngineDeadError"``), so that nothing has to be
        imported for it. Subclasses count.
    name
        Under which the last words are left, and crashes are counted. Default: the name of what is
        decorated, ``"fatal"`` for a context manager.
    limit
        How many crashes of this name a job may have. When as many are on record the error is raised as it
        is, with a note: an application error again, which Ray does not retry. None: no such bound.
    exit_code
        What the process ends with; not 0, which Ray would take for an intended exit.
    timeout
        Seconds that all of it may take.

    Raises
    ------
    SpecError
        No error is named, or a value cannot work.

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
        if exit_code > 255:  # noqa: PLR2004 - a byte is all that a parent gets
            raise SpecError("exit_code", exit_code, "must be 255 or less")
        seconds("timeout", timeout, exclusive=True, below=math.inf)
        self._errors = errors
        self._name = name
        self._limit = limit
        self._exit_code = exit_code
        self._timeout = timeout

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._errors, self._name, self._limit, self._exit_code, self._timeout)

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
        guard = _again(self._errors, name, self._limit, self._exit_code, self._timeout)
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
        """End the process if it is one of the named errors; else do nothing."""
        # Ctrl-C, sys.exit() and a cancelled task are not errors, whatever they came in the wake of.
        if not isinstance(error, Exception | BaseExceptionGroup) or find(error, self._matches) is None:
            return
        timer = arm(self._exit_code, self._timeout)
        keeper: Any = None
        crashes: list[LastWords] = []
        try:
            keeper = store()
            crashes = keeper.read(name)
        except Exception as failure:  # noqa: BLE001 - the end comes first, though uncounted
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


def _again(errors: Any, name: str, limit: int | None, exit_code: int, timeout: float) -> fatal:
    return fatal(*errors, name=name, limit=limit, exit_code=exit_code, timeout=timeout)


def _tell_children(killed: Any) -> None:
    if killed:
        names = ", ".join(f"{process.name} ({process.pid})" for process in killed)
        sys.stderr.write(f"rayvisor: killed {names}\n")


def store() -> Store:
    """The store of this process: the cluster's if it is part of one."""
    if "ray" in sys.modules:
        from rayvisor._backends.ray.last_words import connected

        found = connected()
        if found is not None:
            return found
    return Folder()
