"""The processes of a scenario: their behaviour when they are started, stopped or killed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rayvisor._core.paths import split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.specs import Shutdown

__all__ = ["Process", "World"]


class Process:
    """One incarnation of a worker or supervisor."""

    __slots__ = (
        "alive",
        "came_up",
        "ending",
        "json",
        "n",
        "parent",
        "path",
        "reason",
        "simple",
        "supervisor",
    )

    def __init__(self, path: str, n: int, parent: Process | None, json: dict[str, Any]) -> None:
        self.path = path
        self.n = n
        self.parent = parent
        self.json = json
        self.supervisor = False
        self.simple = False
        self.alive = True
        self.came_up = False
        self.ending = False
        self.reason = ""

    def ancestors(self) -> Iterator[Process]:
        """Yield its parent, its parent's parent, ..."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    @property
    def orphan(self) -> bool:
        """Whether its supervisor died before it."""
        return self.parent is not None and not self.parent.alive


class World:
    """All processes of a scenario, the outcomes of starts, and the events in order.

    Parameters
    ----------
    starts
        By path, the outcomes of its first, second, ... start.
    """

    def __init__(self, starts: dict[str, list[str]]) -> None:
        self.starts = starts
        self.attempts: dict[str, int] = {}
        self.current: dict[str, Process] = {}
        # The last supervisor of each path, since an id may be reused for a worker.
        self.supervisors: dict[str, Process] = {}
        self.events: list[dict[str, Any]] = []

    # --- starts -------------------------------------------------------------------------------

    def attempt(self, path: str) -> tuple[int, str]:
        """Count a start; return its number and its outcome."""
        n = self.attempts[path] = self.attempts.get(path, 0) + 1
        outcomes = self.starts.get(path, [])
        if n <= len(outcomes):
            return n, outcomes[n - 1].rstrip("*")
        return n, outcomes[-1].rstrip("*") if outcomes and outcomes[-1].endswith("*") else "ok"

    def spawn(self, path: str, n: int, json: dict[str, Any]) -> Process:
        """Create a process under the current process of the parent path."""
        above, _ = split(path)
        process = Process(path, n, self.current.get(above), json)
        self.current[path] = process
        return process

    def alive(self, path: str) -> Process | None:
        """Return the living process at a path, or None."""
        process = self.current.get(path)
        return process if process is not None and process.alive else None

    def supervisor(self, path: str) -> Process | None:
        """Return the living supervisor at a path, or None."""
        process = self.alive(path)
        return process if process is not None and process.supervisor else None

    def promote(self, process: Process) -> None:
        """Mark a process as a supervisor whose ``init`` is called now."""
        process.supervisor = True
        self.supervisors[process.path] = process

    # --- ends ---------------------------------------------------------------------------------

    def end(self, process: Process, reason: str) -> None:
        """Make a process exit; without a reason it hangs forever, as an orphan that is never reported."""
        if reason:
            self.record(process, "exit", reason=reason)
        process.alive = False
        process.reason = reason

    def ask(self, process: Process, ending: Shutdown) -> tuple[float, str]:
        """Ask a worker to exit; return the time that takes and its exit reason, empty if it never exits.

        An orphan has no supervisor that would wait or kill. It gets the exit reason of its supervisor.
        """
        asked = "shutdown" if process.parent is None or process.parent.alive else process.parent.reason
        seconds = math.inf if process.orphan else ending.seconds
        if seconds is None:
            return 0.0, "killed"
        if not process.json.get("trap", True):
            return 0.0, asked
        if seconds > 0:
            self.record(process, "stopping", reason=asked)
        answer = process.json.get("on_shutdown", "exit")
        delay = (
            answer["delay_ms"] / 1000 if isinstance(answer, dict) else math.inf if answer == "hang" else 0.0
        )
        if delay >= seconds:
            return (0.0, "") if math.isinf(seconds) else (seconds, "killed")
        return delay, {"exit_boom": "boom", "exit_normal": "normal"}.get(str(answer), asked)

    # --- events -------------------------------------------------------------------------------

    def record(self, process: Process, ev: str, **more: str) -> None:
        """Record an event, marked if OTP leaves its order open."""
        event: dict[str, Any] = {"ev": ev, "path": process.path, "n": process.n, **more}
        if any(not above.alive for above in process.ancestors()):
            event["async"] = True
        elif any(above.simple and above.ending for above in process.ancestors()):
            event["par"] = True
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        events, self.events = self.events, []
        return events

    def final(self) -> dict[str, dict[str, Any]]:
        """Return, for every supervisor, its exit reason or that it is alive."""
        return {
            path: {"n": process.n, "status": "alive" if process.alive else f"exited:{process.reason}"}
            for path, process in self.supervisors.items()
        }
