"""Converts the JSON of a scenario to rayvisor's specs, and exits and errors to OTP's terms."""

from __future__ import annotations

from typing import Any, NamedTuple

from rayvisor.errors import SpecError
from rayvisor.faults import KILLED, NORMAL, SHUTDOWN, Exit, ExitKind
from rayvisor.specs import ChildSpec, Shutdown, Strategy, SupervisorSpec

__all__ = [
    "BadSpecError",
    "StartFunction",
    "child_spec",
    "exit_of",
    "spec_lines",
    "supervisor_spec",
    "term_of",
]


class BadSpecError(Exception):
    """A spec that OTP rejects.

    Parameters
    ----------
    place
        ``supervisor_data`` for a flag, ``start_spec`` for a child.
    term
        OTP's error term.
    """

    def __init__(self, place: str, term: str) -> None:
        self.term = term
        self.whole = f"{{{place},{term}}}"
        super().__init__(self.whole)


class StartFunction(NamedTuple):
    """The part of a scenario's child beyond its spec: its behaviour or its children."""

    json: dict[str, Any]

    @property
    def kind(self) -> str:
        """``"supervisor"`` if OTP would call ``init`` at each start."""
        return str(self.json.get("type", "supervisor" if "children" in self.json else "worker"))


def supervisor_spec(flags: dict[str, Any], children: list[dict[str, Any]]) -> SupervisorSpec:
    """Make a supervisor's spec, validated in OTP's order: the flags, then each child."""
    template_only = flags.get("strategy") == Strategy.SIMPLE_ONE_FOR_ONE.value
    try:
        base = SupervisorSpec(**(flags | {"strategy": "one_for_one"} if template_only else flags))
    except SpecError as error:
        raise BadSpecError("supervisor_data", f"{{{error.term},{error.value}}}") from None
    specs: list[ChildSpec] = []
    try:
        for child in children:
            specs.append(child_spec(child, base))
            SupervisorSpec(**(flags | {"strategy": "one_for_one", "children": specs}))
        return SupervisorSpec(**(flags | {"children": specs}))
    except SpecError as error:
        raise BadSpecError("start_spec", f"{{{error.term},{error.value}}}") from None


def child_spec(json: dict[str, Any], supervisor: SupervisorSpec) -> ChildSpec:
    """Make a child's spec for a supervisor with these flags."""
    shutdown: Any = json.get("shutdown")
    if isinstance(shutdown, str):
        shutdown = {"brutal_kill": Shutdown.BRUTAL_KILL, "infinity": Shutdown.INFINITY}.get(
            shutdown, shutdown
        )
    elif shutdown is not None:
        shutdown /= 1000
    start = StartFunction(json)
    try:
        spec = ChildSpec(
            id=json["id"],
            start=start,
            restart=json.get("restart", "permanent"),
            significant=json.get("significant", False),
        )
        supervisor.check(spec)
        if start.kind not in {"worker", "supervisor"}:
            raise BadSpecError("start_spec", f"{{invalid_child_type,{json['type']}}}")
        return ChildSpec(
            id=spec.id,
            start=start,
            restart=spec.restart,
            significant=spec.significant,
            shutdown=shutdown,
        )
    except SpecError as error:
        if error.term == "bad_combination":
            never = supervisor.auto_shutdown.value == "never"
            why = "{auto_shutdown,never}" if never else "{restart,permanent}"
            raise BadSpecError("start_spec", f"{{bad_combination,[{why},{{significant,true}}]}}") from None
        value = json["shutdown"] if error.term == "invalid_shutdown" else error.value
        raise BadSpecError("start_spec", f"{{{error.term},{value}}}") from None


def spec_lines(spec: ChildSpec) -> dict[str, str]:
    """Return the answer of get_childspec as text."""
    seconds = spec.ending.seconds
    return {
        "id": spec.id,
        "restart": spec.restart.value,
        "shutdown": str(spec.ending)
        if seconds is None or spec.ending.endless
        else str(round(seconds * 1000)),
        "type": "supervisor" if spec.supervisor else "worker",
        "significant": str(spec.significant).lower(),
    }


_EXITS = {
    "normal": NORMAL,
    "shutdown": SHUTDOWN,
    "killed": KILLED,
    "shutdown_x": Exit(ExitKind.SHUTDOWN, "x"),
}


def exit_of(reason: str) -> Exit:
    """Return the exit for a reason in the notation of scenarios."""
    return _EXITS.get(reason) or Exit(ExitKind.FAULT, reason)


def term_of(exit: Exit) -> str:
    """Return OTP's term for an exit."""
    if exit.below is not None:
        return f"{{shutdown,{{failed_to_start_child,{exit.child},{term_of(exit.below)}}}}}"
    if exit.kind is ExitKind.FAULT:
        return exit.word
    return f"{{{exit.kind},{exit.word}}}" if exit.word else exit.kind.value
