"""Ray tasks under a policy: retried with delays, cancelled when they hang, with a history of attempts."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import ray

import rayvisor as rv

POLICY = rv.TaskPolicy(
    max_retries=3,
    retry_exceptions=(ConnectionError,),
    backoff=rv.Backoff(initial=0.1, maximum=2.0, first_delay_zero=False),
    timeout=60.0,
)


CRASHING_ATTEMPT = 2


def load(shard: int, folder: Path) -> str:
    """Load a shard; the first attempt loses its connection, the second one crashes its worker."""
    with (folder / str(shard)).open("a", encoding="utf-8") as file:
        file.write(".")
        tries = file.tell()
    if tries == 1:
        raise ConnectionResetError("the store went away")
    if tries == CRASHING_ATTEMPT:
        os._exit(1)
    return f"shard {shard}, loaded the {tries}rd time"


def hang() -> None:
    """Never return."""
    while True:
        time.sleep(0.1)


def main() -> None:
    """Load a shard and cancel a task that hangs."""
    with tempfile.TemporaryDirectory() as folder:
        task = rv.submit(load, 7, Path(folder), policy=POLICY)
        print(task.result(), task.state)
    for attempt in task.attempts:
        print(f"attempt {attempt.number}: {attempt.state} {attempt.error_type} {attempt.causes[-1:]}")
    stuck = rv.submit(hang, policy=rv.TaskPolicy(timeout=1.0, cancel_grace=2.0))
    try:
        stuck.result()
    except rv.TaskTimeoutError as error:
        print(error, "->", stuck.state)


if __name__ == "__main__":
    ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False)
    main()
