"""The outcome of a run of the demo: comparisons and counts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Comparison", "Outcome", "ReceivedStream", "compare"]


@dataclass(slots=True)
class ReceivedStream:
    """The stream that the reader of one request received."""

    kind: str
    prompt: str
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    seams: list[int] = field(default_factory=list)
    """Positions in ``text`` at which another incarnation took over."""
    incarnation: int = 0
    finish_reason: str | None = None
    seed: int | None = None
    error: str = ""
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of one request with the same request without a fault."""

    lost: bool
    duplicated: bool
    mismatched: bool

    at: int | None = None
    """The first token that differs."""

    @property
    def good(self) -> bool:
        """Whether the two are identical."""
        return not (self.lost or self.duplicated or self.mismatched)

    def __str__(self) -> str:
        if self.good:
            return "the same as without a fault"
        wrong = [name for name in ("lost", "duplicated", "mismatched") if getattr(self, name)]
        return ", ".join(wrong) + (f" (token {self.at} differs)" if self.at is not None else "")


def compare(stream: ReceivedStream, tokens: Sequence[int], text: str) -> Comparison:
    """Compare a received stream with the tokens and the text of a run without a fault.

    Lost: it did not finish, or tokens are missing. Duplicated: it has too many tokens. Mismatched: tokens
    differ, or the text does not belong to them.

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
    """The result of the demo, which ``--json`` prints."""

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
    """For each batch size of the control run, the number of identical requests."""
    root_cause: str = ""
    fault_class: str = ""
    as_expected: bool = True
    """Whether the reported fault has the class and root cause of the injected one."""
    processes_left: int = 0
    heavy_imports: list[str] = field(default_factory=list)
    """Modules that only engine processes need but this process has imported."""
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing was lost, duplicated, changed or left behind, and the fault was identified."""
        return (
            self.completed == self.requests
            and not (self.lost or self.duplicated or self.mismatched)
            and not (self.processes_left or self.heavy_imports or self.error)
            and self.as_expected
            and (self.fault == "none" or self.restarts > 0)
        )

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as a plain object."""
        return asdict(self)
