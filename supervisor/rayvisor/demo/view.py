"""Displays the demo: as lines like a log, or as a live view on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayvisor import records as r
from rayvisor._edges.live import text as live_text
from rayvisor.timeouts import DEFAULT_TIMEOUTS, CommandTimeouts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rayvisor.demo.outcome import Outcome, ReceivedStream

__all__ = ["Lines", "LiveView", "summary"]

_KEPT_LINES = 14
_REFRESHES = 10


class Lines:
    """One line for each event, for pipes, files and logs.

    Parameters
    ----------
    write
        Writes a line.
    label
        The platform, which says if the engine is simulated.
    timeouts
        How often a lasting phase of a start is shown.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        label: str,
        *,
        timeouts: CommandTimeouts = DEFAULT_TIMEOUTS.commands,
    ) -> None:
        self._write = write
        self._interval = timeouts.demo_phase
        self._began = time.monotonic()
        self._reported_at: dict[str, float] = {}
        self._readings: list[ReceivedStream] = []
        self._label = label
        self.line("demo", f"rayvisor demo on {label}")

    def line(self, topic: str, text: str) -> None:
        """Write a line with the time since the start."""
        self._write(f"[{time.monotonic() - self._began:6.2f} s] {topic:<10} {live_text.escaped(text)}")

    def stage(self, text: str) -> None:
        """Write the stage."""
        self.line("demo", text)

    def record(self, record: r.Record) -> None:
        """Write a record if it is relevant for the demo."""
        match record:
            case r.FaultSeen(fault=fault):
                self.line("fault", f"{fault.child} #{fault.incarnation}: {fault.root} ({fault.fault_class})")
            case r.DecisionMade():
                self.line("decided", f"{record.child}: {live_text.decided(record.decision, asdict(record))}")
            case r.StateChanged():
                who = f"{record.child} #{record.incarnation}"
                why = f": {record.why}" if record.event == "suspect" and record.why else ""
                self.line("state", f"{who}: {record.before} -> {record.after} ({record.event}{why})")
            case r.StartProgressed():
                self._progress(record)
            case _:
                pass

    def _progress(self, record: r.StartProgressed) -> None:
        """Write a start phase when it begins, and every few seconds while it lasts."""
        key = f"{record.child}#{record.incarnation} {record.phase}"
        now = time.monotonic()
        if now - self._reported_at.get(key, 0.0) >= self._interval:
            self._reported_at[key] = now
            who = f"{record.child} #{record.incarnation}"
            self.line("starting", f"{who}: {record.phase} {record.detail} ({record.elapsed:.1f} s)")

    def injected(self, what: str, after: int, of: int) -> None:
        """Write the injected fault."""
        self.line("FAULT", f"{what}, after {after} of {of} tokens")

    def streams(self, streams: list[ReceivedStream]) -> None:
        """Keep the streams for the end."""
        self._readings = streams

    def recovered(self, seconds: float) -> None:
        """Write the recovery time."""
        self.line("recovered", f"first new token {seconds:.2f} s after the fault")

    def outcome(self, outcome: Outcome) -> None:  # noqa: ARG002 - the final table shows it
        """Write each stream around its seam, with its comparison."""
        for number, stream in enumerate(self._readings):
            self.line("stream", f"{number} ({stream.kind}): {_around_seam(stream)}: {stream.comparison}")

    def close(self) -> None:
        """Do nothing, since lines hold nothing open."""


