"""An engine that never makes progress ends its whole tree: no parent starts it again."""

from __future__ import annotations

import pytest

from rayvisor.specs import ChildSpec, Restart, SupervisorSpec
from rayvisor.testing import VirtualTree


class _Nothing:
    kind = "nothing"


NOTHING = _Nothing()


def pool(restart: Restart) -> ChildSpec:
    engine = ChildSpec(id="1", start=NOTHING, crash_loop_limit=3, retry_first_start=True)
    return ChildSpec(
        id="pool", start=SupervisorSpec(intensity=9, period=1e6, children=[engine]), restart=restart
    )


def crash_slowly(sup: VirtualTree, times: int) -> None:
    """Failures so far apart that no parent's window is ever exceeded."""
    for _ in range(times):
        sup.advance(1000.0)
        sup.crash("pool/1")


@pytest.mark.parametrize("restart", [Restart.PERMANENT, Restart.TRANSIENT])
def test_a_pool_without_progress_is_not_started_again_by_its_parent(restart: Restart) -> None:
    sup = VirtualTree(SupervisorSpec(children=[pool(restart)]))
    crash_slowly(sup, 3)
    assert sup.ended is not None
    assert sup.ended.gave_up == "3 incarnations in a row died before doing useful work"
    assert sup.ended.origin == "pool"


def test_a_temporary_pool_without_progress_ends_alone() -> None:
    other = ChildSpec(id="other", start=NOTHING)
    sup = VirtualTree(SupervisorSpec(children=[pool(Restart.TEMPORARY), other]))
    crash_slowly(sup, 3)
    assert sup.ended is None
    assert sup.leaf("other") == "SERVING"


def test_a_pool_that_gave_up_by_its_window_is_started_again_as_in_otp() -> None:
    engine = ChildSpec(id="1", start=NOTHING)
    spec = SupervisorSpec(
        children=[ChildSpec(id="pool", start=SupervisorSpec(intensity=0, children=[engine]))]
    )
    sup = VirtualTree(spec)
    sup.crash("pool/1")
    assert sup.ended is None
    assert sup.leaf("pool/1") == "SERVING"
