"""The parts of the server engine that need no server."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import rayvisor as rv
from rayvisor._backends.host.engine import EngineError, ExternalLoad, RequestLostError, RequestRefusedError
from rayvisor._backends.server.client import Answer, HttpClient
from rayvisor._backends.server.ports import PortTakenError, hold
from rayvisor._backends.server.server_api import Completion, ServerApi, completion_of
from rayvisor._backends.server.traffic import Sample, Traffic, read_metrics
from rayvisor.specs.server_flags import sizes, to_flags, value_of


def test_arguments_by_name_become_options() -> None:
    given = {
        "max_model_len": 8,
        "enforce_eager": True,
        "stats": False,
        "seed": None,
        "a": {"b": 1},
        "c": [1, 2],
    }
    assert to_flags(given) == (
        "--max-model-len", "8", "--enforce-eager", "--no-stats", "--a", '{"b": 1}', "--c", "1", "2",
    )  # fmt: skip


def test_the_last_of_several_values_counts_however_it_is_spelt() -> None:
    words = ["--tensor_parallel_size", "2", "-tp=4", "--port"]
    assert value_of(words, "--tensor-parallel-size", "-tp") == "4"
    assert value_of(words, "--port") is None
    assert sizes(words) == {"tensor_parallel_size": 4}
    assert sizes(["-tp", "2", "-dp", "4", "--data-parallel-rank", "0"]) == {"tensor_parallel_size": 2}


def test_two_hold_no_port_but_a_server_may_listen_at_one_that_is_held() -> None:
    held, port = hold("127.0.0.1", 0)
    with held, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with pytest.raises(
            PortTakenError, match=rf"port {port} of 127.0.0.1 is taken by .* \(pid {os.getpid()}\)"
        ):
            hold("127.0.0.1", port)
        other, another = hold("127.0.0.1", 0, before=port)
        other.close()
        assert another != port


def test_the_port_before_is_taken_again_where_it_is_free() -> None:
    held, port = hold("127.0.0.1", 0)
    held.close()
    again, same = hold("127.0.0.1", 0, before=port)
    again.close()
    assert same == port


def test_an_address_that_is_not_here_is_named() -> None:
    with pytest.raises(OSError, match=r"host='192\.0\.2\.7'"):
        hold("192.0.2.7", 0)


def test_of_a_page_of_metrics_only_numbers_count() -> None:
    page = """# HELP vllm:num_requests_running x
vllm:num_requests_running{a="b c"} 2.0
vllm:num_requests_waiting 1
vllm:generation_tokens_total{} 40
vllm:request_success_total{} NaN
vllm:prompt_tokens_total x
other 7
"""
    assert read_metrics(page) == Sample(known=True, waiting=3, moved=40.0, tokens=40.0)


def test_nobody_is_said_to_wait_for_a_server_that_does_not_count() -> None:
    traffic = Traffic()
    traffic.update(read_metrics("# nothing\n"), load=5, now=1.0)
    assert traffic.external_load().waiting == 0


def test_a_request_that_the_engine_has_not_begun_with_waits_as_well() -> None:
    traffic = Traffic()
    traffic.update(Sample(known=True, waiting=0, moved=3.0, tokens=3.0), load=0, now=1.0)
    traffic.update(Sample(known=True, waiting=0, moved=3.0, tokens=3.0), load=1, now=2.0)
    assert traffic.external_load() == ExternalLoad(1, 2.0, 1.0)


async def test_a_call_that_the_server_does_not_respond_to_is_an_engine_error_as_for_all_engines(
    tmp_path: Path,
) -> None:
    held, port = hold("127.0.0.1", 0)
    with held:
        api = ServerApi(HttpClient("127.0.0.1", port), str(tmp_path / "log"))
        with pytest.raises(EngineError, match="GET /is_paused: ConnectionRefusedError"):
            await api.ask("is_paused", (), {})
        with pytest.raises(RequestLostError, match="POST /v1/completions: ConnectionRefusedError"):
            await api.complete("Once", {})


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"text": "a"}]}'])
def test_a_response_that_is_no_completion_loses_its_request(body: bytes) -> None:
    with pytest.raises(RequestLostError, match="no completion"):
        completion_of(Answer(200, body))


def test_a_completion_without_token_ids_has_as_many_as_its_usage_counts() -> None:
    choice = {"text": "ab", "finish_reason": "length"}
    body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 2}}).encode()
    assert completion_of(Answer(200, body)) == Completion((0, 0), "ab", "length")
    with pytest.raises(RequestRefusedError, match="HTTP 400: too long"):
        completion_of(Answer(400, b"too long"))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"model": ""}, "model"),
        ({"port": 70000}, "port"),
        ({"port": True}, "port"),
        ({"host": ""}, "host"),
        ({"args": "--seed 7"}, "args"),
        ({"args": ["--port", "8000"]}, "args"),
        ({"args": ["--port=8000"]}, "args"),
        ({"engine_args": {"uds": "/run/x"}}, "args"),
        ({"engine_args": ["x"]}, "engine_args"),
        ({"env": {"A": 1}}, "env"),
        ({"engine": "sglang"}, "engine"),
        ({"stall_after": 0.1}, "stall_after"),
    ],
)
def test_a_value_that_cannot_work_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(rv.SpecError) as raised:
        rv.server("web", **{"model": "sim", **wrong})
    assert raised.value.field == field