class LiveView(Lines):
    """A live view on a terminal: the child's state, the decisions, and the growing streams."""

    def __init__(self, console: Console, label: str) -> None:
        self._log: list[Text] = []
        self._state = "RESTARTING.STARTING"
        self._incarnation = 1
        self._phase = ""
        self._up: float | None = None
        self._due: float | None = None
        self._window = ""
        self._rate = _Rate()
        self._stage = ""
        self._live: Live | None = None
        super().__init__(self._append, label)
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=_REFRESHES, transient=False
        )
        self._live.start()

    def _append(self, line: str) -> None:
        topic = line.partition("] ")[2].partition(" ")[0]
        style = {"FAULT": "bold red", "fault": "red", "decided": "yellow", "recovered": "bold green"}.get(
            topic, ""
        )
        self._log.append(Text(line, style=style, overflow="ellipsis", no_wrap=True))
        del self._log[:-_KEPT_LINES]

    def stage(self, text: str) -> None:
        """Show the stage."""
        self._stage = text
        super().stage(text)

    def record(self, record: r.Record) -> None:
        """Update the engine's state and keep the line."""
        if isinstance(record, r.StateChanged) and record.child == "llm/1":
            self._state, self._incarnation, self._phase = record.after, record.incarnation, ""
            if record.event == "started":
                self._up = record.at
            elif record.after.startswith(("RESTARTING", "DEAD")):
                self._up = None
            if not record.after.endswith("BACKOFF"):
                self._due = None
        if isinstance(record, r.DecisionMade) and record.child == "llm/1":
            self._window = f"{record.restarts} of {record.intensity} restarts"
            self._due = record.at + record.delay if record.delay else None
        if isinstance(record, r.StartProgressed):
            self._phase = live_text.escaped(f"{record.phase} {record.detail}, {record.elapsed:.0f} s")
        super().record(record)

    def outcome(self, outcome: Outcome) -> None:
        """Do nothing, since the streams are already on the screen."""

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _facts(self) -> str:
        """Return uptime, countdown, restarts in the window, and tokens per second."""
        now = time.monotonic()
        rate = self._rate.of(sum(len(stream.tokens) for stream in self._readings), now)
        facts = (
            f"up {now - self._up:.0f} s" if self._up is not None else "",
            f"starts again in {max(0.0, self._due - now):.1f} s" if self._due is not None else "",
            self._window,
            f"{rate:.0f} tokens/s" if self._readings else "",
        )
        return "  ".join(fact for fact in facts if fact)

    def _render(self) -> RenderableType:
        style = live_text.state_colour(self._state)
        head = Text.assemble(
            ("llm/1 ", "bold"),
            (f"incarnation {self._incarnation}  ", ""),
            (self._state, f"bold {style}"),
            (f"  {self._facts()}", ""),
            (f"  {self._phase}" if self._phase else "", "dim"),
        )
        streams = Table.grid(padding=(0, 1), expand=True)
        streams.add_column(width=10, no_wrap=True)
        streams.add_column(ratio=1)
        for stream in self._readings[:8]:
            streams.add_row(Text(stream.kind, style="dim"), _coloured(stream))
        parts: list[RenderableType] = [
            Panel(head, title=f"rayvisor demo on {self._label}", subtitle=self._stage, title_align="left"),
        ]
        if self._readings:
            more = len(self._readings) - 8
            title = "streams (green: after the fault)" + (f", and {more} more" if more > 0 else "")
            parts.append(Panel(streams, title=title, title_align="left"))
        parts.append(Panel(Group(*self._log), title="events and decisions", title_align="left"))
        return Group(*parts)


class _Rate:
    """Tokens per second over at least the last second."""

    def __init__(self) -> None:
        self._at, self._count, self._value = 0.0, 0, 0.0

    def of(self, count: int, now: float) -> float:
        """Take the current count and return the rate."""
        if now - self._at >= 1.0:
            self._value = (count - self._count) / (now - self._at) if self._at else 0.0
            self._at, self._count = now, count
        return self._value


def _coloured(stream: ReceivedStream, width: int = 200) -> Text:
    """Return the end of a stream, with a separate colour for the part of each incarnation."""
    text = Text(overflow="fold")
    text.append(live_text.escaped(stream.prompt), style="dim")
    cuts = [0, *stream.seams, len(stream.text)]
    for number, (start, end) in enumerate(pairwise(cuts)):
        if number:
            text.append("│", style="bold red")
        text.append(live_text.escaped(stream.text[start:end]), style="green" if number else "")
    plain = len(text)
    return text[max(0, plain - width) :] if plain > width else text


def _around_seam(stream: ReceivedStream, around: int = 40) -> str:
    if stream.error:
        return stream.error
    if not stream.seams:
        return repr(stream.text[:around])
    seam = stream.seams[0]
    return f"...{stream.text[max(0, seam - around) : seam]!r} | {stream.text[seam : seam + around]!r}..."


def summary(outcome: Outcome) -> Table:
    """Return the final table."""
    table = Table(title=f"{outcome.fault} on {outcome.engine}, seed {outcome.seed}", show_header=False)
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, value: object, *, good: bool | None = None) -> None:
        style = "" if good is None else ("green" if good else "bold red")
        table.add_row(name, Text(live_text.escaped(str(value)), style=style))

    row("requests", outcome.requests)
    row("completed", outcome.completed, good=outcome.completed == outcome.requests)
    for name in ("lost", "duplicated", "mismatched"):
        row(name, getattr(outcome, name), good=getattr(outcome, name) == 0)
    row("tokens", outcome.tokens)
    row("restarts", outcome.restarts)
    if outcome.detect_ms is not None:
        row("fault to decision", f"{outcome.detect_ms:.0f} ms")
    if outcome.recover_ms is not None:
        row("fault to first new token", f"{outcome.recover_ms / 1000:.2f} s")
    if outcome.cold_start_s is not None:
        row("the engine's own cold start", f"{outcome.cold_start_s:.2f} s")
    if outcome.root_cause:
        row("class", outcome.fault_class, good=outcome.as_expected)
        row("root cause", outcome.root_cause, good=outcome.as_expected)
    row("processes left", outcome.processes_left, good=outcome.processes_left == 0)
    if outcome.error:
        row("error", outcome.error, good=False)
    return table
