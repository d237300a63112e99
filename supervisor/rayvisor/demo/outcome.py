"""What came of a run of the demo: compared, counted, and written down. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Comparison", "Outcome", "ReceivedStream", "compare"]


@dataclass(slots=True)
class ReceivedStream:
    """What the reader of one request got, chunk by chunk."""

    kind: str
    prompt: str
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    seams: list[int] = field(default_factory=list)
    """Characters of ``text`` at which another incarnation took over."""
    incarnation: int = 0
    finish_reason: str | None = None
    seed: int | None = None
    error: str = ""
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one request compares with the same request without a fault."""

    lost: bool
    duplicated: bool
    mismatched: bool

    at: int | None = None
    """The first token that differs."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not (self.lost or self.duplicated or self.mismatched)

    def __str__(self) -> str:
        if self.good:
            return "the same as without a fault"
        wrong = [name for name in ("lost", "duplicated", "mismatched") if getattr(self, name)]
        return ", ".join(wrong) + (f" (token {self.at} differs)" if self.at is not None else "")


def compare(stream: ReceivedStream, tokens: Sequence[int], text: str) -> Comparison:
    """Compare what was read with the tokens and the text of a run without a fault.

    Lost: it did not finish, or tokens are missing. Duplicated: there are too many. Mismatched: some are
    others, or the text is not theirs.

    >>> stream = ReceivedStream("greedy", "", tokens=[1, 2, 2], text="abb", finish_reason="stop")
    >>> compare(stream, [1, 2], "ab")
    Comparison(lost=False, duplicated=True, mismatched=False, at=None)
    """
    lost = stream.finish_reason is None or len(stream.tokens) < len(tokens)
    duplicated = len(stream.tokens) > len(tokens)
    common = min(len(stream.tokens), len(tokens))
    at = next((n for n in range(common) if stream.tokens[n] != tokens[n]), None)
    whole = not lost and not duplicated
    return Comparison(lost, duplicated, at is not None or (whole and stream.text != text), at)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The demo's result; ``--json`` prints it."""

    engine: str
    fault: str
    seed: int
    requests: int
    completed: int = 0
    lost: int = 0
    duplicated: int = 0
    mismatched: int = 0
    restarts: int = 0
    detect_ms: float | None = None
    recover_ms: float | None = None
    cold_start_s: float | None = None
    tokens: int = 0
    control: dict[str, int] = field(default_factory=dict)
    """For each batch size of the control run: how many requests came out the same."""
    root_cause: str = ""
    fault_class: str = ""
    as_expected: bool = True
    """Whether the fault that was found is the one that was injected: its class, and its root cause."""
    processes_left: int = 0
    heavy_imports: list[str] = field(default_factory=list)
    """What this process should never have imported, and has: only engines' own processes need it."""
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled or changed, nothing is left behind, and the fault was named."""
        return (
            self.completed == self.requests
            and not (self.lost or self.duplicated or self.mismatched)
            and not (self.processes_left or self.heavy_imports or self.error)
            and self.as_expected
            and (self.fault == "none" or self.restarts > 0)
        )

    def as_json(self) -> dict[str, Any]:
        """The outcome as one plain object."""
        return asdict(self)
