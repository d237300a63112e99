"""Reads the causes of an engine's end from its log. Pure: text in, causes out.

The processes of an engine write to one log, line by line, interleaved. Python prints a chain of exceptions
innermost first, and the process that fails first prints first. So the order in the log, reversed, is a cause
chain: consequences first, the root cause last.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rayvisor._core.protocol.causes import Causes
from rayvisor.faults import Cause

__all__ = ["TAIL_BYTES", "WORKER_DIED", "Traceback", "exit_code_of_worker", "find_tracebacks", "log_causes"]

TAIL_BYTES = 8192
"""How much of the end of a log is read for messages about it."""

WORKER_DIED = "died unexpectedly"
"""Part of the line in which EngineCore reports the end of a worker."""

_MOST_CAUSES = 8
_MOST_CHARACTERS = 1000

# vLLM's lines begin with "(EngineCore pid=1234) ERROR 11-21 10:00:00 [core.py:1510] ", each part optional.
_WRITER = re.compile(r"^\((?P<writer>[^()]*pid=\d+)\) ?")
_STAMP = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d:.\- ]+\[[^\]]*\] ?")
_RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
# The subject of such a message is in the line below it.
_GOES_ON = re.compile(r"^\d+ validation errors? for ")
_WORKER_DIED = re.compile(rf"Worker proc \S+ {WORKER_DIED} \(exit code: (-?\d+)\)")


class Traceback(NamedTuple):
    """One exception found in a log."""

    type: str
    message: str
    text: str


def find_tracebacks(log: str) -> list[Traceback]:
    """Find the tracebacks of a log, in the order in which they were complete."""
    found: list[Traceback] = []
    open_ones: dict[str, list[str]] = {}
    half_said: dict[str, Traceback] = {}
    for raw in log.splitlines():
        matched = _WRITER.match(raw)
        writer = matched["writer"] if matched else ""
        line = _STAMP.sub("", raw[matched.end() :] if matched else raw)
        half = half_said.pop(writer, None)
        if half is not None and line[:1] == " ":
            whole = f"{half.message}: {line.strip()}"[:_MOST_CHARACTERS]
            found[found.index(half)] = half._replace(message=whole, text=f"{half.text}\n{line}")
        lines = open_ones.get(writer)
        if line.startswith("Traceback (most recent call last):"):
            open_ones[writer] = [line]
        elif lines is None:
            continue
        elif line[:1] in (" ", "\t") or not line:
            lines.append(line)
        else:
            del open_ones[writer]
            raised = _RAISED.match(line)
            if raised is not None:
                name = raised["type"].rpartition(".")[2]
                message = (raised["message"] or "")[:_MOST_CHARACTERS]
                found.append(Traceback(name, message, "\n".join([*lines, line])))
                if _GOES_ON.match(message):
                    half_said[writer] = found[-1]
    return found


def log_causes(log: str) -> tuple[Causes, str]:
    """Turn the tracebacks of a log into a cause chain and the text of the root cause's traceback."""
    chain: list[Cause] = []
    text = ""
    for traceback in find_tracebacks(log):
        cause = Cause(traceback.type, traceback.message)
        # Processes that are being ended print exceptions, too; those are no causes.
        if traceback.type in {"KeyboardInterrupt", "SystemExit"} or cause in chain:
            continue
        text = text or traceback.text
        chain.append(cause)
    return tuple(reversed(chain[:_MOST_CAUSES])), text


def exit_code_of_worker(log: str) -> int | None:
    """Return the exit code of a worker as EngineCore logged it; negative is the number of a signal."""
    matched = _WORKER_DIED.search(log)
    return int(matched[1]) if matched else None
