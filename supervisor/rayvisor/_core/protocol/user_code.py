"""Which exceptions out of a user's code concern the program, and are no fault of that code."""

from __future__ import annotations

import signal
import traceback
from types import CodeType

__all__ = ["concerns_program"]


def concerns_program(error: BaseException) -> bool:
    """Whether an exception that came out of a user's code must pass on, since it is meant for the program.

    KeyboardInterrupt is: Python's own handler raises it, in whatever code the main thread runs. SystemExit is
    if a signal handler of the program raised it. Otherwise the code has called ``sys.exit`` itself, and that
    is a fault of the code, as is any other exception.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    if not isinstance(error, SystemExit):
        return False
    handlers = set(map(_code_of, map(signal.getsignal, signal.valid_signals()))) - {None}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def _code_of(handler: object) -> CodeType | None:
    """Return the code of a handler: of a function, a method, a partial, or a callable object."""
    while hasattr(handler, "func"):
        handler = handler.func
    of_class = vars(type(handler)).get("__call__")
    for found in (handler, getattr(handler, "__func__", None), of_class):
        code = getattr(found, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None
