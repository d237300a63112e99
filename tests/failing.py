"""A child that fails on demand."""

from __future__ import annotations

import anyio

__all__ = ["Failing"]


class Failing:
    """A coroutine that fails each time ``fail`` is set."""

    def __init__(self) -> None:
        self.fail = anyio.Event()

    async def run(self) -> None:
        await self.fail.wait()
        self.fail = anyio.Event()
        raise OSError("the disk is full")
