"""Recorded runs of Erlang/OTP's ``supervisor``, run again through rayvisor's own core.

A scenario file holds a tree, how its start functions turn out, and steps (crashes, calls, sleeps); beside
it is the trace of what the real OTP supervisor did. [`replay`][rayvisor.testing.otp.replay] makes the
same trace with the core in virtual time, [`difference`][rayvisor.testing.otp.difference] compares the two:
order of events, results of calls, the tree after each step, and how each supervisor ended.

    python -m rayvisor.testing.otp traces.tar.gz
"""

from __future__ import annotations

from rayvisor.testing.otp.comparing import difference, is_known
from rayvisor.testing.otp.replaying import Replay, replay

__all__ = ["Replay", "difference", "is_known", "replay"]
