"""The operations of an interface to a running tree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rayvisor.records import Record
    from rayvisor.status import Node
    from statecharts import Drawing

__all__ = ["Controls"]


class Controls(Protocol):
    """The public methods of a supervisor that interfaces call."""

    def status(self, path: str = "") -> Node: ...

    def chart(self, path: str) -> Drawing: ...

    def metrics(self) -> str: ...

    def watch(self) -> AsyncIterator[Record]: ...

    async def pause(self, path: str = "", *, mode: Any = ..., timeout: float = ...) -> int: ...

    async def resume(self, path: str = "") -> None: ...

    async def restart(self, path: str = "") -> None: ...

    async def terminate_child(self, path: str) -> None: ...

    async def stop(self) -> None: ...

    def recovery_instructions(self, path: str = "") -> tuple[str, ...]: ...

    async def set_recovery_instruction(
        self, instruction: str, path: str = "", *, params: Any = ..., request_id: str = ...
    ) -> dict[str, dict[str, Any]]: ...
