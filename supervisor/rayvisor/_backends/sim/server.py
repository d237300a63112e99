"""A simulated ``vllm serve``: the simulated engine behind vLLM's routes, in a process of its own.

    python -c ... serve sim --host 127.0.0.1 --port 8000 --tokens-per-second 50

Its options are vLLM's where they mean something here, and the simulated engine's arguments. It says what
vLLM says, in the same places: its log, its metrics, its exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h11

from rayvisor._backends.host.engine import (
    EngineError,
    EngineGoneError,
    EngineStartFailedError,
    RequestLostError,
    RequestRefusedError,
)
from rayvisor._backends.process.engine_tree import TAG
from rayvisor._backends.sim.arguments import DEFAULTS
from rayvisor._backends.sim.engine import SimEngine
from rayvisor._core.protocol.wire import GenerateCommand

__all__ = ["main"]

OWN: Mapping[str, Any] = {"ft_prefix": "", "hang_on_prompt": "", "bind_delay": 0.0}
"""Arguments of the server itself: where its fault tolerance is served; text that a prompt must hold for its
front to hang; seconds before it takes its port."""

_Answer = tuple[int, str, bytes]
"""Status, type and body."""
_READ_BYTES = 1 << 16
_STOP_SECONDS = 5.0


def main(words: Sequence[str]) -> None:
    """Serve until told to end, or until the engine has ended."""
    given = _parse(words)
    name = given["model"]
    if name != "sim" and not (Path(name) / "config.json").exists():
        raise OSError(f"{name} does not appear to have a file named config.json")
    time.sleep(given["bind_delay"])
    listening = socket.socket(socket.AF_INET6 if ":" in given["host"] else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((given["host"], given["port"]))

    async def run() -> int:
        return await _Server(given, listening).run()

    sys.exit(asyncio.run(run()))


def _parse(words: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="vllm serve")
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--enable-server-load-tracking", action="store_true")
    parser.add_argument("--disable-log-stats", action="store_true")
    parser.add_argument("--disable-access-log-for-endpoints", default="")
    parser.add_argument("--api-key", default="")
    for option, default in {**DEFAULTS, **OWN}.items():
        flag = "--" + option.replace("_", "-")
        if option == "model":
            continue
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default) if default is not None else str, default=default)
    return vars(parser.parse_args(list(words)))


def _log(*lines: str) -> None:
    head = f"(APIServer pid={os.getpid()}) INFO {time.strftime('%m-%d %H:%M:%S')} [server.py:1] "
    sys.stderr.write("".join(f"{head}{line}\n" for line in lines))
    sys.stderr.flush()


class _Server:
    """One server."""

    def __init__(self, given: Mapping[str, Any], listening: socket.socket) -> None:
        self._given = given
        self._listening = listening
        arguments = {name: given[name] for name in DEFAULTS if given[name] != DEFAULTS[name]}
        # An empty log file: what the engine's processes print goes where this one's output goes.
        self._engine = SimEngine(1, arguments, _own_output())
        self._engine._tree.tag = os.environ.get(TAG, self._engine._tree.tag)  # noqa: SLF001 - they are known by the server's own tag
        self._told = asyncio.Event()
        self._load = 0
        self._running = 0
        self._finished = 0
        self._tokens = 0
        self._prompts = 0
        self._numbers = 0
        self._carrying: asyncio.Task[None] | None = None
        self._routes: dict[str, Callable[[Mapping[str, Any]], Awaitable[_Answer]]] = {
            "/health": self._health,
            "/load": self._say_load,
            "/version": self._version,
            "/v1/models": self._models,
            "/v1/completions": self._complete,
        }
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            self._routes |= {"/pause": self._pause, "/resume": self._resume}
        if given["fault_tolerance"]:
            prefix = f"{given['ft_prefix']}/fault_tolerance"
            self._routes |= {f"{prefix}/status": self._status, f"{prefix}/apply": self._apply}

    async def run(self) -> int:
        """Bring the engine up, serve, leave; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told.set)
        _log(f"Initializing a simulated engine with model {self._given['model']}")
        try:
            await self._engine.start(lambda phase, detail: _log(f"{phase} {detail}"))
        except EngineStartFailedError as failed:
            root = failed.termination.root
            raise RuntimeError(f"Engine core initialization failed. Root cause: {root}") from None
        server = await asyncio.start_server(self._talk, sock=self._listening)
        _log(f"Started server process [{os.getpid()}]", "Application startup complete.")
        died = asyncio.create_task(self._engine.died())
        told = asyncio.create_task(self._told.wait())
        await asyncio.wait((died, told), return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if told.done():
            _log("[shutdown] API server: shutdown triggered")
            await self._engine.stop(_STOP_SECONDS)
            return 0
        await self._engine.stop(0.0)
        return 1

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = h11.Connection(h11.SERVER)
        try:
            request, body = await _read(talk, reader)
            status, kind, answer = await self._answer(request, body)
            headers = [("Content-Type", kind), ("Content-Length", str(len(answer))), ("Connection", "close")]
            for event in (
                h11.Response(status_code=status, headers=headers), h11.Data(data=answer), h11.EndOfMessage()
            ):  # fmt: skip
                writer.write(talk.send(event) or b"")
            await writer.drain()
        except (h11.ProtocolError, OSError, EOFError) as error:
            _log(f"a connection broke: {error}")
        finally:
            writer.close()

    async def _answer(self, request: h11.Request, body: bytes) -> _Answer:
        path = request.target.decode().partition("?")[0]
        key = self._given["api_key"]
        allowed = not key or dict(request.headers).get(b"authorization") == f"Bearer {key}".encode()
        if path.startswith("/v1") and not allowed:
            return _json(401, {"error": "Unauthorized"})
        if path == "/metrics":
            return 200, "text/plain", self._metrics().encode()
        if path in self._routes:
            return await self._routes[path](json.loads(body) if body else {})
        return _json(404, {"detail": "Not Found"})

    async def _health(self, _: Mapping[str, Any]) -> _Answer:
        return _json(503 if self._engine._over.is_set() else 200, {})  # noqa: SLF001 - as vLLM's own flag

    async def _say_load(self, _: Mapping[str, Any]) -> _Answer:
        return _json(200, {"server_load": self._load})

    async def _version(self, _: Mapping[str, Any]) -> _Answer:
        return _json(200, {"version": "sim"})

    async def _models(self, _: Mapping[str, Any]) -> _Answer:
        length = self._given["max_model_len"]
        return _json(200, {"data": [{"id": self._given["model"], "max_model_len": length}]})

    async def _pause(self, _: Mapping[str, Any]) -> _Answer:
        await self._engine.ask("pause_generation", (), {})
        return _json(200, {"status": "paused"})

    async def _resume(self, _: Mapping[str, Any]) -> _Answer:
        await self._engine.ask("resume_generation", (), {})
        return _json(200, {"status": "resumed"})

    async def _status(self, _: Mapping[str, Any]) -> _Answer:
        return _json(200, await self._engine.ask("get_status", (), {}))

    async def _apply(self, said: Mapping[str, Any]) -> _Answer:
        """Accept an instruction, and carry it out later, as vLLM does."""
        self._numbers += 1
        request = f"sim-{self._numbers}"
        if said.get("instruction") != "retry":
            return _json(400, {"detail": f"Invalid instruction: {said.get('instruction')!r}."})

        async def carry_out() -> None:
            try:
                answer = await self._engine.ask("handle_fault", ({**said, "request_id": request},), {})
            except EngineError:
                _log("[FT] Recovery dispatch failed.")
                return
            if not answer["success"]:
                _log(f"[FT] Recovery failed for request {request}: {answer['reason']}")

        self._carrying = asyncio.create_task(carry_out())
        return _json(202, {"message": "Request accepted", "request_id": request})

    async def _complete(self, said: Mapping[str, Any]) -> _Answer:
        prompt = said.get("prompt", "")
        if self._given["hang_on_prompt"] and self._given["hang_on_prompt"] in str(prompt):
            time.sleep(86400.0)  # noqa: ASYNC251 - that is the fault
        params = {
            name: said[name] for name in ("max_tokens", "temperature", "ignore_eos", "seed") if name in said
        }
        self._numbers += 1
        order = GenerateCommand(f"cmpl-{self._numbers}", 1, prompt, {"max_tokens": 16, **params})
        tokens: list[int] = []
        text, finish = "", None
        self._load += 1
        counted = False
        try:
            async for chunk in self._engine.generate(order):
                if not counted:
                    # As in vLLM, what the engine has not begun with is seen by its front only.
                    counted = True
                    self._running += 1
                    self._prompts += len(chunk.prompt_token_ids or ())
                tokens += chunk.token_ids
                text += chunk.text
                finish = chunk.finish_reason
                self._tokens += len(chunk.token_ids)
        except RequestLostError:
            finish = "abort"  # as vLLM says it
        except RequestRefusedError as refused:
            return _json(400, {"error": {"message": str(refused)}})
        except EngineGoneError:
            return _json(500, {"error": {"message": "EngineDeadError"}})
        finally:
            self._load -= 1
            self._running -= counted
            self._finished += counted
        choice = {"index": 0, "text": text, "token_ids": tokens, "finish_reason": finish}
        return _json(200, {"choices": [choice], "usage": {"completion_tokens": len(tokens)}})

    def _metrics(self) -> str:
        if self._given["disable_log_stats"]:
            return "# nothing is counted\n"
        label = f'{{engine="0",model_name="{self._given["model"]}"}}'
        return "".join(
            f"# TYPE {name} gauge\n{name}{label} {float(value)}\n"
            for name, value in {
                "vllm:num_requests_running": self._running,
                "vllm:num_requests_waiting": 0,
                "vllm:generation_tokens_total": self._tokens,
                "vllm:prompt_tokens_total": self._prompts,
                "vllm:request_success_total": self._finished,
            }.items()
        )


async def _read(talk: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request, bytes]:
    request: h11.Request | None = None
    body = b""
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            talk.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, body
        else:
            raise EOFError("the connection was closed")


def _json(status: int, value: Any) -> _Answer:
    return status, "application/json", json.dumps(value).encode()


def _own_output() -> str:
    """The file that this process's output goes to."""
    return str(Path("/proc/self/fd/2").readlink())
