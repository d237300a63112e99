"""One incarnation of an OpenAI-compatible server, behind the seam that engines have.

The server is a process with processes below it. It is watched as an engine is: deaths through pidfds, causes
from its log, hangs by what does not move. What differs is that its requests do not come through its host. So
what waits, and whether it gets on, is read from its ``/metrics``; that its scheduler lives, from ``/health``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rayvisor._backends.host.engine import (
    EngineError,
    EngineGoneError,
    EngineStatus,
    Outside,
    Report,
    RequestLostError,
    RequestRefusedError,
)
from rayvisor._backends.host.log_reading import log_causes
from rayvisor._backends.host.phases import phase_of
from rayvisor._backends.host.post_mortem import describe_death, log_tail, read_log
from rayvisor._backends.host.shutdown import EngineStop, up_or_ended
from rayvisor._backends.process.engine_tree import ProcessTree, new_tag
from rayvisor._backends.server.api import Offers
from rayvisor._backends.server.client import HttpClient, HttpFailedError
from rayvisor._backends.server.ports import PortTakenError, hold, listener_of
from rayvisor._backends.server.program import TITLE, ServerProgram, check_model, command_of
from rayvisor._backends.server.traffic import Traffic, read_metrics
from rayvisor._backends.server.usage_errors import with_usage_error
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor._log import get_logger
from rayvisor.faults import Cause, Termination
from rayvisor.specs.server_flags import has_flag, value_of

__all__ = ["ServerEngine"]

log = get_logger("rayvisor.server")

T = TypeVar("T")

_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 1.0
_ASK_SECONDS = 5.0
_LEAVE_SECONDS = 1.0
_SETTLED_SECONDS = 60.0
"""A server that does not count tokens has worked when it has been well for so long."""
_PASSED_ON = ("max_tokens", "temperature", "ignore_eos", "seed", "top_p")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - the user's choice


class ServerEngine:
    """One incarnation of a server.

    Parameters
    ----------
    incarnation
        Which start this is.
    arguments
        As ``rayvisor.server`` makes them: ``program``, ``model``, ``args``, ``host``, ``port``, ``env``,
        ``probe_interval``, and ``port_before``, the port of the incarnation before.
    log_file
        Where its output goes; empty: a file in the temporary folder.
    """

    def __init__(self, incarnation: int, arguments: Mapping[str, Any], log_file: str = "") -> None:
        self._incarnation = incarnation
        self._arguments = dict(arguments)
        self._log_file = log_file or _temporary_log()
        self._since = 0
        self._tree = ProcessTree(new_tag())
        self._held: socket.socket | None = None
        self._program: ServerProgram | None = None
        self._offers: Offers | None = None
        self._traffic = Traffic()
        self._up_at = math.inf
        self._counts = True
        self._doubt = ""
        self._own_tokens = 0
        self._ending = EngineStop(self._end)
        self._over = asyncio.Event()
        self._died: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- starting -------------------------------------------------------------------------------

    async def start(self, report: Report) -> EngineInfo:
        """Bring it up; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        began = time.monotonic()
        async with up_or_ended(self.stop, self._failed_start):
            check_model(str(self._arguments["model"]))
            port = await self._take_port()
            self._go_on()
            report("launching", f"{self._arguments['model']} at port {port}")
            client = await self._launch(port)
            offers = Offers(client, self._log_file)
            await self._until_up(client, offers, port, report)
            await self._look_around()
            self._offers = offers
            info = self._info(offers, port, began)
        self._read_up_to_here()
        self._up_at = time.monotonic()
        self._own(self._await_end())
        self._own(self._observe(client))
        if offers.instructions:
            self._own(offers.follow())
        report("ready", info.url)
        return info

    async def _take_port(self) -> int:
        given = self._arguments

        def take() -> int:
            held, port = hold(str(given["host"]), int(given["port"]), int(given.get("port_before") or 0))
            self._held = held
            if self._over.is_set():  # the start was called off meanwhile
                held.close()
            return port

        return await asyncio.to_thread(take)

    async def _launch(self, port: int) -> HttpClient:
        given = self._arguments
        words: Sequence[str] = given["args"]
        environment: Mapping[str, str] = given.get("env") or {}
        program = self._program = ServerProgram(
            command_of(given, port), environment, self._tree.tag, self._log_file
        )
        self._tree.descend_from(program.pid, TITLE)
        await self._tree.scan()
        await asyncio.to_thread(program.be_guarded)
        host = str(given["host"])
        known = environment.get("VLLM_API_KEY") or os.environ.get("VLLM_API_KEY", "")
        key = value_of(words, "--api-key") or known
        return HttpClient(_EVERYWHERE.get(host, host), port, secure=self._secure, key=key)

    @property
    def _secure(self) -> bool:
        return has_flag(self._arguments["args"], "--ssl-certfile")

    async def _until_up(self, client: HttpClient, offers: Offers, port: int, report: Report) -> None:
        """Wait until it is well, and say meanwhile how far it is; its processes are found as they come up."""
        reported = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self._look_around()
            if time.monotonic() - reported >= _REPORT_SECONDS:
                reported = time.monotonic()
                report(*phase_of(await asyncio.to_thread(log_tail, self._log_file)))
            with contextlib.suppress(HttpFailedError):  # it does not listen yet, or has too much to do
                answer = await self._unless_over(client.get("/health", _ASK_SECONDS))
                pids = frozenset(process.pid for process in self._tree.processes)
                if answer.status == 200 and await asyncio.to_thread(listener_of, port, pids):  # noqa: PLR2004
                    await self._unless_over(offers.look())
                    return

    def _info(self, offers: Offers, port: int, began: float) -> EngineInfo:
        host = str(self._arguments["host"])
        if host in _EVERYWHERE:
            host = _address()
        scheme = "https" if self._secure else "http"
        return EngineInfo(
            engine="server",
            version=offers.version,
            max_model_len=offers.max_model_len,
            max_num_seqs=0,
            eos_token_ids=(),
            processes=self.processes(),
            startup_seconds=time.monotonic() - began,
            instructions=offers.instructions,
            recovery_timeout=_recovery_seconds(self._arguments["args"]) if offers.instructions else 0.0,
            url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        )

    async def _look_around(self) -> None:
        self._go_on()
        await self._tree.scan()
        self._go_on()
        if self._tree.deaths:
            raise EngineGoneError("the server ended while starting")

    def _read_up_to_here(self) -> None:
        """What comes later in its log is news."""
        self._since = os.path.getsize(self._log_file)  # noqa: PTH202 - a Path is no faster

    def _go_on(self) -> None:
        if self._ending.asked:
            raise EngineGoneError("the server was stopped while starting")

    async def _failed_start(self, error: Exception) -> Termination:
        if self._tree.deaths and not self._ending.asked:
            return await self._last_words("starting")
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
        """End it with its whole process tree, proven; see `Engine.stop`."""
        await self._ending(grace)

    async def _end(self) -> None:
        self._over.set()
        for task in self._tasks:
            task.cancel()
        self._tree.unwatch()
        left: tuple[ProcessId, ...] = ()
        if self._program is not None:
            await self._tree.scan()
            if self._ending.kill_at() > time.monotonic():
                self._program.ask_to_end()
                await self._tree.all_gone(self._ending.kill_at)
            left = await self._tree.end(_KILL_SECONDS, self._reap)
            self._reap()
        self._tree.close()
        if left:
            raise EngineError(f"outlived SIGKILL: {', '.join(f'{p.name} (pid {p.pid})' for p in left)}")
        if self._program is not None:
            self._program.let_go()
        if self._held is not None:
            self._held.close()
            self._held = None

    def _reap(self) -> None:
        if self._program is not None:
            self._program.poll()

    async def _await_end(self) -> None:
        await self._tree.first_death()
        self._over.set()
        died = await self._last_words("serving")
        if not self._died.done():
            self._died.set_result(died)

    async def _last_words(self, phase: str) -> Termination:
        died = await describe_death(self._tree, self._log_file, phase, self._exit_code, self._since)
        if died.root.type == "ProcessExited" and died.exit_code == 0 and self._program is not None:
            # All of it leaves in order: what counts is that the server itself does.
            code = await self._program.left(_LEAVE_SECONDS)
            if code is not None:
                said = f"APIServer (pid {self._program.pid}) ended with exit code {code}"
                causes = (*died.causes[:-1], Cause("ProcessExited", said))
                died = replace(died, causes=causes, exit_code=code)
        return with_usage_error(died, await asyncio.to_thread(log_tail, self._log_file))

    def _exit_code(self, pid: int) -> int | None:
        if self._program is not None and self._program.pid == pid:
            return self._program.poll()
        return None

    async def died(self) -> Termination:
        """Why it ended by itself."""
        return await asyncio.shield(self._died)

    def processes(self) -> tuple[ProcessId, ...]:
        """Its front, EngineCore, the workers, and what else they have started."""
        return self._tree.processes

    # -- looking --------------------------------------------------------------------------------

    def outside(self) -> Outside:
        """What its clients ask of it, and whether it gets on."""
        seen = self._traffic.outside()
        if self._counts:
            worked = self._traffic.tokens > self._own_tokens
        else:
            worked = not self._traffic.is_silent and time.monotonic() - self._up_at >= _SETTLED_SECONDS
        return seen._replace(doubt=self._doubt if self._traffic.is_silent else "", worked=worked)

    async def _observe(self, client: HttpClient) -> None:
        interval = float(self._arguments.get("probe_interval") or 2.0) / 2
        while True:
            asked = time.monotonic()
            try:
                answer = await client.get("/health", max(1.0, interval))
                if answer.status == 200:  # noqa: PLR2004 - HTTP's
                    self._traffic.answered()
                    await self._count(client)
                else:
                    self._doubt = f"GET /health answered {answer.status}"
                    self._traffic.silent(asked)
            except HttpFailedError as failed:
                log.info("server.not_answering", incarnation=self._incarnation, why=str(failed))
                self._doubt = f"{failed.what} was not answered"
                self._traffic.silent(asked)
            await asyncio.sleep(max(0.0, asked + interval - time.monotonic()))

    async def _count(self, client: HttpClient) -> None:
        page = await client.get("/metrics", _ASK_SECONDS)
        load = (await client.get("/load", _ASK_SECONDS)).json()
        sample = read_metrics(page.body.decode(errors="replace"))
        self._counts = sample.known
        own = load.get("server_load") if isinstance(load, dict) else 0
        self._traffic.counted(sample, load=own if isinstance(own, int) else 0, now=time.monotonic())

    # -- asking ---------------------------------------------------------------------------------

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Carry out one of the calls that the server offers over HTTP."""
        answer = await self._unless_over(self._there.ask(method, args, kwargs))
        if method == "handle_fault" and answer.get("success"):
            self._read_up_to_here()  # what it has recovered from is not why it ends later
        return answer

    async def status(self) -> EngineStatus:
        """How it said it is when it was asked last."""
        return EngineStatus("healthy") if self._offers is None else self._offers.status

    def generate(self, order: GenerateCommand) -> AsyncIterator[Chunk]:
        """Tokens of one order, at once: for probes. What others ask for, they ask the server itself."""
        return self._generate(order)

    async def _generate(self, order: GenerateCommand) -> AsyncGenerator[Chunk, None]:
        params = {name: order.params[name] for name in _PASSED_ON if name in order.params}
        prompt = order.prompt if isinstance(order.prompt, str) else list(order.prompt)
        most = int(params.get("max_tokens") or 0)
        self._own_tokens += most  # before they are counted as somebody's
        try:
            answer = await self._unless_over(self._there.complete(prompt, params))
        except HttpFailedError as failed:
            raise RequestLostError(str(failed)) from None
        said = answer.json()
        if answer.status != 200 or not isinstance(said, dict):  # noqa: PLR2004 - HTTP's
            cause = Cause(f"HTTP {answer.status}", answer.text)
            raise RequestRefusedError((cause,))
        tokens = int((said.get("usage") or {}).get("completion_tokens") or 0)
        self._own_tokens += tokens - most
        choice = said["choices"][0]
        ids = tuple(choice.get("token_ids") or (0,) * tokens)
        text, finish = str(choice.get("text") or ""), choice["finish_reason"]
        yield Chunk(order.request, order.attempt, ids, text, None, finish)

    async def abort(self, requests: Sequence[str]) -> None:
        """Nothing: who closes its iterator ends its request, and no other request comes this way."""

    @property
    def _there(self) -> Offers:
        if self._offers is None or self._over.is_set():
            raise EngineGoneError("the server does not run")
        return self._offers

    async def _unless_over(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for an answer, but not longer than the server lives."""
        task = asyncio.ensure_future(call)
        ends: list[Awaitable[Any]] = [self._over.wait(), self._tree.first_death()]
        over = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait((task, *over), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineGoneError("the server has ended")
            return task.result()
        finally:
            for each in (task, *over):
                each.cancel()

    def _own(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(_report_failure)


def _report_failure(task: asyncio.Task[None]) -> None:
    """A watch that broke is recorded: the others go on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("server.watch.failed", error=f"{type(error).__name__}: {error}")


def _recovery_seconds(words: Sequence[str]) -> float:
    """How long the engine waits for an instruction, as far as its command line says so; else 0: not known."""
    name = "engine_recovery_timeout_sec"
    said = value_of(words, f"--fault-tolerance-config.{name}".replace("_", "-"), "--recovery-timeout")
    table = value_of(words, "--fault-tolerance-config")
    try:
        return float(said or (json.loads(table).get(name) if table else None) or 0.0)
    except (ValueError, TypeError, AttributeError):
        return 0.0


def _address() -> str:
    """Address of this machine as others reach it; no packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _temporary_log() -> str:
    descriptor, name = tempfile.mkstemp(prefix="rayvisor-server-", suffix=".log")
    os.close(descriptor)
    return name
