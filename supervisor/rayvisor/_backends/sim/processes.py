"""The processes of the simulated engine: EngineCore schedules, Worker computes.

Both import the standard library alone, so that `launch` has an engine up in a tenth of a second. They write
to the engine's log, in vLLM's form.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rayvisor._backends.sim.frames import FrameDecoder, encode_frame
from rayvisor._backends.sim.model import EOS, TokenSequence, prompt_logprobs

__all__ = ["CORE", "WORKER", "launch", "main"]

CORE = "sim::EngineCore"
WORKER = "sim::Worker"

# The package's own __init__ would import the whole public interface. A bare module of the same name takes
# its place, so that only the needed modules are imported.
_BOOTSTRAP = (
    "import sys, types; "
    "package = types.ModuleType('rayvisor'); "
    "package.__path__ = [sys.argv[1]]; "
    "sys.modules['rayvisor'] = package; "
    "from rayvisor._backends.sim.processes import main; "
    "main(sys.argv[2], int(sys.argv[3]), sys.argv[4])"
)


def launch(
    title: str, arguments: Mapping[str, Any], log_file: str, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start one of the two processes. Return it, and the socket that is connected to it.

    It writes its output to the log file; if that is empty, it inherits the output of this process.
    """
    here, there = socket.socketpair()
    with ExitStack() as opened:
        opened.enter_context(there)
        output = opened.enter_context(Path(log_file).open("ab")) if log_file else None
        package = str(Path(__file__).parents[2])
        command = [
            sys.executable,
            "-c",
            _BOOTSTRAP,
            package,
            title,
            str(there.fileno()),
            json.dumps(arguments),
        ]
        process = subprocess.Popen(  # noqa: S603 - the command is this module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(there.fileno(),),
            env=dict(environment),
        )
    return process, here


def main(title: str, descriptor: int, arguments: str) -> None:
    """Run as one of the two processes until the other side closes the connection."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        pass  # the title is on the command line as well
    else:
        setproctitle(title)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Never closed before the process ends: the other side takes a closed connection for a death.
    upwards = socket.socket(fileno=descriptor)
    if title == CORE:
        _Core(upwards, json.loads(arguments)).run()
    else:
        _Worker(upwards, json.loads(arguments)).run()


class _Worker:
    """Computes one token of each running text for each step that EngineCore requests."""

    def __init__(self, upwards: socket.socket, arguments: Mapping[str, Any]) -> None:
        self._upwards = upwards
        self._weights = int(arguments.get("seed", 0))
        self._prefill = float(arguments.get("prefill_seconds", 0.0))
        signal.signal(signal.SIGUSR1, _sleep_forever)
        signal.signal(signal.SIGUSR2, _compute_forever)
        _compute(float(arguments.get("compile_seconds", 0.0)))
        self._texts: dict[str, TokenSequence] = {}

    def run(self) -> None:
        decoder = FrameDecoder()
        with suppress(ConnectionError):  # EngineCore has ended
            while data := self._upwards.recv(1 << 16):
                for message in decoder.feed(data):
                    self._upwards.sendall(encode_frame(self._answer(message)))

    def _answer(self, message: Mapping[str, Any]) -> Any:
        try:
            return self._step(message)
        except Exception as error:  # noqa: BLE001 - a worker of vLLM's also survives any exception and reports it
            _log("Worker", "ERROR WorkerProc hit an exception.", *traceback.format_exc().splitlines())
            return {"failed": f"{type(error).__name__}: {error}"}

    def _step(self, message: Mapping[str, Any]) -> Any:
        if message["reset"]:
            self._texts.clear()
        if message["weights"] is not None:
            self._weights = message["weights"]
            for text in self._texts.values():
                text.change_weights(self._weights)
        if message["fail"]:
            raise RuntimeError("a step was asked to fail")
        for name in message["finished"]:
            self._texts.pop(name, None)
        scores = {}
        for name, prompt, params in message["new"]:
            _compute(self._prefill)
            self._texts[name] = TokenSequence(prompt, params, self._weights)
            if params.get("prompt_logprobs") is not None:
                scores[name] = prompt_logprobs(prompt, params["prompt_logprobs"], self._weights)
        return [[name, *text.step(), scores.get(name)] for name, text in self._texts.items()]


def _log(process: str, *lines: str) -> None:
    """Write to the engine's log, in vLLM's form."""
    text = "".join(f"({process} pid={os.getpid()}) {line}\n" for line in lines)
    sys.stderr.write(text)
    sys.stderr.flush()


def _compute(seconds: float) -> None:
    """Use this many seconds of processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def _sleep_forever(*_: object) -> None:
    """Never return from the current step, and use no processor time."""
    while True:
        time.sleep(60.0)


