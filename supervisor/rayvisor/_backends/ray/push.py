"""Ray's push channels: what its control store tells of its own accord.

The API is private. While it is missing, or broken, whoever reads a channel asks Ray's public API instead: a
channel says whether it has news to give, and when to ask for what it may have missed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Literal

import anyio

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._log import get_logger

__all__ = ["PushChannel"]

log = get_logger("rayvisor.ray")

_SUBSCRIBE_SECONDS = 10.0
_CLOSE_SECONDS = 1.0
_PAUSE_SECONDS = (0.5, 10.0)
"""Before a channel that broke is opened again: at first, and at most."""
_BATCH = 500


class PushChannel:
    """One channel, read by one task until it is closed; opened again when it breaks.

    Parameters
    ----------
    cluster
        The connection.
    kind
        Of what it tells.
    hear
        Takes the key and the record of each change.
    catch_up
        Called when changes may have been missed: once it is open, since it tells only what comes after that,
        and once it is not.
    """

    def __init__(
        self,
        cluster: RayCluster,
        kind: Literal["Actor", "NodeInfo"],
        *,
        hear: Callable[[bytes, Any], None],
        catch_up: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._kind = kind
        self._hear = hear
        self._catch_up = catch_up
        self._task: asyncio.Task[None] | None = None
        self._subscription: _Subscription | None = None
        self._open = False
        self._closed = False
        self.missing = False
        """Whether this Ray has no such channel."""

    @property
    def telling(self) -> bool:
        """Whether it tells of changes now."""
        return self._open and not self.missing

    def start(self) -> None:
        """Open it, once."""
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name=f"Ray's channel {self._kind}")

    async def close(self) -> None:
        """Read no more."""
        self._closed = True
        if self._subscription is not None:
            # Cancelled instead, Ray's would leave a task behind that complains when Ray is gone.
            await self._subscription.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        pause, longest = _PAUSE_SECONDS
        while True:
            try:
                subscription = self._subscription = await self._cluster.call("the push API", self._make)
                with anyio.fail_after(_SUBSCRIBE_SECONDS):
                    await subscription.subscribe()
                self._open, pause = True, _PAUSE_SECONDS[0]
                self._catch_up()
                try:
                    await self._read_on(subscription)
                finally:
                    self._open = False
                    await subscription.close()
                if self._closed:
                    return
                log.warning(
                    "ray.push.broke", channel=self._kind, error="the subscription has ended", again=pause
                )
            except (ImportError, AttributeError, TypeError) as error:
                self.missing = True  # this Ray's is another one
                log.warning("ray.push.missing", channel=self._kind, error=str(error)[:500])
                self._catch_up()
                return
            except Exception as error:  # noqa: BLE001 - a private API may fail in any way; asking carries on
                if self._closed:  # Ray's own poll fails where the end and an answer come together
                    return
                why = f"{type(error).__name__}: {error}"[:500]
                log.warning("ray.push.broke", channel=self._kind, error=why, again=pause)
            self._catch_up()
            await anyio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _read_on(self, subscription: _Subscription) -> None:
        while news := await subscription.poll():
            if self._closed:
                return
            for key, record in news:
                self._hear(key, record)

    def _make(self) -> _Subscription:
        # Imported in a thread: it takes its time, and the loop has none.
        import ray.core.generated.gcs_pb2  # noqa: F401 - the records
        from ray._private import gcs_pubsub

        subscriber = getattr(gcs_pubsub, f"GcsAio{self._kind}Subscriber")
        address = self._cluster.gcs_address
        return _Subscription(lambda: subscriber(address=address))


class _Subscription:
    """A subscriber of Ray's: made on the event loop that reads it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    async def subscribe(self) -> None:
        self._made = self._make()
        await self._made.subscribe()

    async def poll(self) -> Any:
        return [] if self._made is None else await self._made.poll(batch_size=_BATCH)

    async def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            # Whatever it raises, it is of no use any more.
            with (
                anyio.CancelScope(shield=True),
                anyio.move_on_after(_CLOSE_SECONDS),
                contextlib.suppress(Exception),
            ):
                await made.close()
