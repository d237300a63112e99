"""Measures how Ray treats an actor, and the current call, for each way in which the actor can end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray

import rayvisor as rv


class Actor:
    """Ends in the requested way in the first call; later calls return an answer."""

    def end(self, how: str, calls: Path) -> str:
        """Record the call and end."""
        with calls.open("a", encoding="utf-8") as file:
            file.write(".")
        if calls.stat().st_size == 1 and how == "os._exit(1)":
            os._exit(1)
        if calls.stat().st_size == 1 and how == "exit_actor()":
            leave: Any = ray.actor.exit_actor  # untyped
            leave()
        if calls.stat().st_size == 1:
            raise ValueError(how)
        return f"pid {os.getpid()}"


def measure(how: str, restarts: int, retries: int) -> tuple[str, int, str]:
    """Return what the caller gets, how often the call ran, and what a later call gets."""
    make: Any = ray.remote(num_cpus=0, max_restarts=restarts, max_task_retries=retries)(Actor)
    actor = make.remote()
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls"
        first = _outcome(partial(ray.get, actor.end.remote(how, calls), timeout=60))
        ran = calls.stat().st_size
        ask = partial(actor.end.remote, how, calls)
        # The actor is unavailable while Ray restarts it, so the call is repeated.
        later = _outcome(rv.retry(ask(), max_attempts=20, timeout=60, reprobe=lambda _: ask()).result)
    ray.kill(actor)
    return first, ran, later


def _outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
        return type(error).__name__
    return "an answer"


def main() -> None:
    """Print the table."""
    print(f"Ray {ray.__version__}; r: max_restarts, t: max_task_retries")
    limits = ((0, 0), (-1, 0), (-1, -1))
    cases = [(how, *limit) for how in ("os._exit(1)", "exit_actor()", "raise") for limit in limits]
    with ThreadPoolExecutor(len(cases)) as threads:
        for case, found in zip(cases, threads.map(lambda case: measure(*case), cases), strict=True):
            (how, restarts, retries), (first, ran, later) = case, found
            print(
                f"{how:13} r={restarts:2} t={retries:2}  caller: {first:29} ran {ran}x  later call: {later}"
            )


if __name__ == "__main__":
    ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False)
    main()
