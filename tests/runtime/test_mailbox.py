from __future__ import annotations

import pytest

from rayvisor._core.supervision import messages as m
from rayvisor._runtime.mailbox import Mailbox
from rayvisor.errors import SupervisorBusyError
from rayvisor.faults import KILLED, SHUTDOWN


async def order(mailbox: Mailbox) -> list[m.Event]:
    return [await mailbox.next() for _ in range(len(mailbox))]


async def test_what_comes_first_is_first() -> None:
    mailbox = Mailbox(10)
    events: list[m.Event] = [
        m.Started("a", 1),
        m.Call(1, m.Verb.WHICH_CHILDREN, ""),
        m.Exited("a", 1, SHUTDOWN),
        m.TimerFired(3),
    ]
    for event in events:
        mailbox.post(event)
    assert await order(mailbox) == events


@pytest.mark.parametrize("end", [m.Halt(), m.Exited("", 0, KILLED)], ids=["stop", "kill"])
async def test_only_the_end_of_the_whole_tree_overtakes(end: m.Event) -> None:
    mailbox = Mailbox(10)
    mailbox.post(m.Started("a", 1))
    mailbox.post(m.Exited("b", 1, SHUTDOWN))
    mailbox.post(end)
    assert await order(mailbox) == [end, m.Started("a", 1), m.Exited("b", 1, SHUTDOWN)]


async def test_a_full_mailbox_takes_everything_but_calls() -> None:
    mailbox = Mailbox(1)
    mailbox.post(m.Call(1, m.Verb.WHICH_CHILDREN, ""))
    with pytest.raises(SupervisorBusyError) as refused:
        mailbox.post(m.Call(2, m.Verb.WHICH_CHILDREN, ""))
    assert refused.value.limit == 1
    for number in range(1000):
        mailbox.post(m.Exited("a", number, SHUTDOWN))
    assert len(mailbox) == 1001
    mailbox.answered()
    mailbox.post(m.Call(3, m.Verb.WHICH_CHILDREN, ""))
