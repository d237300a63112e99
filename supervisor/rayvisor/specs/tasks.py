"""The policy of a Ray task (retries, delays, time) and the record of its attempts. Plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayvisor._redaction import masked_repr
from rayvisor._validation import seconds, whole
from rayvisor.errors import SpecError
from rayvisor.faults import Cause
from rayvisor.specs.backoff import Backoff

__all__ = ["TaskAttempt", "TaskPolicy"]

_OURS = {"max_retries", "retry_exceptions", "max_calls", "num_returns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPolicy:
    """How often and how long a Ray task may run, and how it is ended.

    Parameters
    ----------
    max_retries
        How often it is run again after a system failure (its worker, its node or its result is lost) or an
        error in ``retry_exceptions``. ``-1``: no limit; ``0``: never; None: the value the function was
        decorated with, else ``RAY_TASK_MAX_RETRIES`` in the environment, else 3, as in Ray.
    retry_exceptions
        Errors of the function itself that lead to another attempt: False for none, True for all, or a
        sequence of types. Any other error is raised immediately.
    backoff
        The delays between attempts, with limits of its own. None: Ray's own retries, without any delay; lost
        results are then rebuilt by Ray. With a backoff each attempt is a submission of its own.
    timeout
        Seconds that one submission may take, including the wait for a worker (with ``backoff=None`` also all
        of Ray's retries). Then the task is cancelled, and not run again. None: no such limit.
    cancel_grace
        Seconds between the interrupt of a cancelled task and the kill of its worker.
    max_calls
        Calls after which a worker that ran this function is replaced by a fresh one: for functions that leak.
        None: the value the function was decorated with.
    options
        Further options of Ray, for example ``{"num_cpus": 2}``.

    Raises
    ------
    SpecError
        When a value cannot work.

    Examples
    --------
    >>> TaskPolicy(max_retries=2, retry_exceptions=(ConnectionError,), timeout=60.0).max_retries
    2
    """

    max_retries: int | None = None
    retry_exceptions: bool | tuple[type[Exception], ...] = False
    backoff: Backoff | None = None
    timeout: float | None = None
    cancel_grace: float = 5.0
    max_calls: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return masked_repr(self)

    def __post_init__(self) -> None:
        if self.max_retries is not None:
            whole("max_retries", self.max_retries, "retries, or -1 for no end", least=-1)
        if self.max_calls is not None:
            whole("max_calls", self.max_calls, "calls")
        if self.timeout is not None:
            seconds("timeout", self.timeout, below=math.inf)
        seconds("cancel_grace", self.cancel_grace, below=math.inf)
        backoff: object = self.backoff
        if backoff is not None and not isinstance(backoff, Backoff):
            raise SpecError("backoff", backoff, "must be a Backoff, or None for Ray's own retries")
        kinds: Any = self.retry_exceptions
        if not isinstance(kinds, bool):
            kinds = (kinds,) if isinstance(kinds, type) else kinds
            try:
                kinds = tuple(kinds)
            except TypeError:
                kinds = (kinds,)
            if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
                raise SpecError(
                    "retry_exceptions", self.retry_exceptions, "must be True, False or exception types"
                )
            object.__setattr__(self, "retry_exceptions", kinds)
        taken = sorted(_OURS & set(self.options))
        if taken:
            raise SpecError(
                f"options[{taken[0]!r}]",
                self.options[taken[0]],
                "cannot be given in options; use the field of the policy",
            )

    def retries(self, error: BaseException) -> bool:
        """Whether this error of the function itself leads to another attempt."""
        kinds = self.retry_exceptions
        if isinstance(kinds, bool):
            return kinds and isinstance(error, Exception)
        return isinstance(error, kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAttempt:
    """One attempt of a task, from Ray's state API, or from the exception if that has no record of it.

    Attributes
    ----------
    number
        1, 2, ...
    state
        Ray's state: ``"PENDING_NODE_ASSIGNMENT"``, ``"RUNNING"``, ``"FINISHED"``, ``"FAILED"``, ...
    error_type
        Ray's error type: ``"WORKER_DIED"``, ``"TASK_EXECUTION_EXCEPTION"``, ``"TASK_CANCELLED"``, ...; empty:
        none.
    causes
        The errors, outermost first.
    started, ended
        Seconds since the epoch; None if it has not happened, or is not known.
    worker_pid
        Pid of the process that ran it; 0: not known.
    node_id
        Node on which it ran; empty: not known.
    source
        Source of this record: ``"ray"`` or ``"exception"``.
    """

    number: int
    state: str
    error_type: str = ""
    causes: tuple[Cause, ...] = ()
    started: float | None = None
    ended: float | None = None
    worker_pid: int = 0
    node_id: str = ""
    source: str = "exception"
