"""Waiting for the first of several events."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["first_of"]


async def first_of(*awaitables: Any) -> None:
    """Wait until one of them is done, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
