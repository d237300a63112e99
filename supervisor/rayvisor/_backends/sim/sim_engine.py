"""The host's side of the simulated engine."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from rayvisor._backends.host.engine import (
    EngineError,
    EngineGoneError,
    EngineStatus,
    Report,
    RequestLostError,
    RequestRefusedError,
)
from rayvisor._backends.host.log_files import temporary_log
from rayvisor._backends.host.post_mortem import describe_death
from rayvisor._backends.host.shutdown import EngineStop, check_none_left, stop_if_start_fails
from rayvisor._backends.host.waiting import first_of
from rayvisor._backends.process.engine_tree import TAG, ProcessTree, new_tag
from rayvisor._backends.sim.arguments import DEFAULTS, check_arguments
from rayvisor._backends.sim.fault_tolerance import FaultTolerance
from rayvisor._backends.sim.frames import FrameDecoder, encode_frame
from rayvisor._backends.sim.model import EOS
from rayvisor._backends.sim.processes import CORE, launch
from rayvisor._backends.sim.requests import TextStream, check_params, logprob_entries, tokenize
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor.faults import Termination
from rayvisor.timeouts import DEFAULT_TIMEOUTS, Timeouts

__all__ = ["SimEngine"]

_HANG_SECONDS = 86400.0
"""How long a simulated hang lasts."""


class _RequestOutput:
    """Output of one request that has arrived and has not been read yet."""

    __slots__ = ("arrived", "error", "finish", "logprobs", "reason", "scores", "tokens")

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.error: EngineError | None = None
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.scores: Any = None
        self.finish: str | None = None
        self.reason: Any = None

    def put(self, tokens: list[int], logprobs: Any, finish: str | None, reason: Any, scores: Any) -> None:
        self.tokens += tokens
        if logprobs:
            self.logprobs += logprobs
        if scores:
            self.scores = scores
        self.finish, self.reason = finish, reason
        self.arrived.set()

    def fail(self, error: EngineError) -> None:
        self.error = error
        self.arrived.set()


class SimEngine:
    """One incarnation of the simulated engine.

    Parameters
    ----------
    incarnation
        Number of this start, from 1.
    arguments
        See [`DEFAULTS`][rayvisor._backends.sim.arguments.DEFAULTS].
    log_file
        The processes write their output to this file; by default a file in the temporary folder.
    tag
        Identifies the processes of the engine; by default a new one.
    timeouts
        Timeouts and intervals of the engine.
    """

    def __init__(
        self,
        incarnation: int,
        arguments: Mapping[str, Any],
        log_file: str = "",
        *,
        tag: str = "",
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._timeouts = timeouts.host
        self._incarnation = incarnation
        self._weights = "0"
        self._given = dict(arguments)
        self._arguments = {**DEFAULTS, **arguments}
        self._log_file = log_file or temporary_log("sim")
        self._tree = ProcessTree(tag or new_tag(), timeouts=timeouts.process)
        self._core: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._shutdown = EngineStop(self._end)
        self._outputs: dict[str, _RequestOutput] = {}
        self._faults = FaultTolerance(self._arguments, self._send)
        self._death: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._death_watch: asyncio.Task[None] | None = None

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Store a weight version, or return the arguments of a collective call.

        The weights of ``update_weights`` are a number. Another number is another model, also for the rest of
        texts that are being generated.
        """
        if method == "get_weight_version":
            return self._weights
        if method in {"update_weight_version", "update_weights"}:
            self._weights = str(args[0])
            if method == "update_weights" and isinstance(args[0], int):
                self._send({"weights": args[0]})
            return None
        if method in {"pause_generation", "resume_generation"}:
            self._send({"pause": method == "pause_generation"})
            return None
        if method == "collective_rpc":
            return [[*args], {**kwargs}]
        if method == "get_status":
            return self._faults.report()
        if method == "handle_fault":
            return await self._faults.handle(args[0])
        raise EngineError(f"the simulated engine has no method {method!r}")

    async def status(self) -> EngineStatus:
        """Return its last reported status; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        return self._faults.status

    @property
    def has_ended(self) -> bool:
        """Whether it has died, or is being stopped."""
        return self._ended.is_set()

    # -- start and stop ---------------------------------------------------------------------------------

    async def start(self, report: Report) -> EngineInfo:
        """Start both processes; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        began = time.monotonic()
        async with stop_if_start_fails(self.stop, self._describe_failed_start):
            check_arguments(self._given)
            self._raise_if_stopping()
            report("launching", CORE)
            await self._launch()
            report("loading", str(self._arguments["model"]))
            await first_of(
                self._ready.wait(), self._ended.wait(), self._tree.first_death(), self._discover_processes()
            )
            await self._tree.scan()
            self._raise_if_stopping()
            if not self._ready.is_set() or self._tree.deaths:
                raise EngineGoneError("a process of the engine ended while starting")
        self._death_watch = asyncio.create_task(self._watch_for_death())
        report("ready", "")
        return EngineInfo(
            engine="sim",
            version="1",
            max_model_len=self._arguments["max_model_len"],
            max_num_seqs=self._arguments["max_num_seqs"],
            eos_token_ids=(EOS,),
            processes=self.processes(),
            startup_seconds=time.monotonic() - began,
            instructions=self._faults.instructions,
            recovery_timeout=self._faults.recovery_timeout,
        )

    async def stop(self, grace: float) -> None:
        """End both processes, and verify that they have gone."""
        await self._shutdown(grace)

    async def _end(self) -> None:
        self._ended.set()
        if self._death_watch is not None:
            self._death_watch.cancel()
            self._death_watch = None
        self._tree.unwatch()
        self._fail_all(EngineGoneError("the engine was stopped"))
        if self._transport is not None:
            self._transport.close()  # the processes exit when their connection closes
            await self._tree.all_gone(self._shutdown.kill_at)
        left = await self._tree.end(self._timeouts.sim_kill, self._reap)
        self._reap()
        self._tree.close()
        check_none_left(left)

    async def died(self) -> Termination:
        """Wait until the engine has died, and return the cause."""
        return await asyncio.shield(self._death)

    def processes(self) -> tuple[ProcessId, ...]:
        """Return the identities of EngineCore and Worker."""
        return self._tree.processes

    # -- requests -------------------------------------------------------------------------------

    def generate(self, command: GenerateCommand) -> AsyncIterator[Chunk]:
        """Return the tokens of one request; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        return self._generate(command)

    def _read(self, command: GenerateCommand) -> tuple[list[int], dict[str, Any], int]:
        """Validate a request. Return its prompt's ids, its parameters, and the number of tokens that fit.

        The parameters are those for the tokens that have not been delivered yet.
        """
        if command.delivered and isinstance(command.prompt, str):
            raise TypeError("prompt must be token ids where tokens have been delivered")
        prompt = tokenize(command.prompt)
        check_params(command.params)
        longest = self._arguments["max_model_len"]
        if not command.delivered and not 0 < len(prompt) < longest:
            raise ValueError(f"the prompt has {len(prompt)} tokens; this model takes 1 to {longest - 1}")
        return prompt, _remaining(command), longest - len(prompt) - len(command.delivered)

    async def _generate(self, command: GenerateCommand) -> AsyncGenerator[Chunk, None]:
        try:
            prompt, params, room = self._read(command)
            text = TextStream(prompt, command)
        except (TypeError, ValueError, KeyError) as error:
            raise RequestRefusedError(plain_causes(error)) from None
        if room <= 0 or (params.get("max_tokens") is not None and params["max_tokens"] <= 0):
            yield Chunk(command.request, command.attempt, (), text.delta(finished=True), None, "length")
            return
        transport = self._transport
        if transport is None or self._ended.is_set() or self._tree.deaths:
            raise EngineGoneError("the engine does not run")
        self._hang_on_prompt(prompt)
        name = f"{command.request}#{command.attempt}"
        output = self._outputs[name] = _RequestOutput()
        transport.write(encode_frame({"add": [[name, [*prompt, *command.delivered], params]]}))
        finished = False
        first: tuple[int, ...] | None = tuple(prompt)
        try:
            while not finished:
                await output.arrived.wait()
                output.arrived.clear()
                if output.error is not None:
                    finished = True
                    if isinstance(output.error, _AbortedError):
                        return
                    raise output.error
                tokens, output.tokens = output.tokens, []
                logprobs, output.logprobs = output.logprobs, []
                scores, output.scores = output.scores, None
                finish, reason = output.finish, output.reason
                if finish == "abort":
                    finished = True
                    raise RequestLostError("the engine ended the request by itself (abort)")
                stop = text.append(tokens, without_last=finish == "stop")
                if stop is not None:
                    self._send_abort([name] if finish is None else [])
                    finish, reason = "stop", stop
                finished = finish is not None
                yield Chunk(
                    command.request,
                    command.attempt,
                    tuple(tokens),
                    text.delta(finished=finished),
                    tuple(logprob_entries(each) for each in logprobs) if logprobs else None,
                    finish,
                    reason,
                    first,
                    tuple(each and logprob_entries(each) for each in scores) if scores else None,
                )
                first = None
        finally:
            if self._outputs.pop(name, None) is not None and not finished:
                self._send_abort([name])

    async def abort(self, requests: Sequence[str]) -> None:
        """Abort these requests; their ``generate`` ends without a finish reason."""
        wanted = set(requests)
        for name, output in list(self._outputs.items()):
            if name.rpartition("#")[0] in wanted:
                output.fail(_AbortedError())
                self._send_abort([name])

    # -- internals ------------------------------------------------------------------------------

    def _hang_on_prompt(self, prompt: Sequence[int]) -> None:
        """Block this process if the prompt contains the text that asks for it."""
        text = bytes(token for token in prompt if token < EOS).decode(errors="replace")
        if self._arguments["block_on_prompt"] and self._arguments["block_on_prompt"] in text:
            time.sleep(_HANG_SECONDS)
        if self._arguments["hold_gil_on_prompt"] and self._arguments["hold_gil_on_prompt"] in text:
            ctypes.PyDLL(None).sleep(int(_HANG_SECONDS))  # unlike CDLL, it keeps the interpreter lock

    def _raise_if_stopping(self) -> None:
        if self._shutdown.requested:
            raise EngineGoneError("the engine was stopped while starting")

    async def _launch(self) -> None:
        environment = {**os.environ, TAG: self._tree.tag}
        self._core, here = launch(CORE, self._arguments, self._log_file, environment)
        self._tree.descend_from(self._core.pid, CORE)  # one process may run several engines
        here.settimeout(0.0)  # non-blocking
        loop = asyncio.get_running_loop()
        # From here on the loop owns the socket, also when the start is cancelled.
        protocol = _CoreProtocol(self._handle_message, self._ended.set)
        self._transport, _ = await loop.create_connection(lambda: protocol, sock=here)
        await self._tree.scan()

    async def _discover_processes(self) -> None:
        """Find the processes that come up during the start: their processor time counts as progress."""
        while True:
            await asyncio.sleep(self._timeouts.sim_scan)
            await self._tree.scan()

    async def _watch_for_death(self) -> None:
        """Wait until the engine has died, and publish the cause."""
        await first_of(self._ended.wait(), self._tree.first_death())
        self._ended.set()
        self._fail_all(EngineGoneError("the engine has died"))
        if not self._tree.deaths:
            # The connection closes a moment before the process has ended.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.sim_exit):
                    await self._tree.first_death()
        died = await self._describe_death("serving")
        if not self._death.done():
            self._death.set_result(died)

    async def _describe_death(self, phase: str) -> Termination:
        return await describe_death(
            self._tree, self._log_file, phase, self._exit_code, timeouts=self._timeouts
        )

    def _exit_code(self, pid: int) -> int | None:
        if self._core is not None and self._core.pid == pid:
            return self._core.poll()
        return None

    async def _describe_failed_start(self, error: Exception) -> Termination:
        if isinstance(error, EngineGoneError) and not self._shutdown.requested:
            return await self._describe_death("starting")
        return Termination(
            causes=plain_causes(error),
            phase="starting",
            log_file=self._log_file,
            permanent=isinstance(error, TypeError | ValueError),
        )

    def _reap(self) -> None:
        if self._core is not None:
            self._core.poll()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def _send_abort(self, names: list[str]) -> None:
        if names:
            self._send({"abort": names})

    def _fail_all(self, error: EngineError) -> None:
        self._faults.end(error)
        for output in self._outputs.values():
            output.fail(error)

    def _handle_message(self, message: Any) -> None:
        if "ready" in message:
            self._ready.set()
        self._faults.handle_message(message)
        for name, tokens, logprobs, finish, reason, scores in message.get("outputs", ()):
            output = self._outputs.get(name)
            if output is not None:
                output.put(tokens, logprobs, finish, reason, scores)


class _AbortedError(EngineError):
    """Internal: a requested abort."""


class _CoreProtocol(asyncio.Protocol):
    def __init__(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._decoder = FrameDecoder()

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._on_lost()


def _remaining(command: GenerateCommand) -> dict[str, Any]:
    """Return the sampling parameters for the tokens that have not been delivered yet."""
    params = dict(command.params)
    done = len(command.delivered)
    if done:
        most = params.get("max_tokens", 16)
        params["max_tokens"] = None if most is None else most - done
        params["min_tokens"] = max(0, params.get("min_tokens", 0) - done)
        params.pop("prompt_logprobs", None)
    return params
