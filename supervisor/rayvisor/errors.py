"""Every error that rayvisor raises on its own account.

    RayvisorError
    ├── SpecError                 a flag or spec that cannot work; raised before anything starts
    │   └── SpecFileError         the same, in a tree's TOML file
    ├── StartFailedError          the tree could not be brought up
    ├── StrategyError             a restart strategy raised, or its plan cannot be carried out; recorded
    ├── ClusterUnavailableError   no Ray could be started, or attached to
    ├── WorkerPackageError        the workers of the cluster lack rayvisor, or have another version
    ├── RayCallTimeout            Ray did not answer a call in time
    ├── ControlSocketError        the control socket cannot be opened, or does not answer
    ├── UnguardedMainError        a process that an engine starts would start the tree again
    ├── PublishError              events cannot be published at an address
    ├── TaskTimeoutError          a task under a policy took too long, and was ended
    ├── SupervisorGaveUpError     the tree ended because it could not be kept up
    ├── CallError                 a call on a supervisor or a child that could not be carried out
    │   ├── UnknownChildError     no such child                      (OTP: not_found)
    │   ├── AlreadyStartedError   the id is taken by a live child    (OTP: already_started)
    │   ├── AlreadyPresentError   the id is taken by a child at rest (OTP: already_present)
    │   ├── ChildRunningError     the child must be ended first      (OTP: running)
    │   ├── ChildRestartingError  the child is being restarted       (OTP: restarting)
    │   ├── TemplateError         not for a simple_one_for_one       (OTP: simple_one_for_one)
    │   ├── ChildStartError       start_child or restart_child failed
    │   ├── ChildUnavailableError the child has no live incarnation to call, or lost it during the call
    │   ├── EngineCallError       an engine raised in a call, or offers no such call
    │   ├── ChildKindError        the child is of another kind than the call needs
    │   ├── SupervisorBusyError   too many calls are waiting
    │   └── SupervisorStoppedError the supervisor does not run (any more)
    └── RequestError              one request to an engine pool failed (``rayvisor.pool``)

Each error carries its data as attributes and builds its own message; if a fault is behind it, the message
begins with the root cause. All of them can be pickled.
"""

from __future__ import annotations

from typing import Any

from rayvisor._redaction import masked_repr, masked_text
from rayvisor.faults import Cause, Exit, Fault

__all__ = [
    "AlreadyPresentError",
    "AlreadyStartedError",
    "CallError",
    "ChildKindError",
    "ChildRestartingError",
    "ChildRunningError",
    "ChildStartError",
    "ChildUnavailableError",
    "ClusterUnavailableError",
    "ControlSocketError",
    "EngineCallError",
    "PublishError",
    "RayCallTimeout",
    "RayvisorError",
    "SpecError",
    "SpecFileError",
    "StartFailedError",
    "StrategyError",
    "SupervisorBusyError",
    "SupervisorGaveUpError",
    "SupervisorStoppedError",
    "TaskTimeoutError",
    "TemplateError",
    "UnguardedMainError",
    "UnknownChildError",
    "WorkerPackageError",
]

LONGEST_VALUE = 80
"""Characters of a value that a message shows."""
MOST_NAMES = 20
"""Names of children that a message shows."""


