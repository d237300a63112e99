"""The comparison of streams in the demo: lost, duplicated and changed tokens."""

from __future__ import annotations

import pytest

from rayvisor.demo.outcome import Comparison, Outcome, ReceivedStream, compare


def read(tokens: list[int], text: str, *, finished: bool = True) -> ReceivedStream:
    return ReceivedStream(
        "greedy", "", tokens=tokens, text=text, finish_reason="length" if finished else None
    )


@pytest.mark.parametrize(
    ("stream", "comparison"),
    [
        (read([1, 2, 3], "abc"), Comparison(lost=False, duplicated=False, mismatched=False)),
        (read([1, 2], "ab"), Comparison(lost=True, duplicated=False, mismatched=False)),
        (read([1, 2, 3], "abc", finished=False), Comparison(lost=True, duplicated=False, mismatched=False)),
        (read([1, 2, 2, 3], "abbc"), Comparison(lost=False, duplicated=True, mismatched=True, at=2)),
        (read([1, 9, 3], "axc"), Comparison(lost=False, duplicated=False, mismatched=True, at=1)),
        (read([1, 2, 3], "abX"), Comparison(lost=False, duplicated=False, mismatched=True)),
    ],
)
def test_a_stream_is_compared_token_by_token_and_by_its_text(
    stream: ReceivedStream, comparison: Comparison
) -> None:
    assert compare(stream, [1, 2, 3], "abc") == comparison
    assert comparison.good == (str(comparison) == "the same as without a fault")


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "engine": "sim", "fault": "kill-core", "seed": 1, "requests": 2, "completed": 2, "restarts": 1,
    }  # fmt: skip
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def test_an_outcome_is_good_only_if_nothing_at_all_is_wrong() -> None:
    assert outcome().good
    for wrong in ("lost", "duplicated", "mismatched", "processes_left"):
        assert not outcome(**{wrong: 1}).good
    assert not outcome(completed=1).good
    assert not outcome(error="it broke").good
    assert not outcome(heavy_imports=["vllm"]).good


def test_a_fault_that_caused_no_restart_was_not_injected_and_is_no_success() -> None:
    assert not outcome(restarts=0).good
    assert outcome(fault="none", restarts=0).good
