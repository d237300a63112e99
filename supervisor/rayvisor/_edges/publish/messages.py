"""The published messages: a topic for each child, and JSON with a sequence number. Pure.

>>> from rayvisor.records import SupervisorStateChanged
>>> messages = Messages("run-1")
>>> topic, body = messages.of(SupervisorStateChanged(at=2.0, path="llm", state="running"), wall=0.0)
>>> topic
b'rayvisor.llm'
>>> json.loads(body)["sequence"]
1
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING

from rayvisor._edges.http.json_forms import record_form

if TYPE_CHECKING:
    from rayvisor.records import Record

__all__ = ["SCHEMA", "Messages", "topic_of"]

SCHEMA = 1
"""Version of the format. It increases when a field changes or is removed, not when one is added."""
TOPICS = 10_000
"""Maximum number of topics with a sequence; beyond it, the one unused longest starts at 1 again."""


def topic_of(record: Record) -> str:
    """Return ``rayvisor.`` and the path of the child or supervisor of a record; the root's path is empty."""
    about = getattr(record, "fault", record)
    return "rayvisor." + str(getattr(about, "child", getattr(about, "path", "")))


class Messages:
    """Converts records to numbered messages.

    Parameters
    ----------
    run
        Id of this run of the supervisor; sequences of different runs are unrelated.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._sequences: OrderedDict[str, int] = OrderedDict()

    def of(self, record: Record, wall: float, overflows: int = 0) -> tuple[bytes, bytes]:
        """Return topic and body of the next message.

        Parameters
        ----------
        record
            The record.
        wall
            Offset, in seconds, from the monotonic clock to the time since the epoch.
        overflows
            How often the queue of a subscriber has been full so far.
        """
        topic = topic_of(record)
        sequence = self._sequences[topic] = self._sequences.pop(topic, 0) + 1
        if len(self._sequences) > TOPICS:
            self._sequences.popitem(last=False)
        form = {
            "schema": SCHEMA,
            "run": self._run,
            "sequence": sequence,
            "overflows": overflows,
            **record_form(record, wall),
        }
        return topic.encode(errors="replace"), json.dumps(form).encode()
