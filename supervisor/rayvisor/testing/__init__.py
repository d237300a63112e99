"""For tests of supervision trees.

[`VirtualTree`][rayvisor.testing.VirtualTree] runs a tree's real decisions in virtual time: starts and stops
are pretended, and a test says how they turn out and moves the clock.

``python -m rayvisor.testing.otp PATH...`` runs recorded scenarios of Erlang/OTP's supervisor through the
product's own core, and says where the two differ.
"""

from __future__ import annotations

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

__all__ = ["BOOM", "HANGS", "IGNORES", "NOTHING", "UP", "Outcome", "VirtualTree", "fails", "fault_of"]