class RayvisorError(Exception):
    """Root of all errors that rayvisor raises on its own account."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception would call the class with the message, which is not what these take.
        return (_unpickled, (type(self), self.args), self.__dict__)


def _unpickled(kind: type[RayvisorError], args: tuple[Any, ...]) -> RayvisorError:
    error = kind.__new__(kind)
    error.args = args
    return error


class SpecError(RayvisorError, ValueError):
    """A flag or a spec that cannot work. Raised before anything starts; nothing of the spec is kept.

    The message masks environment variables, and values under names such as ``hf_token`` or ``api_key``; the
    attribute ``value`` has them.

    Parameters
    ----------
    field
        The field as the user wrote it, for example ``"intensity"`` or ``"children[1].shutdown"``.
    value
        The value found there.
    problem
        What is wrong with it, and how to fix it.
    term
        OTP's error term for the same mistake, where it has one, for example ``invalid_intensity``.
    """

    def __init__(self, field: str, value: object, problem: str, *, term: str = "") -> None:
        self.field = field
        self.value = value
        self.problem = problem
        self.term = term
        super().__init__(f"{field}={masked_repr(value, field)}: {masked_text(problem)}")


class SpecFileError(SpecError):
    """A key or a value in a tree's TOML file that cannot work, or a file that cannot be read.

    Parameters
    ----------
    file
        Path of the file.
    field
        The key in it, for example ``"children[0].backoff.maximum"``; empty: the file as a whole.
    value
        The value found there.
    problem
        What is wrong with it, and how to fix it.
    """

    def __init__(self, file: str, field: str, value: object, problem: str) -> None:
        super().__init__(field, value, problem)
        self.file = file
        found = masked_repr(value, field)
        if len(found) > LONGEST_VALUE:
            found = f"{found[:LONGEST_VALUE]}..."
        where = field if value is None else f"{field}={found}"
        self.args = (": ".join(part for part in (file, where, masked_text(problem)) if part),)


class StartFailedError(RayvisorError):
    """The tree could not be brought up: one child's first start failed, the others were ended.

    Parameters
    ----------
    child
        Path of the child whose start failed.
    fault
        Why it failed, root cause innermost; None if the tree was asked to stop during its start.
    """

    def __init__(self, child: str, fault: Fault | None) -> None:
        self.child = child
        self.fault = fault
        cause = str(fault) if fault is not None else "the supervisor was asked to stop"
        super().__init__(f"{cause}; the tree was not started, since {child!r} could not be")


class StrategyError(RayvisorError):
    """A restart strategy raised, or returned a plan that cannot be carried out.

    It is recorded, not raised: the failed child is restarted by itself, as under one_for_one.

    Parameters
    ----------
    strategy
        Name of the strategy.
    child
        Path of the failed child that it planned for.
    problem
        What is wrong with the plan, or what the strategy raised.
    traceback
        Traceback of what it raised, as text; empty if it raised nothing.
    """

    def __init__(self, strategy: str, child: str, problem: str, traceback: str = "") -> None:
        self.strategy = strategy
        self.child = child
        self.problem = problem
        self.traceback = traceback
        super().__init__(f"{strategy}: {problem}; {child!r} is restarted by itself")


class ClusterUnavailableError(RayvisorError):
    """No Ray could be started, or attached to.

    Parameters
    ----------
    address
        Address that was asked for; ``"local"`` is a Ray to be started.
    reason
        Ray's own explanation.
    """

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        what = "no local Ray could be started" if address == "local" else "the cluster cannot be attached to"
        super().__init__(f"{reason}: {what} (address={address!r})")


class WorkerPackageError(RayvisorError):
    """Workers of the cluster lack rayvisor, or have another version of it.

    Parameters
    ----------
    found
        The version found there, or None if it could not be imported.
    wanted
        The driver's version.
    folders
        The driver's package folders, for a checkout.
    detail
        The worker's own explanation.
    """

    def __init__(self, found: str | None, wanted: str, folders: tuple[str, ...], detail: str = "") -> None:
        self.found = found
        self.wanted = wanted
        self.folders = folders
        self.detail = detail
        state = f"have rayvisor {found}" if found is not None else "cannot import rayvisor"
        modules = ", ".join(f'"{folder}"' for folder in folders)
        said = f" ({detail})" if detail else ""
        super().__init__(
            f"the workers of this cluster {state}{said}, the driver has {wanted}. "
            "Give them the driver's by pasting one of these lines:\n"
            f'    runtime_env={{"pip": ["rayvisor=={wanted}"]}}  # released; in ray.init() or on the child\n'
            f'    runtime_env={{"py_modules": [{modules}]}}  # a checkout; in ray.init(), which uploads it'
        )


class RayCallTimeout(RayvisorError, TimeoutError):  # noqa: N818 - named as what happened
    """A call to Ray was not answered in time.

    Parameters
    ----------
    call
        Description of the call.
    timeout
        How long its answer was awaited, in seconds.
    blocked
        Calls that held a thread at that time: if all threads are held, the cause is among them.
    hint
        Why it may have taken so long, if that is known.
    """

    def __init__(
        self, call: str, timeout: float, *, blocked: list[str] | None = None, hint: str = ""
    ) -> None:
        self.call = call
        self.timeout = timeout
        self.blocked = blocked or []
        self.hint = hint
        others = [name for name in self.blocked if name != call]
        tail = f"; also under way: {', '.join(others)}" if others else ""
        because = f": {hint}" if hint else ""
        super().__init__(f"{call} was not answered within {timeout:g} s{because}{tail}")


class ControlSocketError(RayvisorError):
    """The control socket of a tree cannot be opened, or does not answer.

    Parameters
    ----------
    path
        Path of the socket.
    reason
        What is wrong with it, and how to fix it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"control socket {path}: {reason}")


