"""The argument of a gate's hook: an engine that is up but does not serve yet."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from rayvisor._validation import seconds
from rayvisor.faults import Exit

__all__ = ["Gate"]

CALL_SECONDS = 60.0
"""How long a call may take unless `Gate.options` says otherwise."""


class Gate:
    """An engine that is up and waits to be brought up to date before it serves.

    Parameters
    ----------
    child
        Path of the engine.
    incarnation
        Number of its incarnation.
    ask
        Function that carries out the calls.
    predecessor
        How the previous incarnation ended, with its fault if there was one; None for the first incarnation.
    timeout
        Seconds a call may take.

    Examples
    --------
    >>> async def sync_weights(gate: Gate) -> None:
    ...     if gate.predecessor is not None and gate.predecessor.fault is not None:
    ...         print(f"restarted after {gate.predecessor.fault.root}")
    ...     await gate.options(timeout=300.0).call("update_weights", {"version": 7})
    """

    __slots__ = ("_ask", "_timeout", "child", "incarnation", "predecessor")

    def __init__(
        self,
        child: str,
        incarnation: int,
        ask: Callable[..., Awaitable[Any]],
        predecessor: Exit | None = None,
        *,
        timeout: float = CALL_SECONDS,
    ) -> None:
        self.child = child
        self.incarnation = incarnation
        self._ask = ask
        self.predecessor = predecessor
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<gate of {self.child}, incarnation {self.incarnation}>"

    def options(self, *, timeout: float) -> Gate:
        """Return the same gate with other options for its calls; this one is unchanged.

        Parameters
        ----------
        timeout
            Seconds a call may take; 60 by default.

        Raises
        ------
        SpecError
            When the timeout cannot work.
        """
        seconds("timeout", timeout, exclusive=True, below=math.inf)
        return Gate(self.child, self.incarnation, self._ask, self.predecessor, timeout=timeout)

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Have the engine carry out one of the calls it offers beside requests.

        All arguments but the first belong to the method, whatever their names; `options` sets a timeout.

        Parameters
        ----------
        method
            Method of vLLM's ``AsyncLLM``: ``collective_rpc``, ``update_weights``, ``get_weight_version``, ...
        args, kwargs
            Arguments of the method: plain data.

        Raises
        ------
        ChildUnavailableError
            The incarnation has ended.
        EngineCallError
            The engine raised, did not answer in time, or offers no such call.
        TimeoutError
            Its host did not answer in time.
        """
        return await self._ask(self.child, self.incarnation, method, args, kwargs, self._timeout)
