"""The state of actors, learnt from outside, for actors whose methods belong to others.

A user's actor gets no method of ours and no concurrency group (that would move its methods off its main
thread), so its state is learnt from the cluster: by push, with one subscription for all actors, about 11 ms
after a change, and by looking it up in Ray's table periodically. Ray's push API is private. While it is
missing or broken, each actor is polled instead, with a call that Ray gives every actor and that is answered
between the actor's own. Both ways lead to one
[`ActorSnapshot`][rayvisor._backends.ray.watch.ActorSnapshot].

An actor that Ray cannot reach (ActorUnavailableError) is not dead, since its death is not confirmed. It is
suspect, and is polled until it answers or Ray reports its death.
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
from rayvisor._backends.ray.table import ActorState, Row, actor_end, look_up, read_row, worker_end
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, RayTimeouts

__all__ = ["ActorSnapshot", "ActorState", "ActorWatch", "WatchedActor"]

log = get_logger("rayvisor.ray")

_PAUSES = (0.05, 0.2, 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class ActorSnapshot:
    """The known state of an actor."""

    state: ActorState
    restarts: int = 0
    """Number of restarts by Ray, as far as known: it tells one incarnation from the next."""
    end: Termination | None = None
    """How its last incarnation ended, once one has."""
    suspect_causes: tuple[Cause, ...] = ()
    """Why it cannot be reached now; its death is not confirmed."""
    max_restarts: int | None = None
    """Number of restarts that Ray may make (-1: unlimited); None: not known."""

    @property
    def restartable(self) -> bool:
        """Whether it is known that Ray would restart it once more."""
        most = self.max_restarts
        alive = self.state is not ActorState.DEAD
        return alive and most is not None and (most < 0 or self.restarts < most)


class WatchedActor:
    """One actor that is watched.

    Attributes
    ----------
    handle
        Ray's handle.
    snapshot
        Its known state.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.watchers = 0
        self.snapshot = ActorSnapshot(ActorState.RESTARTING)
        self.worker = b""
        """Id of its worker, or of its last one."""
        self.node = ""
        """Address of that worker's node."""
        self.answered_by: object = None
        """Id of the worker that answered the last poll."""
        self.poll_soon = asyncio.Event()
        self.lock = asyncio.Lock()
        """Held while a row is applied: rows are applied in the order in which they came."""
        self._changed = asyncio.Event()

    def update(self, snapshot: ActorSnapshot) -> None:
        """Set a new snapshot unless it is older: incarnations follow each other, as do the states of each."""
        now = self.snapshot
        if snapshot != now and now.state is not ActorState.DEAD and _order(snapshot) >= _order(now):
            self.snapshot = snapshot
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def suspect(self, causes: tuple[Cause, ...]) -> None:
        """Record that it could not be reached, and have it polled at once."""
        if self.snapshot.state is ActorState.ALIVE:
            self.update(replace(self.snapshot, suspect_causes=causes))
            self.poll_soon.set()

    def reached(self, ray_restarts: int) -> None:
        """Record that it has answered in this incarnation."""
        if self.snapshot.suspect_causes and self.snapshot.restarts == ray_restarts:
            self.update(replace(self.snapshot, suspect_causes=()))

    async def after(self, seen: ActorSnapshot) -> ActorSnapshot:
        """Wait until the snapshot is another one, and return it."""
        while self.snapshot == seen:
            await self._changed.wait()
        return self.snapshot

    async def ended(self) -> Termination:
        """Wait until it has ended permanently."""
        snapshot = self.snapshot
        while snapshot.state is not ActorState.DEAD or snapshot.end is None:
            snapshot = await self.after(snapshot)
        return snapshot.end


def _order(snapshot: ActorSnapshot) -> tuple[int, int, int]:
    # A dead actor stays dead whatever the number of its restarts.
    return (snapshot.state is ActorState.DEAD, snapshot.restarts, snapshot.state)