class UnguardedMainError(RayvisorError, RuntimeError):
    """The program starts its tree whenever it is imported, so each process of an engine would start another.

    Engines make their processes as multiprocessing's ``spawn`` does: a new one imports the program first.

    Parameters
    ----------
    program
        The file.

    Examples
    --------
    >>> print(UnguardedMainError("driver.py"))  # doctest: +ELLIPSIS
    driver.py starts the tree as soon as it is imported, ... under `if __name__ == "__main__":`
    """

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(
            f"{program} starts the tree as soon as it is imported, and each process of an engine imports it: "
            'put what starts the tree under `if __name__ == "__main__":`'
        )


class PublishError(RayvisorError):
    """Events cannot be published at the address that was named.

    Parameters
    ----------
    address
        Address at which they were to be published.
    reason
        What is wrong with it, and how to fix it.
    """

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"publish={address!r}: {reason}")


class SupervisorGaveUpError(RayvisorError):
    """The tree ended because it could not be kept up.

    Parameters
    ----------
    supervisor
        Path of the supervisor that gave up (``""`` is the root).
    reason
        Why it gave up: the intensity was exceeded, no restart can cure the fault, ...
    fault
        The fault that led there, or None.
    """

    def __init__(self, supervisor: str, reason: str, fault: Fault | None = None) -> None:
        self.supervisor = supervisor
        self.reason = reason
        self.fault = fault
        name = supervisor or "the root supervisor"
        head = f"{fault}: " if fault is not None else ""
        super().__init__(f"{head}{name} gave up: {reason}")


class TaskTimeoutError(RayvisorError, TimeoutError):
    """A Ray task under a policy took longer than its ``timeout``; it was cancelled and is not run again.

    Parameters
    ----------
    task
        Name of its function.
    timeout
        The limit, in seconds.
    forced
        Whether its worker was killed because the interrupt did not end the task.
    gone
        Whether Ray has confirmed its end.
    """

    def __init__(self, task: str, timeout: float, *, forced: bool, gone: bool = True) -> None:
        self.task = task
        self.timeout = timeout
        self.forced = forced
        self.gone = gone
        how = "its worker was ended by force" if forced else "it was interrupted"
        left = "" if gone else ", but Ray has not confirmed its end"
        super().__init__(f"{task} took longer than timeout={timeout:g} s: {how}{left}")


class CallError(RayvisorError):
    """A call on a supervisor or on one of its children that could not be carried out.

    Parameters
    ----------
    child
        The path or id that the call named.
    """

    term = ""
    """OTP's error term for it; empty if OTP has none."""

    def __init__(self, child: str, message: str) -> None:
        self.child = child
        super().__init__(message)


class UnknownChildError(CallError):
    """No child has this id. Carries the ids that exist."""

    term = "not_found"

    def __init__(self, child: str, known: tuple[str, ...] = ()) -> None:
        self.known = known
        shown = [*known[:MOST_NAMES], *(["..."] if len(known) > MOST_NAMES else [])]
        have = ", ".join(shown) or "none"
        super().__init__(child, f"no child has the id {child!r}; there are: {have}")


class AlreadyStartedError(CallError):
    """The id is taken by a live child."""

    term = "already_started"

    def __init__(self, child: str) -> None:
        super().__init__(child, f"{child!r} is already started; choose another id, or use the one that runs")


class AlreadyPresentError(CallError):
    """The id is taken by a child at rest: restart_child starts it, delete_child frees the id."""

    term = "already_present"

    def __init__(self, child: str) -> None:
        super().__init__(
            child,
            f"{child!r} has a spec but does not run; restart_child starts it, delete_child frees its id",
        )


