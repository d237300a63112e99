"""Converts a spec into a tree that ``statecharts`` draws."""

from __future__ import annotations

from rayvisor.specs import ChildSpec, SupervisorSpec
from statecharts import Tree

__all__ = ["tree_of"]


def tree_of(spec: SupervisorSpec, name: str) -> Tree:
    """Return the tree of a supervisor, with its flags as facts and its children in start order.

    Parameters
    ----------
    spec
        The supervisor.
    name
        Name of the root node, since a spec has no name.
    """
    return Tree(name, _flags(spec), tuple(_child(child, child.id) for child in spec.children))


def _flags(spec: SupervisorSpec) -> tuple[tuple[str, str], ...]:
    facts = [
        ("strategy", spec.strategy_name),
        ("intensity", f"{spec.intensity} in {spec.period:g} s"),
    ]
    if spec.auto_shutdown != "never":
        facts.append(("auto_shutdown", spec.auto_shutdown.value))
    return tuple(facts)


def _child(child: ChildSpec, path: str) -> Tree:
    below = child.start
    facts = [("restart", child.restart.value), ("shutdown", str(child.ending))]
    facts += [(flag, "yes") for flag in ("significant", "standby") if getattr(child, flag)]
    if isinstance(below, SupervisorSpec):
        children = tuple(_child(each, f"{path}/{each.id}") for each in below.children)
        return Tree(path, (*_flags(below), *facts), children)
    return Tree(path, (("kind", below.kind), *facts))
