"""Tools for tests of supervision trees.

[`VirtualTree`][rayvisor.testing.VirtualTree] runs a tree's real decisions in virtual time. Starts and stops
are simulated; a test sets their outcomes and advances the clock.

[`FaultPlan`][rayvisor.testing.FaultPlan] schedules faults, in virtual time or in a real tree.
[`Puppets`][rayvisor.testing.Puppets] are children of a real tree that a test controls, and
[`wait_for_state`][rayvisor.testing.wait_for_state] waits until a child reaches a state.

[`rehearse`][rayvisor.testing.rehearse] makes engines on the CPU wait for an instruction after a fault, like
vLLM's fault tolerance. [`fail_next_step`][rayvisor.testing.fail_next_step] and
[`hang_next_step`][rayvisor.testing.hang_next_step] inject a fault into them.

``python -m rayvisor.testing.otp PATH...`` runs recorded scenarios of Erlang/OTP's supervisor through
rayvisor's own core and reports every difference.
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
