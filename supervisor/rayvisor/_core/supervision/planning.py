"""Asking the strategy. Its plan is checked before any step is carried out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from rayvisor._core.protocol.causes import plain_causes, traceback_text
from rayvisor._core.protocol.user_code import concerns_program
from rayvisor.errors import RayvisorError, StrategyError
from rayvisor.strategies import Escalate, Failure, InPlace, Sibling, Siblings, Start, Step, Stop, WaitServing

if TYPE_CHECKING:
    from rayvisor._core.supervision.nodes import Child, Supervisor
    from rayvisor.faults import Exit

__all__ = ["MAX_ASKS", "SiblingView", "alone", "ask", "by_itself", "restarts"]


class SiblingView(Siblings):
    """The children of a supervisor as its strategy sees them, read when asked."""

    __slots__ = ("_children",)

    def __init__(self, children: Mapping[str, Child]) -> None:
        self._children = children

    def __getitem__(self, id: str) -> Sibling:
        child = self._children[id]
        configuration = child.configuration
        spec = child.spec
        return Sibling(
            id, configuration.state, configuration.leaf, child.incarnation, spec.restart, spec.significant
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._children)

    def __len__(self) -> int:
        return len(self._children)


MAX_ASKS = 10
"""How often in a row a strategy is asked over steps that fail, while none of its plans starts a child."""

_STEPS = (Stop, Start, WaitServing, InPlace, Escalate)


def by_itself(child: Child) -> tuple[Step, ...]:
    """Return the plan that restarts a child without its siblings: the default action."""
    return (Start((child.spec.id,)),)


def alone(steps: tuple[Step, ...], child: Child) -> bool:
    """Whether a plan concerns only the failed child: then it waits for no other one."""
    if len(steps) != 1:
        return False
    step = steps[0]
    return type(step) is Start and step.ids == (child.spec.id,)


def restarts(steps: tuple[Step, ...]) -> bool:
    """Whether a plan starts anything: then it counts."""
    return any(type(step) is Start and step.ids for step in steps)


def ask(
    supervisor: Supervisor,
    child: Child,
    exit: Exit,
    step: Step | None,
    now: float,
) -> tuple[Step, ...] | StrategyError:
    """Ask the strategy about a failed child; return an error in place of an unusable plan."""
    spec = supervisor.spec
    failure = Failure(child.spec.id, exit, step, supervisor.window.count(now, spec.period), spec.intensity)
    if step is None:
        supervisor.asks = 0
    supervisor.asks += 1
    if supervisor.asks > MAX_ASKS:
        problem = f"was asked {MAX_ASKS} times over steps that fail, and nothing came of it (last: {step})"
        return StrategyError(spec.strategy_name, child.path, problem)
    try:
        return _checked(spec.planner.plan(failure, SiblingView(supervisor.children)), supervisor, child)
    except BaseException as error:
        if concerns_program(error):
            raise
        outermost = plain_causes(error)[0]
        if isinstance(error, RayvisorError):
            return StrategyError(spec.strategy_name, child.path, outermost.message)
        return StrategyError(spec.strategy_name, child.path, f"raised {outermost}", traceback_text(error))


class _UnusableError(RayvisorError):
    """A plan cannot be used; the text says why."""


def _checked(plan: Iterable[Step], supervisor: Supervisor, child: Child) -> tuple[Step, ...]:
    """Check a plan: it is finite, names existing children, and starts and stops each of them at most once."""
    children = supervisor.children
    limit = 4 * len(children) + 4
    try:
        steps = plan if isinstance(plan, tuple) else tuple(islice(plan, limit + 1))
    except TypeError:
        raise _UnusableError(f"plan() must return steps, not {plan!r}") from None
    if alone(steps, child):
        return steps
    if len(steps) > limit:
        raise _UnusableError(f"the plan has no end: more than {limit} steps for {len(children)} children")
    seen: dict[type, set[str]] = {Stop: set(), Start: set(), WaitServing: set()}
    for step in steps:
        if not isinstance(step, _STEPS):
            raise _UnusableError(f"plan() gave {step!r}; steps are made by stop, start, wait_serving, ...")
        if isinstance(step, (InPlace, Escalate)):
            continue
        ids = (step.id,) if isinstance(step, WaitServing) else step.ids
        for each in ids:
            if each not in children:
                known = ", ".join(islice(children, 20))
                raise _UnusableError(f"{step.__class__.__name__} names {each!r}; there are: {known}")
        before = seen[type(step)]
        again = before.intersection(ids)
        if again or len(set(ids)) < len(ids):
            twice = sorted(again) or sorted(each for each in ids if ids.count(each) > 1)
            raise _UnusableError(f"{step.__class__.__name__} names {twice[0]!r} twice in one plan")
        before.update(ids)
    return steps