def _compute_forever(*_: object) -> None:
    """Never return from the current step, and use processor time."""
    _compute(math.inf)


class _Core:
    """Admits requests, steps the worker, finishes texts, and injects the faults of its arguments."""

    def __init__(self, upwards: socket.socket, arguments: Mapping[str, Any]) -> None:
        self._upwards = upwards
        self._arguments = arguments
        self._decoder = FrameDecoder()
        self._waiting: deque[Any] = deque()
        self._running: dict[str, dict[str, Any]] = {}
        self._new: list[Any] = []
        self._finished: list[str] = []
        self._paused = False
        self._reset = False
        self._weights: int | None = None  # new weights, not yet sent to the worker
        self._failing_steps = 0
        self._status = "healthy"
        self._declared_dead = False
        self._instructions: deque[Any] = deque()
        # A signal wakes an idle core.
        self._signals, waker = socket.socketpair()
        waker.settimeout(0.0)  # non-blocking, as signal.set_wakeup_fd requires
        signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGUSR1, self._fail_next_step)
        signal.signal(signal.SIGUSR2, self._declare_dead)
        rate = float(arguments["tokens_per_second"])
        self._pace = 1.0 / rate if rate > 0 else 0.0

    def run(self) -> None:
        arguments = self._arguments
        time.sleep(float(arguments["start_delay"]) / 2)
        if arguments["die_during_start"] == "core":
            os.kill(os.getpid(), signal.SIGKILL)
        self._process, self._worker = launch(WORKER, arguments, "", os.environ)
        self._from_worker = FrameDecoder()
        self._step()  # returns once the worker is up
        time.sleep(float(arguments["start_delay"]) / 2)
        if arguments["die_during_start"] == "worker":
            self._process.kill()
        if arguments["fail_start"]:
            raise RuntimeError(arguments["fail_start"])
        if arguments["die_during_start"]:
            self._step()  # detects the death of the worker
        self._upwards.sendall(encode_frame({"ready": [os.getpid(), self._process.pid]}))
        while True:
            try:
                self._serve()
                break
            except Exception as error:
                if not arguments["fault_tolerance"]:
                    raise
                if not self._recover(error):
                    _log("EngineCore", "ERROR [FT] No recovery within the timeout.")
                    raise
        self._worker.close()
        self._process.wait()

    def _serve(self) -> None:
        """Schedule until the other side closes the connection."""
        due = 0.0
        while True:
            if self._declared_dead:
                raise RuntimeError("declared dead by a signal")
            busy = bool(self._waiting or self._running) and not self._paused
            now = time.monotonic()
            wait = max(0.0, due - now) if busy else None
            readable, _, _ = select.select([self._upwards, self._worker, self._signals], [], [], wait)
            if self._signals in readable:
                self._signals.recv(64)
            if self._worker in readable:
                self._worker_died()
            if self._upwards in readable and not self._take():
                return
            self._refuse_instructions()
            busy = bool(self._waiting or self._running) and not self._paused
            if busy and time.monotonic() >= due:
                due = max(due + self._pace, now)
                self._admit()
                outputs = [self._output(*answer) for answer in self._step()]
                if outputs := [output for output in outputs if output is not None]:
                    self._upwards.sendall(encode_frame({"outputs": outputs}))

    def _take(self) -> bool:
        data = self._upwards.recv(1 << 16)
        for message in self._decoder.feed(data):
            self._waiting.extend(message.get("add", ()))
            self._paused = message.get("pause", self._paused)
            self._weights = message.get("weights", self._weights)
            if "instruction" in message:
                self._instructions.append(message["instruction"])
            aborted = set(message.get("abort", ()))
            if aborted:
                self._waiting = deque(item for item in self._waiting if item[0] not in aborted)
                for name in aborted & self._running.keys():
                    self._finish(name)
        return bool(data)

    def _admit(self) -> None:
        arguments = self._arguments
        while self._waiting and len(self._running) < arguments["max_num_seqs"]:
            name, prompt, params = self._waiting.popleft()
            text = bytes(token for token in prompt if token < EOS).decode(errors="replace")
            if arguments["crash_on_prompt"] and arguments["crash_on_prompt"] in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if arguments["raise_on_prompt"] and arguments["raise_on_prompt"] in text:
                self._running[name] = {}
                raise RuntimeError(f"the model cannot take {arguments['raise_on_prompt']!r}")
            if arguments["lose_on_prompt"] and arguments["lose_on_prompt"] in text:
                self._upwards.sendall(encode_frame({"outputs": [[name, [], None, "abort", None, None]]}))
                continue
            room = arguments["max_model_len"] - len(prompt)
            most = params.get("max_tokens", 16)
            limit = room if most is None else min(most, room)
            self._running[name] = {"params": params, "left": limit, "count": 0}
            self._new.append([name, prompt, params])

    def _step(self) -> list[Any]:
        new, self._new = self._new, []
        finished, self._finished = self._finished, []
        try:
            fail, self._failing_steps = bool(self._failing_steps), max(0, self._failing_steps - 1)
            reset, self._reset = self._reset, False
            weights, self._weights = self._weights, None
            request = {"new": new, "finished": finished, "fail": fail, "reset": reset, "weights": weights}
            self._worker.sendall(encode_frame(request))
            while True:
                data = self._worker.recv(1 << 16)
                if not data:
                    self._worker_died()
                if messages := self._from_worker.feed(data):
                    answers = messages[0]
                    if isinstance(answers, dict):
                        raise RuntimeError(f"Worker failed with error '{answers['failed']}'")
                    return list(answers)
        except ConnectionError:
            self._worker_died()
            raise

    def _worker_died(self) -> None:
        code = self._process.wait()
        _log("EngineCore", f"ERROR Worker proc Worker died unexpectedly (exit code: {code}), shutting down.")
        if not self._arguments["fault_tolerance"]:
            sys.exit(1)
        raise RuntimeError("the worker has ended")

    def _output(self, name: str, token: int, logprobs: Any, scores: Any) -> list[Any] | None:
        state = self._running.get(name)
        if state is None:
            return None
        params = state["params"]
        state["left"] -= 1
        state["count"] += 1
        finish: str | None = None
        reason: int | None = None
        if state["count"] >= params.get("min_tokens", 0):
            if token == EOS and not params.get("ignore_eos"):
                finish = "stop"
            elif token in (params.get("stop_token_ids") or ()):
                finish, reason = "stop", token
        if finish is None and state["left"] <= 0:
            finish = "length"
        if finish is not None:
            self._finish(name)
        return [name, [token], None if logprobs is None else [logprobs], finish, reason, scores]

    def _finish(self, name: str) -> None:
        del self._running[name]
        self._finished.append(name)

    # -- fault tolerance, as in vLLM's EngineCoreSentinel ---------------------------------------

    def _fail_next_step(self, *_: object) -> None:
        self._failing_steps += 1

    def _declare_dead(self, *_: object) -> None:
        self._declared_dead = True

    def _recover(self, error: Exception) -> bool:
        """Abort all requests, and wait for an instruction. Return whether the engine has recovered."""
        _log("EngineCore", f"INFO [FT] Engine 0 failed: {error}", *traceback.format_exc().splitlines())
        ended = [*self._running, *(item[0] for item in self._waiting)]
        self._waiting.clear()
        self._running.clear()
        self._new.clear()
        self._finished.clear()
        self._reset = True
        outputs = [[name, [], None, "abort", None, None] for name in ended]
        lost = self._process.poll() is not None or self._declared_dead
        self._push_status("dead" if lost else "unhealthy", type(error).__name__, outputs)
        until = time.monotonic() + float(self._arguments["recovery_timeout"])
        while self._status != "healthy":
            readable, _, _ = select.select([self._upwards], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                return False
            if not self._take():
                sys.exit(0)
            if self._status == "dead":
                self._refuse_instructions()
            while self._instructions and self._status == "unhealthy":
                self._carry_out(*self._instructions.popleft())
        return True

    def _carry_out(self, number: int, request: Mapping[str, Any]) -> None:
        """Carry out an instruction."""
        how = self._arguments["retry"]
        if request["instruction"] != "retry":
            self._acknowledge(number, request, f"no such instruction: {request['instruction']}")
        elif how == "fail":
            self._acknowledge(number, request, "the collective failed")
        elif how != "ignore":
            self._push_status("healthy", "")
            self._acknowledge(number, request, None)
            if how == "fault_again":
                self._waiting.append(["again", [65], {"max_tokens": 1}])  # for a step that can fail
                self._failing_steps = 1

    def _refuse_instructions(self) -> None:
        while self._instructions:
            number, request = self._instructions.popleft()
            reason = f"[FT] Rejecting {request['instruction']} on engine 0: status is {self._status.upper()}"
            self._acknowledge(number, request, reason)

    def _acknowledge(self, number: int, request: Mapping[str, Any], reason: str | None) -> None:
        answer = {"request_id": request["request_id"], "success": reason is None, "reason": reason}
        self._upwards.sendall(encode_frame({"acknowledged": [number, answer]}))

    def _push_status(self, status: str, fault: str, outputs: Any = ()) -> None:
        self._status = status
        self._upwards.sendall(encode_frame({"status": [status, fault], "outputs": list(outputs)}))
