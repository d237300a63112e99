r"""The error that a server prints about its own command line before it exits. Pure.

>>> usage_error("usage: vllm serve [options]\nvllm serve: error: unrecognized arguments: --modle x\n")
'unrecognized arguments: --modle x'
"""

from __future__ import annotations

import re
from dataclasses import replace

from rayvisor.faults import Cause, Termination

__all__ = ["usage_error", "with_usage_error"]

_USAGE = re.compile(r"^(?:\([^()]*pid=\d+\) )?\S+(?: serve)?: error: (?P<message>.+)$", re.MULTILINE)
_USAGE_EXIT = 2


def usage_error(text: str) -> str:
    """Return the last error about the command line in a log; empty if there is none."""
    found = _USAGE.findall(text)
    return str(found[-1]) if found else ""


def with_usage_error(termination: Termination, log: str) -> Termination:
    """Add the usage error at the end of a log, if there is one, as the root cause of the end it explains."""
    message = usage_error(log) if termination.exit_code == _USAGE_EXIT else ""
    if not message:
        return termination
    return replace(termination, causes=(*termination.causes, Cause("ArgumentError", message)), permanent=True)