class ActorWatch:
    """Watches any number of actors of one cluster.

    Parameters
    ----------
    cluster
        The connection.
    push
        Whether to try Ray's push API. Without it every actor is polled.
    timeouts
        Intervals between two polls, and times for Ray's tables and its push API.
    """

    def __init__(
        self, cluster: RayCluster, *, push: bool = True, timeouts: RayTimeouts = DEFAULT_TIMEOUTS.ray
    ) -> None:
        self._cluster = cluster
        self._timeouts = timeouts
        self._channel = PushChannel(
            cluster, "Actor", on_record=self._on_record, on_gap=self._poll_all, timeouts=timeouts
        )
        self._channel.unsupported = not push
        self._watched: dict[bytes, WatchedActor] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._applying: set[asyncio.Task[None]] = set()

    @property
    def push(self) -> bool:
        """Whether Ray's push API exists and is to be used."""
        return not self._channel.unsupported

    @property
    def pushing(self) -> bool:
        """Whether changes are pushed now."""
        return self._channel.active

    def add(self, actor: Any) -> WatchedActor:
        """Watch an actor; each `add` needs a `remove`."""
        key = _key(actor)
        if key not in self._watched:
            watched = self._watched[key] = WatchedActor(actor)
            if not self._channel.unsupported:
                self._channel.start()
            self._tasks[key] = asyncio.create_task(self._poll_repeatedly(watched), name="watch of an actor")
        self._watched[key].watchers += 1
        return self._watched[key]

    def remove(self, actor: Any) -> None:
        """Undo one `add`; after the last one the actor is no longer watched."""
        key = _key(actor)
        if key in self._watched:
            self._watched[key].watchers -= 1
            if not self._watched[key].watchers:
                self._drop(key)

    def _drop(self, key: bytes) -> None:
        watched, task = self._watched.pop(key, None), self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        if watched is not None and watched.snapshot.state is not ActorState.DEAD:
            cause = Cause("ActorNotWatched", "this actor is no longer watched")
            watched.update(ActorSnapshot(ActorState.DEAD, end=Termination(causes=(cause,), unavailable=True)))

    async def close(self) -> None:
        """Stop watching all actors."""
        await self._channel.close()
        tasks = [*self._tasks.values(), *self._applying]
        for key in list(self._watched):
            self._drop(key)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self, watched: WatchedActor) -> None:
        """Look up the actor in Ray's table; without an answer nothing changes."""
        row = await self._row(watched)
        if row is not None:
            await self._apply_logged(watched, row)

    async def _row(self, watched: WatchedActor) -> Row | None:
        actor_id = watched.handle._actor_id  # noqa: SLF001 - Ray gives an actor's id in no other way
        try:
            return await self._cluster.call(
                "the actor's row", lambda: look_up(actor_id), timeout=self._timeouts.actor_row
            )
        except RayCallTimeout as timeout:
            log.warning("ray.table.silent", error=str(timeout))
        except Exception as error:  # noqa: BLE001 - a private API may fail in any way; polling continues
            log.warning("ray.table.unavailable", error=f"{type(error).__name__}: {error}"[:500])
        return None

    # --- push -----------------------------------------------------------------------------------

    def _on_record(self, key: bytes, record: Any) -> None:
        watched = self._watched.get(key)
        if watched is None:
            return
        row = read_row(record)
        task = asyncio.create_task(self._apply_logged(watched, row), name="record of an actor")
        self._applying.add(task)
        task.add_done_callback(self._applying.discard)

    async def _apply_logged(self, watched: WatchedActor, row: Row) -> None:
        try:
            await self._apply(watched, row)
        except Exception:  # a change must not be lost to a record that cannot be read: the actor is polled
            log.exception("ray.record.unreadable", state=row.state)
            watched.poll_soon.set()

    async def _apply(self, watched: WatchedActor, row: Row) -> None:
        """Update the snapshot from a row, and with how the actor's worker ended."""
        async with watched.lock:
            if watched.snapshot.state is ActorState.DEAD:
                return
            watched.update(await self._snapshot_from(watched, row))
            watched.worker, watched.node = row.worker or watched.worker, row.node or watched.node

    async def _snapshot_from(self, watched: WatchedActor, row: Row) -> ActorSnapshot:
        snapshot = watched.snapshot
        end, suspect_causes = snapshot.end, snapshot.suspect_causes
        newer = row.restarts > snapshot.restarts or row.state is ActorState.DEAD
        if newer and (row.restarts or row.state is ActorState.DEAD):
            suspect_causes = ()
            # While an actor is being restarted its row names no worker.
            node = row.node or watched.node
            ended = b"" if row.state is ActorState.ALIVE else row.worker
            ended = ended or row.last_worker or (watched.worker if watched.worker != row.worker else b"")
            if not ended and row.restarts:
                ended = await self._last_worker(watched)
            worker = None if row.lost_its_node else await self._worker(ended, node)
            if row.state is ActorState.DEAD:
                end = actor_end(row, worker)
            else:
                end = worker or Termination(causes=(Cause("ActorDiedError", "Ray restarts it"),), node=node)
        return ActorSnapshot(row.state, row.restarts, end, suspect_causes, row.max_restarts)

    async def _last_worker(self, watched: WatchedActor) -> bytes:
        """Look up the worker that a pushed record leaves out; the table may be a moment behind."""
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
                "the worker's row", lambda: worker_end(worker, node), timeout=self._timeouts.worker_row
            )
        except Exception as error:  # noqa: BLE001 - as above: the actor's own row is enough
            log.warning("ray.table.unavailable", error=f"{type(error).__name__}: {error}"[:500])
            return None

    def _poll_all(self) -> None:
        for watched in self._watched.values():
            watched.poll_soon.set()

    # --- polling ----------------------------------------------------------------------------------

    async def _poll_repeatedly(self, watched: WatchedActor) -> None:
        """Poll until it is dead: rarely while changes are pushed, otherwise, or while suspect, often."""
        pause = 0.0
        look_up_first = True
        while watched.snapshot.state is not ActorState.DEAD:
            if look_up_first and self.pushing:
                await self.refresh(watched)
            away = self.pushing and watched.snapshot.state is ActorState.RESTARTING
            if away or await self._poll(watched):
                pause = self._timeouts.pushed_poll if self.pushing else self._timeouts.actor_poll
            else:
                pause = min(max(self._timeouts.suspect_first, 2 * pause), self._timeouts.suspect_longest)
                # The many actors of a lost node must not be polled in the same instant.
                pause *= random.uniform(0.5, 1.0)
                watched.poll_soon.clear()
            with anyio.move_on_after(pause):
                await watched.poll_soon.wait()
            look_up_first = watched.poll_soon.is_set() or bool(watched.snapshot.suspect_causes)
            watched.poll_soon.clear()

    async def _poll(self, watched: WatchedActor) -> bool:
        """Have the actor answer or fail; return False if it cannot be reached."""
        ray_restarts = watched.snapshot.restarts
        try:
            # Ray never retries a poll. It waits its turn behind the actor's own calls.
            worker = await watched.handle.__ray_call__.options(max_task_retries=0).remote(_worker_id())
        except Exception as error:  # noqa: BLE001 - Ray's errors are sorted out; after others a poll is useless
            if not is_ray_error(error):
                log.warning("actor.not_polled", error=f"{type(error).__name__}: {error}"[:500])
                return True
            end = end_of(error)
            if watched.snapshot.restarts != ray_restarts:
                return True  # it was another incarnation
            if end.unavailable:
                watched.suspect(end.causes)
                return False
            if "RayActorError" in {kind.__name__ for kind in type(error).__mro__} or end.out_of_memory:
                await self.refresh(watched)  # the table has more details, if it can be read
                watched.update(ActorSnapshot(ActorState.DEAD, watched.snapshot.restarts, end))
            return True
        if watched.snapshot.restarts == ray_restarts:
            await self._on_answer(watched, worker)
        return True

    async def _on_answer(self, watched: WatchedActor, worker: object) -> None:
        before, watched.answered_by = watched.answered_by, worker
        ray_restarts, moved = watched.snapshot.restarts, before not in {None, worker}
        if moved:
            await self.refresh(watched)  # another incarnation, whose start was not pushed
        snapshot = watched.snapshot
        here = replace(snapshot, state=ActorState.ALIVE, suspect_causes=())
        if self.pushing or not moved or snapshot.restarts > ray_restarts:
            watched.update(here)
        else:
            end = Termination(
                causes=(*snapshot.suspect_causes, Cause("ActorDiedError", "Ray has restarted it"))
            )
            watched.update(replace(here, restarts=snapshot.restarts + 1, end=end))


def _worker_id() -> Any:
    """Return a function for the actor that returns its worker's id, which differs after each restart.

    It is a local function, so that it is sent by value: rayvisor may be missing in the actor's environment.
    """

    def worker_id(_: object) -> str:
        import ray

        return ray.get_runtime_context().get_worker_id()

    return worker_id


def _key(actor: Any) -> bytes:
    found: bytes = actor._actor_id.binary()  # noqa: SLF001 - Ray gives an actor's id in no other way
    return found
