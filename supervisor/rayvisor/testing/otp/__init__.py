"""Replays recorded runs of Erlang/OTP's ``supervisor`` through rayvisor's own core.

A scenario file contains a tree, the outcomes of its start functions, steps (crashes, calls, sleeps), and the
trace of the real OTP supervisor. [`replay`][rayvisor.testing.otp.replay] makes the trace of the core in
virtual time. [`difference`][rayvisor.testing.otp.difference] compares the traces: the order of events, the
results of calls, the tree after each step, and the exit of each supervisor.

    python -m rayvisor.testing.otp traces.tar.gz
"""

from __future__ import annotations

from rayvisor.testing.otp.comparing import difference, is_known
from rayvisor.testing.otp.replaying import Replay, replay

__all__ = ["Replay", "difference", "is_known", "replay"]
