"""Deaths of actors learnt from outside, for actors whose methods are somebody else's.

A user's actor gets no method of ours and no concurrency group (that would move its methods off its main
thread), so its death is learnt from the cluster: by push, one subscription for all actors, some 11 ms after
the fact. The push API of Ray is private; where it is missing or breaks, each actor is probed by Ray's own
no-op method instead, which answers between the actor's own calls and fails when the actor dies. Either way
the *cause* comes from asking the dead actor.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio

from rayvisor._engine.link import HostEnd
from rayvisor._ray.cluster import RayCluster
from rayvisor._ray.errors import end_of, is_ray_error
from rayvisor.faults import Cause
from rayvisor.log import get_logger

__all__ = ["ActorWatch"]

log = get_logger("rayvisor.ray")

_ASK_SECONDS = 5.0
_PROBE_SECONDS = 0.5
_SNAPSHOT_SECONDS = 10.0
_BATCH = 500


class ActorWatch:
    """Watches any number of actors of one cluster.

    Parameters
    ----------
    cluster
        The connection.
    push
        Whether to try Ray's push API. Without it every actor is probed.
    """

    def __init__(self, cluster: RayCluster, *, push: bool = True) -> None:
        self._cluster = cluster
        self._push = push
        self._handles: dict[bytes, Any] = {}
        self._ends: dict[bytes, asyncio.Future[HostEnd]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriber: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    @property
    def pushing(self) -> bool:
        """Whether deaths come by push now."""
        return self._push and self._subscribed.is_set()

    async def add(self, actor: Any) -> asyncio.Future[HostEnd]:
        """Watch an actor; the future gets its end."""
        key = actor._actor_id.binary()  # noqa: SLF001 - Ray gives an actor's id in no other way
        if key in self._ends:
            return self._ends[key]
        self._handles[key] = actor
        end = self._ends[key] = asyncio.get_running_loop().create_future()
        if self._push and self._subscriber is None:
            self._subscriber = asyncio.create_task(self._subscribe(), name="actor subscription")
        self._own(self._probe(key))
        return end

    def remove(self, actor: Any) -> None:
        """Watch an actor no more."""
        key = actor._actor_id.binary()  # noqa: SLF001 - as above
        self._handles.pop(key, None)
        self._let_go(self._ends.pop(key, None))

    async def close(self) -> None:
        """Watch nothing any more."""
        tasks = [*self._tasks, *([self._subscriber] if self._subscriber is not None else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for end in self._ends.values():
            self._let_go(end)

    @staticmethod
    def _let_go(end: asyncio.Future[HostEnd] | None) -> None:
        if end is not None and not end.done():
            cause = Cause("ActorLetGo", "nobody watches this actor any more")
            end.set_result(HostEnd(causes=(cause,), unavailable=True))

    def _own(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _subscribe(self) -> None:
        """Read the push channel; when that fails, the probes alone carry on."""
        try:
            from ray._private.gcs_pubsub import GcsAioActorSubscriber
            from ray.core.generated import gcs_pb2

            # A module made by protobuf's compiler: mypy sees no names in it.
            dead = gcs_pb2.ActorTableData.ActorState.DEAD  # type: ignore[attr-defined]
            subscriber: Any = GcsAioActorSubscriber(address=self._cluster.gcs_address)
            with anyio.fail_after(_ASK_SECONDS):
                await subscriber.subscribe()
            self._subscribed.set()
            try:
                while True:
                    for key, record in await subscriber.poll(batch_size=_BATCH):
                        if record.state == dead and key in self._handles:
                            self._own(self._ask(key))
            finally:
                self._subscribed.clear()
                with anyio.CancelScope(shield=True), anyio.move_on_after(_ASK_SECONDS):
                    await subscriber.close()
        except Exception as error:  # noqa: BLE001 - a private API may fail in any way; the probes carry on
            self._push = False
            log.warning("ray.push.unavailable", error=f"{type(error).__name__}: {error}"[:500])

    async def _probe(self, key: bytes) -> None:
        """Ask the actor again and again: rarely while deaths are pushed, often while they are not."""
        while key in self._handles and not await self._ask(key, bounded=False):  # noqa: ASYNC110 - it polls
            await anyio.sleep(_SNAPSHOT_SECONDS if self.pushing else _PROBE_SECONDS)

    async def _ask(self, key: bytes, *, bounded: bool = True) -> bool:
        """Have the actor answer or fail; True once its end is known."""
        actor = self._handles.get(key)
        if actor is None:
            return True
        deadline = _ASK_SECONDS if bounded else None  # a probe waits its turn behind the actor's own calls
        try:
            with anyio.move_on_after(deadline):
                await actor.__ray_ready__.remote()
        except Exception as error:
            if not is_ray_error(error):
                raise
            end = end_of(error)
            if end.unavailable:
                return False
            future = self._ends.get(key)
            if future is not None and not future.done():
                future.set_result(end)
            return True
        return False
