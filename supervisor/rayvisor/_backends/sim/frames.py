"""Messages between the simulated engine's processes: JSON behind its length in four bytes."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["Unframer", "frame"]

_HEADER = 4


def frame(message: Any) -> bytes:
    """Make the bytes of one message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(_HEADER, "big") + body


class Unframer:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Take what has come, give the messages that are complete."""
        self._bytes += data
        messages = []
        start = 0
        while len(self._bytes) >= start + _HEADER:
            body = start + _HEADER
            end = body + int.from_bytes(self._bytes[start:body], "big")
            if len(self._bytes) < end:
                break
            messages.append(json.loads(self._bytes[body:end]))
            start = end
        del self._bytes[:start]
        return messages
