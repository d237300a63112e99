"""What the hook of a gate is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayvisor.faults import Exit

__all__ = ["Gate"]


class Gate:
    """An engine that is up and waits to be brought up to date before it serves.

    Parameters
    ----------
    child
        Path of the engine.
    incarnation
        Which of its incarnations.
    ask
        How it is reached.
    predecessor
        How the incarnation before it ended, with the fault where there was one; None for the first.

    Examples
    --------
    >>> async def sync_weights(gate: Gate) -> None:
    ...     if gate.predecessor is not None and gate.predecessor.fault is not None:
    ...         print(f"it is made anew after {gate.predecessor.fault.root}")
    ...     await gate.call("update_weights", {"version": 7})
    """

    __slots__ = ("_ask", "child", "incarnation", "predecessor")

    def __init__(
        self,
        child: str,
        incarnation: int,
        ask: Callable[..., Awaitable[Any]],
        predecessor: Exit | None = None,
    ) -> None:
        self.child = child
        self.incarnation = incarnation
        self._ask = ask
        self.predecessor = predecessor

    def __repr__(self) -> str:
        return f"<gate of {self.child}, incarnation {self.incarnation}>"

    async def call(self, method: str, *args: Any, timeout: float = 60.0, **kwargs: Any) -> Any:
        """Have the engine carry out one of the calls it offers beside requests.

        Parameters
        ----------
        method
            Of vLLM's ``AsyncLLM``: ``collective_rpc``, ``update_weights``, ``get_weight_version``, ...
        args, kwargs
            What it is called with: plain data.
        timeout
            Seconds it may take.

        Raises
        ------
        ChildUnavailableError
            The incarnation has ended.
        HostCallFailedError
            The engine raised, or offers no such call.
        """
        return await self._ask(self.child, self.incarnation, method, args, kwargs, timeout)
