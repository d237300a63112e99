"""What becomes of actors, learnt from outside, for actors whose methods are somebody else's.

A user's actor gets no method of ours and no concurrency group (that would move its methods off its main
thread), so what becomes of it is learnt from the cluster. By push: one subscription for all actors, some 11
ms after the fact, with snapshots of Ray's table now and then. The push API of Ray is private; while it is
missing or broken each actor is asked instead, by a call that Ray gives every actor and that is answered
between the actor's own. Either way it comes as one [`ActorSnapshot`][rayvisor._backends.ray.watch.Sight].

An actor that Ray cannot reach (ActorUnavailableError) is not dead: Ray has not ruled. It is doubted, and
asked again until it answers, or Ray rules.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import Any

import anyio

from rayvisor._backends.ray.cluster import RayCluster
from rayvisor._backends.ray.errors import RayCallTimeout, end_of, is_ray_error
from rayvisor._backends.ray.push import PushChannel
from rayvisor._backends.ray.table import ActorState, Row, died_of, look_up, read_row, worker_end
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination

__all__ = ["ActorSnapshot", "ActorState", "ActorWatch", "Watched"]

log = get_logger("rayvisor.ray")

_ASK_SECONDS = 0.5
"""Between two questions to an actor while nothing is pushed."""
_SNAPSHOT_SECONDS = 10.0
_ROW_SECONDS = 5.0
_WORKER_SECONDS = 2.0
_DOUBT_SECONDS = (0.1, 2.0)
"""The first pause, and the longest, before an actor that could not be reached is asked again."""
_PAUSES = (0.05, 0.2, 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class ActorSnapshot:
    """What is known of an actor now."""

    state: ActorState
    restarts: int = 0
    """How often it was restarted by Ray, as far as is known: a new life is a higher number."""
    end: Termination | None = None
    """How its last life ended, once one has."""
    doubts: tuple[Cause, ...] = ()
    """Why it cannot be reached just now; Ray has not ruled whether it lives."""
    max_restarts: int | None = None
    """How often Ray may restart it (-1: always); None: not known."""

    @property
    def restartable(self) -> bool:
        """Whether it is known that Ray would restart it once more."""
        most = self.max_restarts
        alive = self.state is not ActorState.DEAD
        return alive and most is not None and (most < 0 or self.restarts < most)


class Watched:
    """One actor that is watched.

    Attributes
    ----------
    handle
        Ray's handle.
    sight
        What is known of it now.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.watchers = 0
        self.sight = ActorSnapshot(ActorState.RESTARTING)
        self.worker = b""
        """Id of the worker that it lives in, or lived in last."""
        self.node = ""
        """Address of that worker's node."""
        self.seated: object = None
        """Process and node that answered last, while nothing is pushed."""
        self.asked_for = asyncio.Event()
        self.turn = asyncio.Lock()
        """Rows are taken in the order in which they came."""
        self._news = asyncio.Event()

    def show(self, sight: ActorSnapshot) -> None:
        """Take a new sight, if it is news: lives follow each other, and so do the states of one."""
        now = self.sight
        if sight != now and now.state is not ActorState.DEAD and _order(sight) >= _order(now):
            self.sight = sight
            news, self._news = self._news, asyncio.Event()
            news.set()

    def doubt(self, causes: tuple[Cause, ...]) -> None:
        """Take note that it could not be reached, and have it asked at once."""
        if self.sight.state is ActorState.ALIVE:
            self.show(replace(self.sight, doubts=causes))
            self.asked_for.set()

    def reached(self, ray_restarts: int) -> None:
        """Take note that it has answered in this life of its."""
        if self.sight.doubts and self.sight.restarts == ray_restarts:
            self.show(replace(self.sight, doubts=()))

    async def after(self, seen: ActorSnapshot) -> ActorSnapshot:
        """Wait until there is something else to be seen."""
        while self.sight == seen:
            await self._news.wait()
        return self.sight

    async def ended(self) -> Termination:
        """Wait until it has ended for good."""
        sight = self.sight
        while sight.state is not ActorState.DEAD or sight.end is None:
            sight = await self.after(sight)
        return sight.end


def _order(sight: ActorSnapshot) -> tuple[int, int, int]:
    # An actor that is dead is so whatever the number of its lives.
    return (sight.state is ActorState.DEAD, sight.restarts, sight.state)


