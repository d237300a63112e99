"""For tests of supervision trees.

[`VirtualTree`][rayvisor.testing.VirtualTree] runs a tree's real decisions in virtual time: starts and stops
are pretended, and a test says how they turn out and moves the clock.

[`FaultPlan`][rayvisor.testing.FaultPlan] says what goes wrong and when, in virtual time or in a real tree;
[`Puppets`][rayvisor.testing.Puppets] are children of a real tree that do what a test tells them, and
[`wait_for_state`][rayvisor.testing.wait_for_state] waits until a child is where it should be.

[`rehearse`][rayvisor.testing.rehearse] has engines on the CPU wait for an instruction after a fault, as with
vLLM's fault tolerance, and [`fail_next_step`][rayvisor.testing.fail_next_step] and
[`hang_next_step`][rayvisor.testing.hang_next_step] give them a fault.

``python -m rayvisor.testing.otp PATH...`` runs recorded scenarios of Erlang/OTP's supervisor through the
product's own core, and says where the two differ.
"""

from __future__ import annotations

from rayvisor.testing.faults import Crash, FailedStart, FaultPlan
from rayvisor.testing.puppets import PuppetCrashedError, Puppets, wait_for_state
from rayvisor.testing.rehearsal import fail_next_step, hang_next_step, rehearse
from rayvisor.testing.virtual import (
    BOOM,
    HANGS,
    IGNORES,
    NOTHING,
    UP,
    Outcome,
    VirtualTree,
    fails,
    fault_of,
)

__all__ = [
    "BOOM",
    "HANGS",
    "IGNORES",
    "NOTHING",
    "UP",
    "Crash",
    "FailedStart",
    "FaultPlan",
    "Outcome",
    "PuppetCrashedError",
    "Puppets",
    "VirtualTree",
    "fail_next_step",
    "fails",
    "fault_of",
    "hang_next_step",
    "rehearse",
    "wait_for_state",
]
