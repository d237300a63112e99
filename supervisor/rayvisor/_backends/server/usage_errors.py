r"""The error that a server prints about its own command line before it exits. Pure.

>>> usage_error("usage: vllm serve [options]\nvllm serve: error: unrecognized arguments: --modle x\n")
'unrecognized arguments: --modle x'
"""

from __future__ import annotations

import re

from rayvisor._core.protocol.wire import Died

__all__ = ["usage_error", "with_usage_error"]

_USAGE = re.compile(r"^(?:\([^()]*pid=\d+\) )?\S+(?: serve)?: error: (?P<message>.+)$", re.MULTILINE)
_USAGE_EXIT = 2


def usage_error(text: str) -> str:
    """Return the last error about the command line in a log; empty if there is none."""
    found = _USAGE.findall(text)
    return str(found[-1]) if found else ""


def with_usage_error(died: Died) -> Died:
    """Add this error as the root cause of a death that it explains; it has no traceback."""
    message = usage_error(died.log_tail) if died.exit_code == _USAGE_EXIT else ""
    if not message:
        return died
    return died._replace(causes=(*died.causes, ("ArgumentError", message)), permanent=True)
