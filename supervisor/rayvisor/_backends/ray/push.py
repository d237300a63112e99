"""Ray's push channels: changes that its control store publishes.

The API is private. While it is missing or broken, the reader of a channel polls Ray's public API instead. A
channel says whether it is active, and when changes may have been missed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import anyio

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._log import get_logger
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = ["PushChannel"]

log = get_logger("rayvisor.ray")

_BATCH = 500


class PushChannel:
    """One channel, read by one task until it is closed, and opened again when it breaks.

    Parameters
    ----------
    cluster
        The connection.
    kind
        What it publishes.
    on_record
        Called with the key and the record of each change.
    on_gap
        Called when changes may have been missed: once the channel is open, since it publishes only later
        changes, and once it is not.
    timeouts
        For opening and closing it, and pauses before it is opened again.
    """

    def __init__(
        self,
        cluster: RayCluster,
        kind: Literal["Actor", "NodeInfo"],
        *,
        on_record: Callable[[bytes, Any], None],
        on_gap: Callable[[], None],
        timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray,
    ) -> None:
        self._cluster = cluster
        self._timeouts = timeouts
        self._kind = kind
        self._on_record = on_record
        self._on_gap = on_gap
        self._task: asyncio.Task[None] | None = None
        self._subscription: _Subscription | None = None
        self._open = False
        self._closed = False
        self.unsupported = False
        """Whether this Ray has no such channel."""

    @property
    def active(self) -> bool:
        """Whether changes are published now."""
        return self._open and not self.unsupported

    def start(self) -> None:
        """Open it. Further calls have no effect."""
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name=f"Ray's channel {self._kind}")

    async def close(self) -> None:
        """Stop reading."""
        self._closed = True
        if self._subscription is not None:
            # A cancelled subscription of Ray's leaves a task behind that fails when Ray is gone.
            await self._subscription.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        first, longest = self._timeouts.resubscribe_first, self._timeouts.resubscribe_longest
        pause = first
        while True:
            try:
                subscription = self._subscription = await self._cluster.call("the push API", self._make)
                with anyio.fail_after(self._timeouts.subscribe):
                    await subscription.subscribe()
                self._open, pause = True, first
                self._on_gap()
                try:
                    await self._read_on(subscription)
                finally:
                    self._open = False
                    await subscription.close()
                if self._closed:
                    return
                log.warning(
                    "ray.push.broke", channel=self._kind, error="the subscription has ended", retry_in=pause
                )
            except (ImportError, AttributeError, TypeError) as error:
                self.unsupported = True  # this Ray has another API
                log.warning("ray.push.missing", channel=self._kind, error=str(error)[:500])
                self._on_gap()
                return
            except Exception as error:  # noqa: BLE001 - a private API may fail in any way; polling continues
                if self._closed:  # Ray's own poll fails if an answer comes during the close
                    return
                reason = f"{type(error).__name__}: {error}"[:500]
                log.warning("ray.push.broke", channel=self._kind, error=reason, retry_in=pause)
            self._on_gap()
            await anyio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _read_on(self, subscription: _Subscription) -> None:
        while changes := await subscription.poll():
            if self._closed:
                return
            for key, record in changes:
                self._on_record(key, record)

    def _make(self) -> _Subscription:
        # Imported in a thread, since it would block the loop.
        import_module("ray.core.generated.gcs_pb2")  # the classes of the records
        from ray._private import gcs_pubsub

        subscriber = getattr(gcs_pubsub, f"GcsAio{self._kind}Subscriber")
        address = self._cluster.gcs_address
        return _Subscription(
            lambda: subscriber(address=address), close_timeout=self._timeouts.subscription_close
        )


class _Subscription:
    """A subscriber of Ray's, created on the event loop that reads it."""

    def __init__(self, make: Callable[[], Any], *, close_timeout: float) -> None:
        self._make = make
        self._close_timeout = close_timeout
        self._made: Any = None

    async def subscribe(self) -> None:
        self._made = self._make()
        await self._made.subscribe()

    async def poll(self) -> Any:
        return [] if self._made is None else await self._made.poll(batch_size=_BATCH)

    async def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            # It is not used any more, so its errors do not matter.
            with (
                anyio.CancelScope(shield=True),
                anyio.move_on_after(self._close_timeout),
                contextlib.suppress(Exception),
            ):
                await made.close()
