"""The ends of requests in vLLM, with outputs that are made up."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rayvisor._backends.host.engine import RequestLostError
from rayvisor._backends.vllm.streams import Streams
from rayvisor._core.protocol.wire import Chunk, GenerateCommand


class Collector:
    """One output of vLLM, and nothing after it."""

    request_id = "internal"

    def __init__(self, finish_reason: str | None) -> None:
        sample = SimpleNamespace(
            token_ids=[5], text="a", logprobs=None, finish_reason=finish_reason, stop_reason=None
        )
        self.output: Any = SimpleNamespace(outputs=[sample], prompt_token_ids=[1], prompt_logprobs=None)

    def get_nowait(self) -> Any:
        return self.output


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Streams of an AsyncLLM that never runs; vLLM itself is not needed."""
    for name, attributes in {
        "vllm": (),
        "vllm.exceptions": ("GracefulHTTPError", "VLLMClientError"),
        "vllm.v1": (),
        "vllm.v1.engine": (),
        "vllm.v1.engine.exceptions": ("EngineDeadError",),
    }.items():
        module = ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (Exception,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    return Streams(SimpleNamespace(renderer=SimpleNamespace(tokenizer=None)))


async def end(streams: Streams, finish_reason: str, *, requested: bool = False) -> Chunk | None:
    running = SimpleNamespace(collector=Collector(finish_reason), finished=False, abort_requested=requested)
    command = GenerateCommand("r0.0", 1, "once", {})
    return await streams._next_chunk(running, command, first=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", ["stop", "length", "repetition", "a reason of a later version"])
async def test_every_finish_reason_that_gives_nothing_up_is_an_end(streams: Streams, reason: str) -> None:
    chunk = await end(streams, reason)
    assert chunk is not None
    assert (chunk.token_ids, chunk.finish_reason) == ((5,), reason)


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_request_that_vllm_gives_up_is_lost_unless_that_was_asked_for(
    streams: Streams, reason: str
) -> None:
    with pytest.raises(RequestLostError, match=reason):
        await end(streams, reason)
    assert await end(streams, reason, requested=True) is None
