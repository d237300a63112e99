"""The demo's view on a terminal."""

from __future__ import annotations

import io
import time

from rich.console import Console

from rayvisor import records as r
from rayvisor.demo.outcome import ReceivedStream
from rayvisor.demo.view import LiveView


def test_the_view_says_state_uptime_countdown_and_restarts_in_the_window() -> None:
    view = LiveView(Console(file=io.StringIO(), width=120, force_terminal=True), "a test")

    def head() -> str:
        text = io.StringIO()
        Console(file=text, width=120, color_system=None).print(view._render())
        return text.getvalue().splitlines()[1]

    def moved(before: str, event: str, after: str) -> r.StateChanged:
        now = time.monotonic()
        return r.StateChanged(at=now, child="llm/1", incarnation=2, event=event, before=before, after=after)

    try:
        view.streams([ReceivedStream("greedy", "Once")])
        view.record(moved("RESTARTING.STARTING", "started", "ALIVE.SERVING"))
        assert "incarnation 2  ALIVE.SERVING  up " in head()
        assert "0 tokens/s" in head()
        view.record(moved("RESTARTING.STOPPING", "backoff", "RESTARTING.BACKOFF"))
        view.record(
            r.DecisionMade(
                at=time.monotonic(),
                child="llm/1",
                incarnation=2,
                decision="restart",
                why="one_for_one",
                restarts=1,
                intensity=5,
                delay=900.0,
            )
        )
        assert "RESTARTING.BACKOFF  starts again in " in head()
        assert "1 of 5 restarts" in head()
        assert "up " not in head()
        view.record(moved("RESTARTING.BACKOFF", "start", "RESTARTING.STARTING"))
        assert "starts again" not in head()
    finally:
        view.close()
