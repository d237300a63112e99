"""The content of a host actor, in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rayvisor._backends.process import reaper
from rayvisor._backends.ray.host_actor import HostActor, HostHello
from rayvisor.timeouts import ProcessTimeouts, Timeouts


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "import time; time.sleep(600)"])
async def test_a_host_whose_reaper_does_not_start_works_without_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    program = tmp_path / "reaper.py"
    program.write_text(body)
    monkeypatch.setattr(reaper, "__file__", str(program))
    monkeypatch.setenv(reaper.MARKER, "")
    timeouts = Timeouts(process=ProcessTimeouts(reaper_start=0.3))
    actor = HostActor("tests/host-actor", "llm/1", 1, "sim", timeouts=timeouts)
    hellos = await asyncio.gather(*(actor.describe("node-1") for _ in range(3)))
    for hello in hellos:
        assert isinstance(hello, HostHello)
        assert hello.reaper == 0
    assert actor._stack is not None
    actor._stack.close()
