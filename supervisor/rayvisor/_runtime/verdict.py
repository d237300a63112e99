"""What the end of a session asks to be raised, and what goes before it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from rayvisor.errors import RayvisorError, StartFailed, SupervisorGaveUp

if TYPE_CHECKING:
    from rayvisor._runtime.session import Session

__all__ = ["only_follows", "reason_of"]


def reason_of(session: Session) -> BaseException | None:
    """What the end of a session asks to be raised."""
    ended = session.ended
    reason: BaseException | None = session.error
    if session.signal is not None:
        interrupted = session.signal == signal.SIGINT
        reason = KeyboardInterrupt() if interrupted else SystemExit(128 + session.signal)
    elif reason is None and ended is not None:
        if not ended.started and not session.halted:
            reason = StartFailed(ended.origin, ended.exit.fault)
        elif ended.gave_up:
            reason = SupervisorGaveUp(ended.origin, ended.gave_up, ended.exit.fault)
    return reason


def only_follows(error: BaseException) -> bool:
    """Whether an error of the block is one of rayvisor's, which the end of the tree explains."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_follows(each) for each in error.exceptions)
    return isinstance(error, RayvisorError)
