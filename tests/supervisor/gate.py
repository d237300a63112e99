"""Parts of the player of scenarios: OTP's words for exits, and what makes up for starts that do not block."""

from __future__ import annotations

from collections.abc import Callable

from rayvisor._core.supervision import messages as m
from rayvisor._runtime.mailbox import Mailbox
from rayvisor.faults import KILLED, Exit, ExitKind
from rayvisor.testing.otp.terms import term_of


class Gate:
    """Holds a retry's timer back until so many calls are answered: OTP's start functions block."""

    def __init__(self) -> None:
        self.waiting = 0
        self._open: Callable[[], None] = lambda: None

    def hold(self, mailbox: Mailbox, calls: int) -> None:
        post, held = mailbox.post, list[m.Event]()
        self.waiting = calls

        def gated(event: m.Event) -> None:
            if isinstance(event, m.TimerFired):
                held.append(event)
            else:
                post(event)

        def open_() -> None:
            mailbox.post = post  # type: ignore[method-assign]  # as it was
            for event in held:
                post(event)

        self._open = open_
        mailbox.post = gated  # type: ignore[method-assign]  # for the time of the gate

    def answered(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self._open()


def term(exit_: Exit) -> str:
    if exit_.below is not None:
        return f"{{shutdown,{{failed_to_start_child,{exit_.child},{term(exit_.below)}}}}}"
    if exit_.kind is ExitKind.FAULT and exit_.fault is not None:
        return exit_.fault.root.message
    return "killed" if exit_ is KILLED else term_of(exit_)
