"""A simulated ``vllm serve``: the simulated engine behind vLLM's routes, in a process of its own.

    python -c ... serve sim --host 127.0.0.1 --port 8000 --tokens-per-second 50

Its options are those of vLLM that mean something here, and the arguments of the simulated engine. Its log,
its metrics and its exit status have the form of vLLM's.
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
from http import HTTPStatus
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
from rayvisor._backends.sim.sim_engine import SimEngine
from rayvisor._core.protocol.wire import GenerateCommand
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["main"]

SERVER_DEFAULTS: Mapping[str, Any] = {"ft_prefix": "", "hang_on_prompt": "", "bind_delay": 0.0}
"""Arguments of the server itself.

``ft_prefix`` is the prefix of the fault tolerance routes. A prompt that contains ``hang_on_prompt`` blocks
the HTTP front. ``bind_delay`` is the number of seconds before the server binds its port.
"""

_Response = tuple[int, str, bytes]
"""Status, content type and body."""
_READ_BYTES = 1 << 16
_HANG_SECONDS = 86400.0
"""How long a simulated hang lasts."""


def main(argv: Sequence[str]) -> None:
    """Serve until a signal asks for the shutdown, or until the engine has died."""
    given = _parse(argv)
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


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="vllm serve")
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--enable-server-load-tracking", action="store_true")
    parser.add_argument("--disable-log-stats", action="store_true")
    parser.add_argument("--disable-access-log-for-endpoints", default="")
    parser.add_argument("--api-key", default="")
    for option, default in {**DEFAULTS, **SERVER_DEFAULTS}.items():
        flag = "--" + option.replace("_", "-")
        if option == "model":
            continue
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default) if default is not None else str, default=default)
    return vars(parser.parse_args(list(argv)))


def _log(*lines: str) -> None:
    head = f"(APIServer pid={os.getpid()}) INFO {time.strftime('%m-%d %H:%M:%S')} [server.py:1] "
    sys.stderr.write("".join(f"{head}{line}\n" for line in lines))
    sys.stderr.flush()


class _Server:
    """One server.

    Parameters
    ----------
    given
        The parsed command line.
    listening
        The bound socket.
    timeouts
        Timeouts and intervals of the server and of its engine.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        listening: socket.socket,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._timeouts = timeouts
        self._given = given
        self._listening = listening
        arguments = {name: given[name] for name in DEFAULTS if given[name] != DEFAULTS[name]}
        # The processes of the engine write to the server's own log and carry the server's own tag.
        self._engine = SimEngine(1, arguments, _own_output(), tag=os.environ.get(TAG, ""), timeouts=timeouts)
        self._stop_requested = asyncio.Event()
        self._load = 0
        self._running = 0
        self._finished = 0
        self._tokens = 0
        self._prompt_tokens = 0
        self._requests = 0
        self._recovery: asyncio.Task[None] | None = None
        self._routes: dict[str, Callable[[Mapping[str, Any]], Awaitable[_Response]]] = {
            "/health": self._health,
            "/load": self._report_load,
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
        """Start the engine, serve, and shut down. Return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_requested.set)
        _log(f"Initializing a simulated engine with model {self._given['model']}")
        try:
            await self._engine.start(lambda phase, detail: _log(f"{phase} {detail}"))
        except EngineStartFailedError as failed:
            root = failed.termination.root
            raise RuntimeError(f"Engine core initialization failed. Root cause: {root}") from None
        server = await asyncio.start_server(self._serve_connection, sock=self._listening)
        _log(f"Started server process [{os.getpid()}]", "Application startup complete.")
        died = asyncio.create_task(self._engine.died())
        stop_requested = asyncio.create_task(self._stop_requested.wait())
        await asyncio.wait((died, stop_requested), return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if stop_requested.done():
            _log("[shutdown] API server: shutdown triggered")
            await self._engine.stop(self._timeouts.server.sim_stop)
            return 0
        await self._engine.stop(0.0)
        return 1

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            request, body = await _read(http, reader)
            status, kind, content = await self._respond(request, body)
            headers = [("Content-Type", kind), ("Content-Length", str(len(content))), ("Connection", "close")]
            response = h11.Response(status_code=status, headers=headers)
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                writer.write(http.send(event) or b"")
            await writer.drain()
        except (h11.ProtocolError, OSError, EOFError) as error:
            _log(f"a connection broke: {error}")
        finally:
            writer.close()

    async def _respond(self, request: h11.Request, body: bytes) -> _Response:
        path = request.target.decode().partition("?")[0]
        key = self._given["api_key"]
        allowed = not key or dict(request.headers).get(b"authorization") == f"Bearer {key}".encode()
        if path.startswith("/v1") and not allowed:
            return _json(HTTPStatus.UNAUTHORIZED, {"error": "Unauthorized"})
        if path == "/metrics":
            return HTTPStatus.OK, "text/plain", self._metrics().encode()
        if path not in self._routes:
            return _json(HTTPStatus.NOT_FOUND, {"detail": "Not Found"})
        try:
            message = json.loads(body) if body else {}
        except ValueError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": {"message": f"the body is no JSON: {error}"}})
        return await self._routes[path](message)

    async def _health(self, _: Mapping[str, Any]) -> _Response:
        return _json(HTTPStatus.SERVICE_UNAVAILABLE if self._engine.has_ended else HTTPStatus.OK, {})

    async def _report_load(self, _: Mapping[str, Any]) -> _Response:
        return _json(HTTPStatus.OK, {"server_load": self._load})

    async def _version(self, _: Mapping[str, Any]) -> _Response:
        return _json(HTTPStatus.OK, {"version": "sim"})

    async def _models(self, _: Mapping[str, Any]) -> _Response:
        length = self._given["max_model_len"]
        return _json(HTTPStatus.OK, {"data": [{"id": self._given["model"], "max_model_len": length}]})

    async def _pause(self, _: Mapping[str, Any]) -> _Response:
        await self._engine.ask("pause_generation", (), {})
        return _json(HTTPStatus.OK, {"status": "paused"})

    async def _resume(self, _: Mapping[str, Any]) -> _Response:
        await self._engine.ask("resume_generation", (), {})
        return _json(HTTPStatus.OK, {"status": "resumed"})

    async def _status(self, _: Mapping[str, Any]) -> _Response:
        return _json(HTTPStatus.OK, await self._engine.ask("get_status", (), {}))

    async def _apply(self, message: Mapping[str, Any]) -> _Response:
        """Accept an instruction and carry it out in the background, as vLLM does."""
        self._requests += 1
        request = f"sim-{self._requests}"
        if message.get("instruction") != "retry":
            detail = f"Invalid instruction: {message.get('instruction')!r}."
            return _json(HTTPStatus.BAD_REQUEST, {"detail": detail})

        async def carry_out() -> None:
            try:
                answer = await self._engine.ask("handle_fault", ({**message, "request_id": request},), {})
            except EngineError:
                _log("[FT] Recovery dispatch failed.")
                return
            if not answer["success"]:
                _log(f"[FT] Recovery failed for request {request}: {answer['reason']}")

        self._recovery = asyncio.create_task(carry_out())
        return _json(HTTPStatus.ACCEPTED, {"message": "Request accepted", "request_id": request})

    async def _complete(self, message: Mapping[str, Any]) -> _Response:
        prompt = message.get("prompt", "")
        if self._given["hang_on_prompt"] and self._given["hang_on_prompt"] in str(prompt):
            time.sleep(_HANG_SECONDS)  # noqa: ASYNC251 - blocking the event loop is the fault to simulate
        names = ("max_tokens", "temperature", "ignore_eos", "seed")
        params = {name: message[name] for name in names if name in message}
        self._requests += 1
        command = GenerateCommand(f"cmpl-{self._requests}", 1, prompt, {"max_tokens": 16, **params})
        tokens: list[int] = []
        text, finish = "", None
        self._load += 1
        counted = False
        try:
            async for chunk in self._engine.generate(command):
                if not counted:
                    # As in vLLM, the metrics count a request only once the engine has begun with it.
                    counted = True
                    self._running += 1
                    self._prompt_tokens += len(chunk.prompt_token_ids or ())
                tokens += chunk.token_ids
                text += chunk.text
                finish = chunk.finish_reason
                self._tokens += len(chunk.token_ids)
        except RequestLostError:
            finish = "abort"  # vLLM's own finish reason
        except RequestRefusedError as refused:
            return _json(HTTPStatus.BAD_REQUEST, {"error": {"message": str(refused)}})
        except EngineGoneError:
            return _json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": {"message": "EngineDeadError"}})
        finally:
            self._load -= 1
            self._running -= counted
            self._finished += counted
        choice = {"index": 0, "text": text, "token_ids": tokens, "finish_reason": finish}
        return _json(HTTPStatus.OK, {"choices": [choice], "usage": {"completion_tokens": len(tokens)}})

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
                "vllm:prompt_tokens_total": self._prompt_tokens,
                "vllm:request_success_total": self._finished,
            }.items()
        )


async def _read(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request, bytes]:
    request: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, body
        else:
            raise EOFError("the connection was closed")


def _json(status: int, value: Any) -> _Response:
    return status, "application/json", json.dumps(value).encode()


def _own_output() -> str:
    """Return the path of the file that this process writes its output to."""
    return str(Path("/proc/self/fd/2").readlink())
