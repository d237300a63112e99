"""Recovery in place, of one engine and of a group of ranks; gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

import rayvisor as rv
from rayvisor._core.supervision import messages as m
from rayvisor.specs import ChildSpec, SupervisorSpec
from rayvisor.testing import NOTHING, VirtualTree, fault_of


class _Engine(NamedTuple):
    kind: str = "engine"


ENGINE = _Engine()
SICK = fault_of(rv.FaultClass.RECOVERABLE, "all2all failed").fault


async def sync(_: object) -> None: ...


def tree(
    ids: str = "01",
    *,
    gate: Any = None,
    recoveries: int = 2,
    standby: str = "",
    instructed_by: str = "supervisor",
    **options: Any,
) -> VirtualTree:
    options.setdefault("strategy", "one_for_all")
    options.setdefault("recover_as_group", True)
    children = [
        ChildSpec(
            id=each,
            start=ENGINE,
            recoveries=recoveries,
            gate=gate,
            standby=each in standby,
            instructed_by=instructed_by,
        )
        for each in ids
    ]
    made = VirtualTree(SupervisorSpec(children=children, intensity=3, **options))
    made.take()
    return made


def sick(tree: VirtualTree, path: str) -> None:
    tree.feed(m.Reported(path, tree.live[path], "unhealthy", SICK))


def leaves(tree: VirtualTree, ids: str = "01") -> list[str]:
    return [tree.leaf(each) for each in ids]


def test_every_rank_is_instructed_to_retry_and_serves_when_all_have_recovered() -> None:
    t = tree()
    sick(t, "1")
    assert t.take() == ["act 0 retry", "act 1 retry"]
    assert leaves(t) == ["RETRYING", "RETRYING"]
    t.acted("0")
    assert leaves(t) == ["RETRYING", "RETRYING"]
    t.acted("1")
    assert leaves(t) == ["SERVING", "SERVING"]
    assert not t.core.root.window
    assert t.live == {"0": 1, "1": 1}


@pytest.mark.parametrize("fails", ["0", "1"])
def test_one_rank_that_does_not_recover_has_the_group_restarted_with_the_first_fault_as_root(
    fails: str,
) -> None:
    t = tree()
    sick(t, "1")
    t.take()
    t.acted(fails, ok=False, exit=fault_of(rv.FaultClass.FATAL, "no acknowledgement"))
    t.prove("1")
    assert sorted(t.take()[:2]) == ["clean 1 1", "stop 0 1"]
    assert leaves(t) == ["SERVING", "SERVING"]
    assert t.live == {"0": 2, "1": 2}
    (decided,) = [x for x in t.of(m.Decided) if x.decision == "restart"]
    assert "all2all failed" in str(decided.exit)


def test_a_rank_that_dies_while_the_group_recovers_has_the_group_restarted() -> None:
    t = tree()
    sick(t, "1")
    t.crash("0")
    assert t.live == {"0": 2, "1": 2}
    assert leaves(t) == ["SERVING", "SERVING"]
    t.feed(m.Acted("1", 1, ok=True))  # too late, and of an incarnation that is gone
    assert leaves(t) == ["SERVING", "SERVING"]


def test_a_second_fault_on_the_way_of_the_retry_has_the_group_restarted() -> None:
    t = tree()
    sick(t, "1")
    t.acted("1")
    sick(t, "1")
    t.prove("1")
    assert t.live == {"0": 2, "1": 2}


def test_a_fault_that_is_reported_again_while_the_retry_is_under_way_changes_nothing() -> None:
    t = tree()
    sick(t, "1")
    t.take()
    sick(t, "1")
    sick(t, "0")
    assert t.take() == []


def test_an_operator_is_waited_for_and_the_group_serves_when_all_are_well() -> None:
    t = tree(instructed_by="operator")
    sick(t, "1")
    assert t.take() == ["act 0 await", "act 1 await"]
    assert leaves(t) == ["FAULTED", "FAULTED"]
    t.acted("1")
    assert leaves(t) == ["FAULTED", "FAULTED"]
    t.acted("0")
    assert leaves(t) == ["SERVING", "SERVING"]
    assert t.live == {"0": 1, "1": 1}


@pytest.mark.parametrize("ends", ["nobody instructs", "it dies", "another one dies"])
def test_an_operator_who_does_nothing_in_time_or_comes_too_late_has_the_group_restarted(ends: str) -> None:
    t = tree(instructed_by="operator")
    sick(t, "1")
    if ends == "nobody instructs":
        t.acted("0", ok=False, exit=fault_of(rv.FaultClass.FATAL, "no instruction came"))
        t.prove("1")
    else:
        t.crash("1" if ends == "it dies" else "0")
    assert leaves(t) == ["SERVING", "SERVING"]
    assert t.live == {"0": 2, "1": 2}


def test_recoveries_have_a_budget_of_their_own() -> None:
    t = tree(recoveries=2, period=60.0)
    for _ in range(2):
        sick(t, "0")
        t.acted("0")
        t.acted("1")
    sick(t, "0")
    t.prove("0")
    assert t.live == {"0": 2, "1": 2}
    t.advance(100)
    sick(t, "0")
    assert leaves(t) == ["RETRYING", "RETRYING"]


def test_without_recoveries_an_unhealthy_engine_is_restarted() -> None:
    t = tree("0", recoveries=0, recover_as_group=False, strategy="one_for_one")
    sick(t, "0")
    assert t.take() == ["clean 0 1"]
    t.prove("0")
    assert t.take() == ["start 0 2"]


def test_an_engine_of_its_own_recovers_alone() -> None:
    t = tree(recover_as_group=False, strategy="one_for_one")
    sick(t, "0")
    assert leaves(t) == ["RETRYING", "SERVING"]
    t.acted("0")
    assert leaves(t) == ["SERVING", "SERVING"]


def test_ranks_that_a_strategy_would_leave_half_recovered_are_restarted_as_well() -> None:
    t = tree(strategy="one_for_one")
    sick(t, "0")
    t.acted("1", ok=False)
    t.prove("0")
    t.prove("1")
    assert t.live == {"0": 2, "1": 2}


def test_a_pause_outlives_a_recovery() -> None:
    t = tree("0")
    t.call(m.Verb.PAUSE, "", "0")
    sick(t, "0")
    t.acted("0")
    assert t.leaf("0") == "REQUESTED"


def test_the_tree_ends_in_the_middle_of_a_recovery() -> None:
    t = tree()
    sick(t, "0")
    t.take()
    t.halt()
    assert t.take() == ["stop 1 1", "stop 0 1", "tree ended"]


# --- gates ---------------------------------------------------------------------------------------


def test_an_engine_with_a_gate_serves_only_when_that_is_passed_also_after_a_restart() -> None:
    t = tree("0", gate=sync)
    assert t.leaf("0") == "STALE"
    t.report("0", "synced")
    assert t.leaf("0") == "SERVING"
    t.crash("0")
    assert t.leaf("0") == "STALE"


def test_declared_stale_it_stops_serving_a_spare_as_well() -> None:
    t = tree("01", gate=sync, standby="1", recover_as_group=False)
    for each in "01":
        t.report(each, "synced")
    assert leaves(t) == ["SERVING", "STANDBY"]
    t.call(m.Verb.STALE)
    assert leaves(t) == ["STALE", "STALE"]
    for each in "01":
        t.report(each, "synced")
    assert leaves(t) == ["SERVING", "STANDBY"]


def test_what_was_synced_before_it_was_declared_stale_again_does_not_open_the_gate() -> None:
    t = tree("0", gate=sync)
    t.call(m.Verb.STALE)
    t.feed(m.Reported("0", 1, "synced", stales=1))
    assert t.leaf("0") == "STALE"
    t.feed(m.Reported("0", 1, "synced", stales=2))
    assert t.leaf("0") == "SERVING"


def test_what_has_no_gate_is_not_made_stale() -> None:
    t = tree("0")
    t.call(m.Verb.STALE)
    assert t.leaf("0") == "SERVING"


def test_a_gate_is_for_engines_and_is_a_function() -> None:
    with pytest.raises(rv.SpecError, match=r"gate=.*must be an async function, and is for engines only"):
        ChildSpec(id="a", start=NOTHING, gate=sync)
    with pytest.raises(rv.SpecError, match=r"gate='sync': must be"):
        ChildSpec(id="a", start=ENGINE, gate="sync")  # type: ignore[arg-type]