class ActorWatch:
    """Watches any number of actors of one cluster.

    Parameters
    ----------
    cluster
        The connection.
    push
        Whether to try Ray's push API. Without it every actor is asked.
    """

    def __init__(self, cluster: RayCluster, *, push: bool = True) -> None:
        self._cluster = cluster
        self._channel = PushChannel(cluster, "Actor", hear=self._hear, catch_up=self._ask_for_all)
        self._channel.missing = not push
        self._watched: dict[bytes, Watched] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._explaining: set[asyncio.Task[None]] = set()

    @property
    def push(self) -> bool:
        """Whether Ray's push API is there, and wanted."""
        return not self._channel.missing

    @property
    def pushing(self) -> bool:
        """Whether news come by push now."""
        return self._channel.telling

    def add(self, actor: Any) -> Watched:
        """Watch an actor; each `add` asks for a `remove`."""
        key = _key(actor)
        if key not in self._watched:
            watched = self._watched[key] = Watched(actor)
            if not self._channel.missing:
                self._channel.start()
            self._tasks[key] = asyncio.create_task(self._attend(watched), name="watch of an actor")
        self._watched[key].watchers += 1
        return self._watched[key]

    def remove(self, actor: Any) -> None:
        """Watch an actor no more, if nobody else does."""
        key = _key(actor)
        if key in self._watched:
            self._watched[key].watchers -= 1
            if not self._watched[key].watchers:
                self._drop(key)

    def _drop(self, key: bytes) -> None:
        watched, task = self._watched.pop(key, None), self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        if watched is not None and watched.sight.state is not ActorState.DEAD:
            cause = Cause("ActorLetGo", "nobody watches this actor any more")
            watched.show(ActorSnapshot(ActorState.DEAD, end=Termination(causes=(cause,), unavailable=True)))

    async def close(self) -> None:
        """Watch nothing any more."""
        await self._channel.close()
        tasks = [*self._tasks.values(), *self._explaining]
        for key in list(self._watched):
            self._drop(key)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self, watched: Watched) -> None:
        """Look the actor up in Ray's table; without an answer nothing changes."""
        row = await self._row(watched)
        if row is not None:
            await self._take_news(watched, row)

    async def _row(self, watched: Watched) -> Row | None:
        actor_id = watched.handle._actor_id  # noqa: SLF001 - Ray gives an actor's id in no other way
        try:
            return await self._cluster.call(
                "the actor's row", lambda: look_up(actor_id), timeout=_ROW_SECONDS
            )
        except RayCallTimeout as timeout:
            log.warning("ray.table.silent", why=str(timeout))
        except Exception as error:  # noqa: BLE001 - a private API may fail in any way; asking carries on
            log.warning("ray.table.unavailable", error=f"{type(error).__name__}: {error}"[:500])
        return None

    # --- push -----------------------------------------------------------------------------------

    def _hear(self, key: bytes, record: Any) -> None:
        watched = self._watched.get(key)
        if watched is None:
            return
        row = read_row(record)
        task = asyncio.create_task(self._take_news(watched, row), name="news of an actor")
        self._explaining.add(task)
        task.add_done_callback(self._explaining.discard)

    async def _take_news(self, watched: Watched, row: Row) -> None:
        try:
            await self._take(watched, row)
        except Exception:  # a record that cannot be read must not cost the news: the actor is asked
            log.exception("ray.record.unreadable", state=row.state)
            watched.asked_for.set()

    async def _take(self, watched: Watched, row: Row) -> None:
        """Show what a row says, with how the actor's worker ended."""
        async with watched.turn:
            if watched.sight.state is ActorState.DEAD:
                return
            watched.show(await self._seen(watched, row))
            watched.worker, watched.node = row.worker or watched.worker, row.node or watched.node

    async def _seen(self, watched: Watched, row: Row) -> ActorSnapshot:
        sight = watched.sight
        end, doubts = sight.end, sight.doubts
        newer = row.restarts > sight.restarts or row.state is ActorState.DEAD
        if newer and (row.restarts or row.state is ActorState.DEAD):
            doubts = ()
            # While an actor is being restarted its row names no worker.
            node = row.node or watched.node
            ended = b"" if row.state is ActorState.ALIVE else row.worker
            ended = ended or row.last_worker or (watched.worker if watched.worker != row.worker else b"")
            if not ended and row.restarts:
                ended = await self._last_worker(watched)
            worker = None if row.lost_its_node else await self._worker(ended, node)
            if row.state is ActorState.DEAD:
                end = died_of(row, worker)
            else:
                end = worker or Termination(causes=(Cause("ActorDiedError", "Ray restarts it"),), node=node)
        return ActorSnapshot(row.state, row.restarts, end, doubts, row.max_restarts)

    async def _last_worker(self, watched: Watched) -> bytes:
        """Ask for what a record that was pushed leaves out; the table may be a moment behind."""
        for pause in _PAUSES:
            row = await self._row(watched)
            if row is None or row.last_worker:
                return b"" if row is None else row.last_worker
            await anyio.sleep(pause)
        return b""

    async def _worker(self, worker: bytes, node: str) -> Termination | None:
        if not worker:
            return None
        try:
            return await self._cluster.call(
                "the worker's row", lambda: worker_end(worker, node), timeout=_WORKER_SECONDS
            )
        except Exception as error:  # noqa: BLE001 - as above: what the actor's own row says is enough
            log.warning("ray.table.unavailable", error=f"{type(error).__name__}: {error}"[:500])
            return None

    def _ask_for_all(self) -> None:
        for watched in self._watched.values():
            watched.asked_for.set()

    # --- asking -----------------------------------------------------------------------------------

    async def _attend(self, watched: Watched) -> None:
        """Ask again and again: rarely while news are pushed, often while they are not, or in doubt."""
        pause = 0.0
        look = True
        while watched.sight.state is not ActorState.DEAD:
            if look and self.pushing:
                await self.look(watched)
            away = self.pushing and watched.sight.state is ActorState.RESTARTING
            if away or await self._ask(watched):
                pause = _SNAPSHOT_SECONDS if self.pushing else _ASK_SECONDS
            else:
                first, longest = _DOUBT_SECONDS
                # Many actors of a lost node are not to be asked in one instant.
                pause = min(max(first, 2 * pause), longest) * random.uniform(0.5, 1.0)
                watched.asked_for.clear()
            with anyio.move_on_after(pause):
                await watched.asked_for.wait()
            look = watched.asked_for.is_set() or bool(watched.sight.doubts)
            watched.asked_for.clear()

    async def _ask(self, watched: Watched) -> bool:
        """Have the actor answer or fail; False if it cannot be reached."""
        ray_restarts = watched.sight.restarts
        try:
            # A question of ours is never repeated by Ray: it waits its turn behind the actor's own calls.
            seated = await watched.handle.__ray_call__.options(max_task_retries=0).remote(_seat())
        except Exception as error:  # noqa: BLE001 - Ray's are sorted out; with others asking is of no use
            if not is_ray_error(error):
                log.warning("actor.not_asked", error=f"{type(error).__name__}: {error}"[:500])
                return True
            end = end_of(error)
            if watched.sight.restarts != ray_restarts:
                return True  # that was another life of it
            if end.unavailable:
                watched.doubt(end.causes)
                return False
            if "RayActorError" in {kind.__name__ for kind in type(error).__mro__} or end.out_of_memory:
                await self.look(watched)  # the table knows more, if it can be had
                watched.show(ActorSnapshot(ActorState.DEAD, watched.sight.restarts, end))
            return True
        if watched.sight.restarts == ray_restarts:
            await self._answered(watched, seated)
        return True

    async def _answered(self, watched: Watched, seated: object) -> None:
        before, watched.seated = watched.seated, seated
        ray_restarts, moved = watched.sight.restarts, before not in {None, seated}
        if moved:
            await self.look(watched)  # another life of it, of which no news has come
        sight = watched.sight
        here = replace(sight, state=ActorState.ALIVE, doubts=())
        if self.pushing or not moved or sight.restarts > ray_restarts:
            watched.show(here)
        else:
            end = Termination(causes=(*sight.doubts, Cause("ActorDiedError", "Ray has restarted it")))
            watched.show(replace(here, restarts=sight.restarts + 1, end=end))


def _seat() -> Any:
    """What tells one process of an actor from the next; sent whole, since rayvisor may not be there."""

    def slot(_: object) -> tuple[str, int]:
        import os
        import socket

        return socket.gethostname(), os.getpid()

    return slot


def _key(actor: Any) -> bytes:
    found: bytes = actor._actor_id.binary()  # noqa: SLF001 - Ray gives an actor's id in no other way
    return found
