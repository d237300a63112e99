"""The simulated engine, seen from its host."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from rayvisor._backends.host.engine import (
    EngineError,
    EngineGoneError,
    EngineStatus,
    Report,
    RequestLostError,
    RequestRefusedError,
)
from rayvisor._backends.host.post_mortem import describe_death
from rayvisor._backends.host.shutdown import EngineStop, up_or_ended
from rayvisor._backends.process.engine_tree import TAG, ProcessTree, new_tag
from rayvisor._backends.sim.arguments import DEFAULTS, check_arguments
from rayvisor._backends.sim.faults import FaultTolerance
from rayvisor._backends.sim.frames import Unframer, frame
from rayvisor._backends.sim.model import EOS
from rayvisor._backends.sim.processes import CORE, launch
from rayvisor._backends.sim.requests import TextStream, check_params, logprob_entries, tokenize
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._core.protocol.wire import Chunk, EngineInfo, GenerateCommand, ProcessId
from rayvisor.faults import Termination

__all__ = ["SimEngine"]

_KILL_SECONDS = 5.0
_FOR_EVER = 86400.0
_EXIT_SECONDS = 1.0
_SCAN_SECONDS = 0.1


class _Answers:
    """What came for one request and has not been read yet."""

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
        Which start this is.
    arguments
        See [`DEFAULTS`][rayvisor._backends.sim.arguments.DEFAULTS].
    log_file
        Where the processes' output goes; empty: a file in the temporary folder.
    """

    def __init__(self, incarnation: int, arguments: Mapping[str, Any], log_file: str = "") -> None:
        self._incarnation = incarnation
        self._weights = "0"
        self._given = dict(arguments)
        self._arguments = {**DEFAULTS, **arguments}
        self._log_file = log_file or _temporary_log()
        self._tree = ProcessTree(new_tag())
        self._core: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._ending = EngineStop(self._end)
        self._answers: dict[str, _Answers] = {}
        self._faults = FaultTolerance(self._arguments, self._send)
        self._died: asyncio.Future[Termination] = asyncio.get_running_loop().create_future()
        self._sentinel: asyncio.Task[None] | None = None

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Keep a weight version, and give back what a collective call was given.

        The weights of ``update_weights`` are a number: another one is another model, also for texts that
        have begun.
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
        raise EngineError(f"the simulated engine is not asked for {method!r}")

    async def status(self) -> EngineStatus:
        """How it says it is; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        return self._faults.status

    # -- life -----------------------------------------------------------------------------------

    async def start(self, report: Report) -> EngineInfo:
        """Bring the two processes up; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        began = time.monotonic()
        async with up_or_ended(self.stop, self._failed_start):
            check_arguments(self._given)
            self._go_on()
            report("launching", CORE)
            await self._launch()
            report("loading", str(self._arguments["model"]))
            await self._first_of(
                self._ready.wait(), self._over.wait(), self._tree.first_death(), self._look_around()
            )
            await self._tree.scan()
            self._go_on()
            if not self._ready.is_set() or self._tree.deaths:
                raise EngineGoneError("a process of the engine ended while starting")
        self._sentinel = asyncio.create_task(self._await_end())
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
        """End both processes, proven."""
        await self._ending(grace)

    async def _end(self) -> None:
        self._over.set()
        if self._sentinel is not None:
            self._sentinel.cancel()
            self._sentinel = None
        self._tree.unwatch()
        self._fail_all(EngineGoneError("the engine was stopped"))
        if self._transport is not None:
            self._transport.close()  # the processes end when nobody speaks to them
            await self._tree.all_gone(self._ending.kill_at)
        left = await self._tree.end(_KILL_SECONDS, self._reap)
        self._reap()
        self._tree.close()
        if left:
            raise EngineError(f"outlived SIGKILL: {', '.join(f'{p.name} (pid {p.pid})' for p in left)}")

    async def died(self) -> Termination:
        """Why the engine ended by itself."""
        return await asyncio.shield(self._died)

    def processes(self) -> tuple[ProcessId, ...]:
        """EngineCore and Worker."""
        return self._tree.processes

    # -- requests -------------------------------------------------------------------------------

    def generate(self, order: GenerateCommand) -> AsyncIterator[Chunk]:
        """Tokens of one order; see [`Engine`][rayvisor._backends.host.engine.Engine]."""
        return self._generate(order)

    def _read(self, order: GenerateCommand) -> tuple[list[int], dict[str, Any], int]:
        """Check an order: its prompt's ids, the parameters for what is left, room in the model's length."""
        if order.delivered and isinstance(order.prompt, str):
            raise TypeError("prompt must be token ids where tokens have been delivered")
        prompt = tokenize(order.prompt)
        check_params(order.params)
        longest = self._arguments["max_model_len"]
        if not order.delivered and not 0 < len(prompt) < longest:
            raise ValueError(f"the prompt has {len(prompt)} tokens; this model takes 1 to {longest - 1}")
        return prompt, _remaining(order), longest - len(prompt) - len(order.delivered)

    async def _generate(self, order: GenerateCommand) -> AsyncGenerator[Chunk, None]:
        try:
            prompt, params, room = self._read(order)
            text = TextStream(prompt, order)
        except (TypeError, ValueError, KeyError) as error:
            raise RequestRefusedError(plain_causes(error)) from None
        if room <= 0 or (params.get("max_tokens") is not None and params["max_tokens"] <= 0):
            yield Chunk(order.request, order.attempt, (), text.delta(finished=True), None, "length")
            return
        transport = self._transport
        if transport is None or self._over.is_set() or self._tree.deaths:
            raise EngineGoneError("the engine does not run")
        self._play_faults(prompt)
        name = f"{order.request}#{order.attempt}"
        answers = self._answers[name] = _Answers()
        transport.write(frame({"add": [[name, [*prompt, *order.delivered], params]]}))
        finished = False
        first: tuple[int, ...] | None = tuple(prompt)
        try:
            while not finished:
                await answers.arrived.wait()
                answers.arrived.clear()
                if answers.error is not None:
                    finished = True
                    if isinstance(answers.error, _AbortedError):
                        return
                    raise answers.error
                tokens, answers.tokens = answers.tokens, []
                logprobs, answers.logprobs = answers.logprobs, []
                scores, answers.scores = answers.scores, None
                finish, reason = answers.finish, answers.reason
                if finish == "abort":
                    finished = True
                    raise RequestLostError("the engine ended the request unasked (abort)")
                stop = text.take(tokens, without_last=finish == "stop")
                if stop is not None:
                    self._send_abort([name] if finish is None else [])
                    finish, reason = "stop", stop
                finished = finish is not None
                yield Chunk(
                    order.request,
                    order.attempt,
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
            if self._answers.pop(name, None) is not None and not finished:
                self._send_abort([name])

    async def abort(self, requests: Sequence[str]) -> None:
        """End these requests: their ``generate`` ends without a finish reason."""
        asked = set(requests)
        for name, answers in list(self._answers.items()):
            if name.rpartition("#")[0] in asked:
                answers.fail(_AbortedError())
                self._send_abort([name])

    # -- within ---------------------------------------------------------------------------------

    def _play_faults(self, prompt: Sequence[int]) -> None:
        """Hang this very process, if the prompt says so."""
        text = bytes(token for token in prompt if token < EOS).decode(errors="replace")
        if self._arguments["block_on_prompt"] and self._arguments["block_on_prompt"] in text:
            time.sleep(_FOR_EVER)
        if self._arguments["hold_gil_on_prompt"] and self._arguments["hold_gil_on_prompt"] in text:
            ctypes.PyDLL(None).sleep(int(_FOR_EVER))  # does not let go of the interpreter, as CDLL would

    def _go_on(self) -> None:
        if self._ending.asked:
            raise EngineGoneError("the engine was stopped while starting")

    async def _launch(self) -> None:
        environment = {**os.environ, TAG: self._tree.tag}
        self._core, here = launch(CORE, self._arguments, self._log_file, environment)
        self._tree.descend_from(self._core.pid, CORE)  # several engines may live in one process
        here.setblocking(False)  # noqa: FBT003 - the socket's own method
        loop = asyncio.get_running_loop()
        # From here on the loop owns the socket, also when the start is called off.
        self._transport, _ = await loop.create_connection(lambda: _FromCore(self), sock=here)
        await self._tree.scan()

    async def _look_around(self) -> None:
        """While it starts, find the processes that come up: what they do is how far it is."""
        while True:
            await asyncio.sleep(_SCAN_SECONDS)
            await self._tree.scan()

    async def _first_of(self, *awaitables: Any) -> None:
        tasks = [asyncio.ensure_future(each) for each in awaitables]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _await_end(self) -> None:
        """Find out that the engine has ended by itself."""
        await self._first_of(self._over.wait(), self._tree.first_death())
        self._over.set()
        self._fail_all(EngineGoneError("the engine has died"))
        if not self._tree.deaths:
            # The connection ends with the process, a moment before it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_SECONDS):
                    await self._tree.first_death()
        died = await self._last_words("serving")
        if not self._died.done():
            self._died.set_result(died)

    async def _last_words(self, phase: str) -> Termination:
        return await describe_death(self._tree, self._log_file, phase, self._exit_code)

    def _exit_code(self, pid: int) -> int | None:
        if self._core is not None and self._core.pid == pid:
            return self._core.poll()
        return None

    async def _failed_start(self, error: Exception) -> Termination:
        if isinstance(error, EngineGoneError) and not self._ending.asked:
            return await self._last_words("starting")
        return Termination(
            causes=plain_causes(error),
            phase="starting",
            log_file=self._log_file,
            permanent=isinstance(error, (TypeError, ValueError)),
        )

    def _reap(self) -> None:
        if self._core is not None:
            self._core.poll()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def _send_abort(self, names: list[str]) -> None:
        if names:
            self._send({"abort": names})

    def _fail_all(self, error: EngineError) -> None:
        self._faults.end(error)
        for answers in self._answers.values():
            answers.fail(error)

    def _take(self, message: Any) -> None:
        if "ready" in message:
            self._ready.set()
        self._faults.take(message)
        for name, tokens, logprobs, finish, reason, scores in message.get("outputs", ()):
            answers = self._answers.get(name)
            if answers is not None:
                answers.put(tokens, logprobs, finish, reason, scores)


class _AbortedError(EngineError):
    """Within: an abort that was asked for."""


class _FromCore(asyncio.Protocol):
    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self._unframer = Unframer()

    def data_received(self, data: bytes) -> None:
        for message in self._unframer.feed(data):
            self._engine._take(message)  # noqa: SLF001 - two halves of one class

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._engine._over.set()  # noqa: SLF001 - as above


def _remaining(order: GenerateCommand) -> dict[str, Any]:
    """Sampling parameters for what is left to do after the delivered tokens."""
    params = dict(order.params)
    done = len(order.delivered)
    if done:
        most = params.get("max_tokens", 16)
        params["max_tokens"] = None if most is None else most - done
        params["min_tokens"] = max(0, params.get("min_tokens", 0) - done)
        params.pop("prompt_logprobs", None)
    return params


def _temporary_log() -> str:
    descriptor, name = tempfile.mkstemp(prefix="rayvisor-sim-", suffix=".log")
    os.close(descriptor)
    return name
