"""Messages between the simulated engine's processes: JSON, preceded by its length in four bytes."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["FrameDecoder", "encode_frame"]

_HEADER = 4


def encode_frame(message: Any) -> bytes:
    """Return the bytes of one message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(_HEADER, "big") + body


class FrameDecoder:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Add received bytes, and return the messages that are complete."""
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
