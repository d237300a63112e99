"""One incarnation of an OpenAI-compatible server, behind the interface of engines.

The server is a process with processes below it. It is watched like any engine: its deaths through pidfds,
their causes in its log, its hangs by missing progress. But its requests do not pass through its host. So the
number of requests and their progress are read from its ``/metrics``, and the state of its scheduler from
``/health``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, TypeVar

from rayvisor._backends.host.address import own_address
from rayvisor._backends.host.engine import (
    EngineGoneError,
    EngineStatus,
    ExternalLoad,
    Report,
)
from rayvisor._backends.host.log_files import temporary_log
from rayvisor._backends.host.log_reading import log_causes
from rayvisor._backends.host.phases import phase_of
from rayvisor._backends.host.post_mortem import describe_death, log_size, log_tail, read_log
from rayvisor._backends.host.shutdown import EngineStop, check_none_left, stop_if_start_fails
from rayvisor._backends.host.waiting import first_of
from rayvisor._backends.process.engine_tree import ProcessTree, new_tag
from rayvisor._backends.server.client import HttpClient, HttpFailedError
from rayvisor._backends.server.ports import PortTakenError, hold, is_listener
from rayvisor._backends.server.program import TITLE, ServerProgram, check_model, command_of
from rayvisor._backends.server.server_api import ServerApi
from rayvisor._backends.server.traffic import Traffic, read_metrics
from rayvisor._backends.server.usage_errors import with_usage_error
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs.server_flags import has_flag, value_of
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["ServerEngine"]

log = get_logger("rayvisor.server")

T = TypeVar("T")

_FORWARDED = ("max_tokens", "temperature", "ignore_eos", "seed", "top_p")
_WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - the user sets the host


class ServerEngine:
    """One incarnation of a server.

    Parameters
    ----------
    incarnation
        Number of this start, from 1.
    arguments
        Arguments of ``rayvisor.server``: ``program``, ``model``, ``args``, ``host``, ``port``, ``env``,
        ``probe_interval``, and ``port_before``, the port of the previous incarnation.
    log_file
        It writes its output to this file; by default a file in the temporary folder.
    timeouts
        Timeouts and intervals of the server.
    """

    def __init__(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        log_file: str = "",
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._host_timeouts = timeouts.host
        self._process_timeouts = timeouts.process
        self._timeouts = timeouts.server
        self._incarnation = incarnation
        self._arguments = dict(arguments)
        self._log_file = log_file or temporary_log("server")
        self._log_position = 0
        self._tree = ProcessTree(new_tag(), timeouts=timeouts.process)
        self._port_socket: socket.socket | None = None
        self._program: ServerProgram | None = None
        self._api: ServerApi | None = None
        self._traffic = Traffic()
        self._up_at = math.inf
        self._counts = True
        self._unanswered = ""
        self._probe_tokens = 0
        self._shutdown = EngineStop(self._end)
        self._ended = asyncio.Event()
        self._death: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- starting -------------------------------------------------------------------------------

    async def start(self, report: Report) -> EngineInfo:
        """Start it; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        began = time.monotonic()
        async with stop_if_start_fails(self.stop, self._describe_failed_start):
            check_model(str(self._arguments["model"]))
            port = await self._bind_port()
            self._raise_if_stopping()
            report("launching", f"{self._arguments['model']} at port {port}")
            client = await self._launch(port)
            api = ServerApi(client, self._log_file, timeouts=self._timeouts)
            await self._wait_until_healthy(client, api, port, report)
            await self._discover_processes()
            self._api = api
            info = self._info(api, port, began)
        self._mark_log_position()
        self._up_at = time.monotonic()
        self._spawn(self._watch_for_death())
        self._spawn(self._observe(client))
        if api.instructions:
            self._spawn(api.poll_status())
        report("ready", info.url)
        return info

    async def _bind_port(self) -> int:
        given = self._arguments

        def bind() -> int:
            held, port = hold(str(given["host"]), int(given["port"]), int(given.get("port_before") or 0))
            self._port_socket = held
            if self._ended.is_set():  # the start was cancelled meanwhile
                held.close()
            return port

        return await asyncio.to_thread(bind)

    async def _launch(self, port: int) -> HttpClient:
        given = self._arguments
        options: Sequence[str] = given["args"]
        environment: Mapping[str, str] = given.get("env") or {}
        program = self._program = ServerProgram(
            command_of(given, port),
            environment,
            self._tree.tag,
            self._log_file,
            timeouts=self._process_timeouts,
        )
        self._tree.descend_from(program.pid, TITLE)
        await self._tree.scan()
        await asyncio.to_thread(program.start_guard)
        host = str(given["host"])
        known = environment.get("VLLM_API_KEY") or os.environ.get("VLLM_API_KEY", "")
        key = value_of(options, "--api-key") or known
        return HttpClient(_WILDCARD_HOSTS.get(host, host), port, secure=self._uses_tls, key=key)

    @property
    def _uses_tls(self) -> bool:
        return has_flag(self._arguments["args"], "--ssl-certfile")

    async def _wait_until_healthy(
        self, client: HttpClient, api: ServerApi, port: int, report: Report
    ) -> None:
        """Wait until it is healthy. Meanwhile report its progress, and find its processes as they come up."""
        reported = time.monotonic()
        while True:
            await asyncio.sleep(self._timeouts.poll)
            await self._discover_processes()
            if time.monotonic() - reported >= self._timeouts.progress:
                reported = time.monotonic()
                report(*phase_of(await asyncio.to_thread(log_tail, self._log_file)))
            with contextlib.suppress(HttpFailedError):  # it does not listen yet, or is too busy
                answer = await self._unless_ended(client.get("/health", self._timeouts.request))
                pids = frozenset(process.pid for process in self._tree.processes)
                if answer.status == HTTPStatus.OK and await asyncio.to_thread(is_listener, port, pids):
                    await self._unless_ended(api.discover())
                    return

    def _info(self, api: ServerApi, port: int, began: float) -> EngineInfo:
        host = str(self._arguments["host"])
        if host in _WILDCARD_HOSTS:
            host = own_address()
        scheme = "https" if self._uses_tls else "http"
        return EngineInfo(
            engine="server",
            version=api.version,
            max_model_len=api.max_model_len,
            max_num_seqs=0,
            eos_token_ids=(),
            processes=self.processes(),
            startup_seconds=time.monotonic() - began,
            instructions=api.instructions,
            recovery_timeout=_recovery_seconds(self._arguments["args"]) if api.instructions else 0.0,
            url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        )

    async def _discover_processes(self) -> None:
        self._raise_if_stopping()
        await self._tree.scan()
        self._raise_if_stopping()
        if self._tree.deaths:
            raise EngineGoneError("the server ended while starting")

    def _mark_log_position(self) -> None:
        """Ignore the present contents of its log when a death is explained later."""
        self._log_position = log_size(self._log_file)

    def _raise_if_stopping(self) -> None:
        if self._shutdown.requested:
            raise EngineGoneError("the server was stopped while starting")

    async def _describe_failed_start(self, error: Exception) -> Termination:
        if self._tree.deaths and not self._shutdown.requested:
            return await self._describe_death("starting")
        from_log, traceback = log_causes(await asyncio.to_thread(read_log, self._log_file))
        seen = plain_causes(error)
        if isinstance(error, EngineGoneError | OSError | ValueError):
            from_log = ()
        return Termination(
            causes=(*seen, *(cause for cause in from_log if cause not in seen)),
            traceback=traceback if from_log else "",
            phase="starting",
            log_file=self._log_file,
            # Other errors of the system, such as a lack of memory or of descriptors, may pass.
            permanent=isinstance(error, PortTakenError | ValueError),
        )

    # -- ending ---------------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """End it with its whole process tree, and verify that; see `Engine.stop`."""
        await self._shutdown(grace)

    async def _end(self) -> None:
        self._ended.set()
        for task in self._tasks:
            task.cancel()
        self._tree.unwatch()
        left: tuple[ProcessId, ...] = ()
        if self._program is not None:
            await self._tree.scan()
            if self._shutdown.kill_at() > time.monotonic():
                self._program.terminate()
                await self._tree.all_gone(self._shutdown.kill_at)
            left = await self._tree.end(self._timeouts.kill, self._reap)
            self._reap()
        self._tree.close()
        check_none_left(left)
        if self._program is not None:
            self._program.close()
        if self._port_socket is not None:
            self._port_socket.close()
            self._port_socket = None

    def _reap(self) -> None:
        if self._program is not None:
            self._program.poll()

    async def _watch_for_death(self) -> None:
        await self._tree.first_death()
        self._ended.set()
        died = await self._describe_death("serving")
        if not self._death.done():
            self._death.set_result(died)

    async def _describe_death(self, phase: str) -> Termination:
        died = await describe_death(
            self._tree,
            self._log_file,
            phase,
            self._exit_code,
            self._log_position,
            timeouts=self._host_timeouts,
        )
        if died.root.type == "ProcessExited" and died.exit_code == 0 and self._program is not None:
            # All of its processes exit in order: the exit of the server itself is the cause.
            code = await self._program.wait(self._timeouts.leave)
            if code is not None:
                message = f"APIServer (pid {self._program.pid}) ended with exit code {code}"
                causes = (*died.causes[:-1], Cause("ProcessExited", message))
                died = replace(died, causes=causes, exit_code=code)
        return with_usage_error(died, await asyncio.to_thread(log_tail, self._log_file))

    def _exit_code(self, pid: int) -> int | None:
        if self._program is not None and self._program.pid == pid:
            return self._program.poll()
        return None

    async def died(self) -> Termination:
        """Wait until it has died, and return the cause."""
        return await asyncio.shield(self._death)

    def processes(self) -> tuple[ProcessId, ...]:
        """Return its HTTP front, EngineCore, the workers, and all other processes that they have started."""
        return self._tree.processes

    # -- observation ----------------------------------------------------------------------------

    def external_load(self) -> ExternalLoad:
        """Return the requests of its clients, and their progress."""
        seen = self._traffic.external_load()
        if self._counts:
            worked = self._traffic.tokens > self._probe_tokens
        else:
            settled = time.monotonic() - self._up_at >= self._timeouts.settled
            worked = not self._traffic.is_silent and settled
        return seen._replace(unanswered=self._unanswered if self._traffic.is_silent else "", worked=worked)

    async def _observe(self, client: HttpClient) -> None:
        interval = float(self._arguments.get("probe_interval") or 2.0) / 2
        while True:
            sent_at = time.monotonic()
            try:
                answer = await client.get("/health", max(1.0, interval))
                if answer.status == HTTPStatus.OK:
                    self._traffic.mark_answered()
                    await self._read_metrics(client)
                else:
                    self._unanswered = f"GET /health answered {answer.status}"
                    self._traffic.mark_silent(sent_at)
            except HttpFailedError as failed:
                log.info("server.not_answering", incarnation=self._incarnation, why=str(failed))
                self._unanswered = f"{failed.request} was not answered"
                self._traffic.mark_silent(sent_at)
            await asyncio.sleep(max(0.0, sent_at + interval - time.monotonic()))

    async def _read_metrics(self, client: HttpClient) -> None:
        page = await client.get("/metrics", self._timeouts.request)
        load = (await client.get("/load", self._timeouts.request)).json()
        sample = read_metrics(page.body.decode(errors="replace"))
        self._counts = sample.known
        in_front = load.get("server_load") if isinstance(load, dict) else 0
        self._traffic.update(sample, load=in_front if isinstance(in_front, int) else 0, now=time.monotonic())

    # -- requests -------------------------------------------------------------------------------

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call one of the methods that the server has over HTTP."""
        answer = await self._unless_ended(self._running_api.ask(method, args, kwargs))
        if method == "handle_fault" and answer.get("success"):
            self._mark_log_position()  # a fault that it has recovered from does not explain its death
        return answer

    async def status(self) -> EngineStatus:
        """Return the last status that was read."""
        return EngineStatus("healthy") if self._api is None else self._api.status

    def generate(self, command: GenerateCommand) -> AsyncIterator[Chunk]:
        """Return all tokens of one request in one chunk. It is for probes: clients call the server."""
        return self._generate(command)

    async def _generate(self, command: GenerateCommand) -> AsyncGenerator[Chunk, None]:
        params = {name: command.params[name] for name in _FORWARDED if name in command.params}
        prompt = command.prompt if isinstance(command.prompt, str) else list(command.prompt)
        most = int(params.get("max_tokens") or 0)
        self._probe_tokens += most  # before the server counts them
        done = await self._unless_ended(self._running_api.complete(prompt, params))
        self._probe_tokens += len(done.token_ids) - most
        yield Chunk(command.request, command.attempt, done.token_ids, done.text, None, done.finish_reason)

    async def abort(self, requests: Sequence[str]) -> None:
        """Do nothing: closing the iterator of a request ends it, and there are no other requests."""

    @property
    def _running_api(self) -> ServerApi:
        if self._api is None or self._ended.is_set():
            raise EngineGoneError("the server does not run")
        return self._api

    async def _unless_ended(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for a result, but no longer than the server lives."""
        task = asyncio.ensure_future(call)
        try:
            await first_of(asyncio.wait((task,)), self._ended.wait(), self._tree.first_death())
            if not task.done():
                raise EngineGoneError("the server has ended")
            return task.result()
        finally:
            task.cancel()

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(_report_failure)


def _report_failure(task: asyncio.Task[None]) -> None:
    """Log the failure of one of the tasks; the others continue."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("server.watch.failed", error=f"{type(error).__name__}: {error}")


def _recovery_seconds(options: Sequence[str]) -> float:
    """Return how long the engine waits for an instruction, as its command line says; 0 if it does not."""
    name = "engine_recovery_timeout_sec"
    value = value_of(options, f"--fault-tolerance-config.{name}".replace("_", "-"), "--recovery-timeout")
    table = value_of(options, "--fault-tolerance-config")
    try:
        return float(value or (json.loads(table).get(name) if table else None) or 0.0)
    except (ValueError, TypeError, AttributeError):
        return 0.0
