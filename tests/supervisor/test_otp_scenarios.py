"""OTP's scenarios through the runtime: real tasks, real time, and the trace that OTP itself left."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import anyio

from rayvisor.testing.otp import difference
from tests.supervisor.scenarios import play

ARCHIVE = Path(__file__).parents[1] / "core" / "supervision" / "otp" / "traces.tar.gz"

DELIBERATE = {
    "simple_ignore_on_restart": "OTP's supervisor crashes (D9)",
    "simple_gated_terminate": "OTP counts one too few forever (D8)",
    # A restart waits for the proof that nothing is left, and meanwhile the supervisor goes on: a death that
    # is one too many is heard of before the child that died first is started, so it is not started in vain.
    "simultaneous_one_for_one_exceed": "no start in vain before giving up",
    "rnd_100421": "no start in vain before giving up",
    "rnd_100933": "no start in vain before giving up",
    "rnd_101325": "no start in vain before giving up",
    "rnd_701060": "no start in vain before giving up",
    # Children of a killed supervisor are ended by their shutdown here; OTP leaves them to themselves.
    "rnd_101487": "an orphan with brutal_kill is killed",
    "rnd_700029": "an orphan with brutal_kill is killed",
}


def _read() -> list[dict[str, Any]]:
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive.getmembers() if member.name.endswith(".json")]
        return [json.loads(archive.extractfile(member).read()) for member in members]  # type: ignore[union-attr]


FILES = [file for file in _read() if not any(step["op"] == "align" for step in file["scenario"]["steps"])]
SLEEPY = [file for file in FILES if any(step["op"] == "sleep" for step in file["scenario"]["steps"])]
NAMED = [file for file in FILES if file["kind"] == "named" and file not in SLEEPY]
RANDOM = [file for file in FILES if file["kind"] == "random" and file not in SLEEPY][::6]


async def _differences(files: list[dict[str, Any]], at_once: int) -> dict[str, str]:
    """Play scenarios side by side; how those that differ do so."""
    found: dict[str, str] = {}
    room = anyio.CapacityLimiter(at_once)

    async def one(file: dict[str, Any]) -> None:
        async with room:
            differs = difference(file["trace"], await play(file["scenario"]))
            if differs:
                found[file["name"]] = differs

    async with anyio.create_task_group() as tasks:
        for file in files:
            tasks.start_soon(one, file)
    return found


async def test_the_named_scenarios_pass_with_real_tasks() -> None:
    assert len(NAMED) > 100
    found = await _differences(NAMED, 16)
    assert {name: why for name, why in found.items() if name not in DELIBERATE} == {}
    assert set(found) == {file["name"] for file in NAMED} & set(DELIBERATE)


async def test_the_window_slides_in_real_time() -> None:
    assert len(SLEEPY) >= 3
    assert await _differences(SLEEPY, len(SLEEPY)) == {}


async def test_random_trees_and_steps_pass_with_real_tasks() -> None:
    found = await _differences(RANDOM, 16)
    assert {name: why for name, why in found.items() if name not in DELIBERATE} == {}