class ChildRunningError(CallError):
    """The call needs a child that does not run."""

    term = "running"

    def __init__(self, child: str) -> None:
        super().__init__(child, f"{child!r} runs; terminate_child ends it first")


class ChildRestartingError(CallError):
    """The child is being restarted."""

    term = "restarting"

    def __init__(self, child: str) -> None:
        super().__init__(child, f"{child!r} is being restarted; terminate_child calls that off")


class TemplateError(CallError):
    """The call has no meaning under simple_one_for_one."""

    term = "simple_one_for_one"

    def __init__(self, child: str) -> None:
        super().__init__(
            child, f"{child!r} is under simple_one_for_one: its instances are addressed one by one"
        )


class ChildStartError(CallError):
    """start_child or restart_child could not start the child.

    Parameters
    ----------
    child
        Its path.
    fault
        Why it failed; None if no fault is behind it.
    exit
        How the start ended; None if it was cancelled (``terminate_child``, or the supervisor's end).
    """

    term = "start_failed"

    def __init__(self, child: str, fault: Fault | None, exit: Exit | None = None) -> None:
        self.fault = fault
        self.exit = exit
        cause = fault or exit or "its start was cancelled"
        super().__init__(child, f"{cause}; {child!r} was not started")


class ChildUnavailableError(CallError):
    """The child has no live incarnation to call now, or lost it during the call.

    Parameters
    ----------
    child
        Its path.
    state
        State it is in: ``"not up"``, ``"paused"``, ...; or how it was lost.
    cause
        Root cause of the incarnation's end if it was lost during the call; None otherwise.
    """

    def __init__(self, child: str, state: str, *, cause: Cause | None = None) -> None:
        self.state = state
        self.cause = cause
        super().__init__(
            child,
            f"{child!r} is {state} and cannot be called now"
            if cause is None
            else f"{cause}: {child!r} was {state}",
        )


class EngineCallError(CallError):
    """An engine raised in a call beside its requests, did not answer in time, or offers no such call.

    Parameters
    ----------
    child
        Path of the engine.
    method
        Name of the call.
    causes
        What the engine raised, outermost first; the last one is the root cause.
    traceback
        Traceback in the engine's process, as text; empty if there is none.
    """

    def __init__(self, child: str, method: str, causes: tuple[Cause, ...], traceback: str = "") -> None:
        self.method = method
        self.causes = causes
        self.traceback = traceback
        head = f"{causes[-1]}: " if causes else ""
        super().__init__(child, f"{head}{child!r} failed to carry out {method}()")


class ChildKindError(CallError):
    """The child is of another kind than the call needs.

    Parameters
    ----------
    child
        Its path.
    kind
        Its kind: ``"engine"``, ``"coroutine"``, ``"supervisor"``, ...
    wanted
        The kind that the call needs.
    way_out
        What to use instead; may be empty.
    """

    def __init__(self, child: str, kind: str, wanted: str, way_out: str = "") -> None:
        self.kind = str(kind)
        self.wanted = wanted
        noun = "adopted actor" if kind == "adopt" else self.kind.replace("_", " ")
        tail = f"; {way_out}" if way_out else ""
        super().__init__(child, f"{child!r} is {_with_article(noun)}, not {_with_article(wanted)}{tail}")


class SupervisorBusyError(CallError):
    """Too many calls are waiting for the supervisor already."""

    def __init__(self, child: str, limit: int) -> None:
        self.limit = limit
        super().__init__(
            child, f"{limit} calls wait for the supervisor already; try again when some are answered"
        )


class SupervisorStoppedError(CallError):
    """The supervisor does not run (any more).

    Parameters
    ----------
    child
        Path of the supervisor; empty for the whole tree.
    reason
        Why the tree ended, if it did not end as requested: the root cause first.
    """

    def __init__(self, child: str, reason: str = "") -> None:
        self.reason = reason
        way_out = (
            f"{child!r} does not run now" if child else "does not run; use it inside its `async with` block"
        )
        message = f"{reason}; the tree does not run any more" if reason else f"the supervisor {way_out}"
        super().__init__(child, message)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"
