"""The routes of the control socket; each calls one public method of the supervisor.

| route | does |
|---|---|
| ``GET /status`` | the tree below ``?path=`` (default: all of it), and the state of recent instructions |
| ``GET /chart`` | the chart of the child at ``?path=``, with its state, last transitions and their counts |
| ``GET /metrics`` | metrics in the Prometheus text format |
| ``GET /events`` | every event from now on, one JSON object per line, until the tree has ended |
| ``GET /live`` | the state of the tree, then its changes, as server-sent events after ``?last=`` |
| ``POST /pause`` | ``{"path": "", "mode": "wait", "timeout": 60}`` |
| ``POST /resume``, ``/restart``, ``/stop`` | ``{"path": ""}``; the empty path is the whole tree |
| ``POST /apply`` | ``{"instruction": "pause", "params": {...}}``; any of these, executed after the answer |
| ``GET /fault_tolerance/status`` | the engines, in vLLM's format |
| ``POST /fault_tolerance/apply`` | as ``/apply`` |

``/apply`` also accepts the recovery instruction ``"retry"`` for the engines at ``params.path``.
Every route is available with the prefix ``/v1`` as well. An error is ``{"error": {"type", "message"}}``.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, urlsplit
from uuid import uuid4

from rayvisor._edges.controls import Controls
from rayvisor._edges.http.json_forms import fault_tolerance_status, plain, record_form, tree_form
from rayvisor._edges.live.charts import drawing_form
from rayvisor._edges.metrics.exposition import CONTENT_TYPE
from rayvisor._log import get_logger
from rayvisor.errors import (
    CallError,
    RayvisorError,
    SpecError,
    SupervisorBusyError,
    SupervisorStoppedError,
    UnknownChildError,
)
from rayvisor.timeouts import DEFAULT_TIMEOUTS, EdgeTimeouts

if TYPE_CHECKING:
    from rayvisor.records import Record

__all__ = ["Answer", "RefusalError", "Routes", "StartTask", "path_of"]

log = get_logger("rayvisor.control")

INSTRUCTIONS_KEPT = 32
INSTRUCTIONS_RUNNING_MAX = 16

StartTask = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
"""Starts a task in the server's task group."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: one JSON value, a file, or a stream of lines."""

    status: int
    body: Any = None
    lines: AsyncIterator[bytes] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    """Sent unchanged, instead of ``body``."""
    kind: str = "application/json"
    timeout: float = math.inf
    """Seconds that a reader may take for each of ``lines``."""


class RefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        self.answer = Answer(
            status, {"error": {"type": kind, "message": message}}, headers=tuple(headers.items())
        )
        super().__init__(message)


@dataclass(slots=True)
class _InstructionStatus:
    """An accepted instruction and its state."""

    request_id: str
    instruction: str
    params: Mapping[str, Any]
    state: str = "running"
    error: str = ""
    began: float = field(default_factory=time.monotonic)


class Routes:
    """Answers requests.

    Parameters
    ----------
    controls
        The supervisor.
    start_task
        Starts a task in the server's task group.
    live
        Returns the server-sent events after the one with the given id. Without it there is no ``/live``.
    timeouts
        How long a reader of ``/live`` may take for a message; then it is disconnected and may reconnect.
    """

    def __init__(
        self,
        controls: Controls,
        start_task: StartTask,
        live: Callable[[str], AsyncIterator[bytes]] | None = None,
        *,
        timeouts: EdgeTimeouts = DEFAULT_TIMEOUTS.edges,
    ) -> None:
        self._timeouts = timeouts
        self._controls = controls
        self._start_task = start_task
        self._instructions: deque[_InstructionStatus] = deque(maxlen=INSTRUCTIONS_KEPT)
        self._verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "pause": self._pause,
            "resume": self._resume,
            "restart": self._restart,
            "stop": self._stop,
        }
        self._table: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Awaitable[Answer]]]] = {
            "/status": ("GET", self._status),
            "/chart": ("GET", self._chart),
            "/metrics": ("GET", self._metrics),
            "/events": ("GET", self._events),
            **({} if live is None else {"/live": ("GET", partial(self._live, live))}),
            **{f"/{verb}": ("POST", partial(self._call_verb, verb)) for verb in self._verbs},
            "/apply": ("POST", self._apply),
            "/fault_tolerance/status": ("GET", self._engines),
            "/fault_tolerance/apply": ("POST", self._apply),
        }

    async def answer(self, method: str, target: str, body: bytes) -> Answer:
        """Answer one request. Errors, also those of the client, become error responses."""
        try:
            return await self._routed(method, target, body)
        except RefusalError as refusal:
            return refusal.answer
        except RayvisorError as error:
            return Answer(_status_of(error), {"error": _error_form(error)})
        except Exception as error:
            log.exception("control.request.crashed", method=method, target=target)
            return Answer(500, {"error": _error_form(error)})

    async def _routed(self, method: str, target: str, body: bytes) -> Answer:
        path = path_of(target).removeprefix("/v1") or "/"
        route = self._table.get(path)
        if route is None:
            raise RefusalError(
                404, "UnknownRoute", f"no such route: {path}; the routes are {', '.join(self._table)}"
            )
        expected, call = route
        if method != expected:
            raise RefusalError(405, "WrongMethod", f"{path} takes {expected}, not {method}", Allow=expected)
        return await call(_query(target) if expected == "GET" else _json(body))

    # --- queries ------------------------------------------------------------------------------

    async def _status(self, given: Mapping[str, Any]) -> Answer:
        path = _only(given, path="")["path"]
        tree = tree_form(self._controls.status(path))
        return Answer(
            200, {"tree": tree, "instructions": [_instruction_form(each) for each in self._instructions]}
        )

    async def _chart(self, given: Mapping[str, Any]) -> Answer:
        path = _only(given, path="")["path"]
        return Answer(200, drawing_form(self._controls.chart(path)))

    async def _metrics(self, given: Mapping[str, Any]) -> Answer:
        _only(given)
        return Answer(200, content=self._controls.metrics().encode(), kind=CONTENT_TYPE)

    async def _engines(self, given: Mapping[str, Any]) -> Answer:
        _only(given)
        return Answer(200, fault_tolerance_status(self._controls.status()))

    async def _events(self, given: Mapping[str, Any]) -> Answer:
        _only(given)
        return Answer(200, lines=_lines(self._controls.watch()), kind="application/jsonl")

    async def _live(self, live: Callable[[str], AsyncIterator[bytes]], given: Mapping[str, Any]) -> Answer:
        last = str(_only(given, last="")["last"])
        return Answer(200, lines=live(last), kind="text/event-stream", timeout=self._timeouts.live_read)

    # --- commands -----------------------------------------------------------------------------

    async def _call_verb(self, verb: str, given: Mapping[str, Any]) -> Answer:
        return Answer(200, await self._verbs[verb](given))

    async def _pause(self, given: Mapping[str, Any]) -> dict[str, Any]:
        wanted = _only(given, path="", mode="wait", timeout=60.0)
        left = await self._controls.pause(wanted["path"], mode=wanted["mode"], timeout=wanted["timeout"])
        return {"path": wanted["path"], "mode": wanted["mode"], "in_flight": left}

    async def _resume(self, given: Mapping[str, Any]) -> dict[str, Any]:
        wanted = _only(given, path="")
        await self._controls.resume(wanted["path"])
        return wanted

    async def _restart(self, given: Mapping[str, Any]) -> dict[str, Any]:
        wanted = _only(given, path="")
        await self._controls.restart(wanted["path"])
        return wanted

    async def _stop(self, given: Mapping[str, Any]) -> dict[str, Any]:
        wanted = _only(given, path="")
        if wanted["path"]:
            await self._controls.terminate_child(wanted["path"])
        else:
            await self._controls.stop()
        return wanted

    async def _apply(self, given: Mapping[str, Any]) -> Answer:
        wanted = _only(given, instruction=None, params={}, request_id="")
        name, params = wanted["instruction"], wanted["params"]
        if not isinstance(params, Mapping):
            raise RefusalError(400, "WrongValue", f"params={params!r}: must be an object")
        if not isinstance(name, str) or name not in self._verbs:
            path = _only({"path": params.get("path", "")}, path="")["path"]
            known = (*self._verbs, *self._controls.recovery_instructions(path))
            if name not in known:
                raise RefusalError(
                    400, "UnknownInstruction", f"instruction={name!r}: must be one of {', '.join(known)}"
                )
        if sum(each.state == "running" for each in self._instructions) >= INSTRUCTIONS_RUNNING_MAX:
            raise RefusalError(503, "Busy", f"{INSTRUCTIONS_RUNNING_MAX} instructions are already running")
        one = _InstructionStatus(str(wanted["request_id"] or uuid4()), name, params)
        self._instructions.append(one)
        self._start_task(partial(self._carry_out, one))
        message = "Request accepted; poll /fault_tolerance/status for updates."
        return Answer(202, {"message": message, "request_id": one.request_id})

    async def _carry_out(self, one: _InstructionStatus) -> None:
        try:
            verb = self._verbs.get(one.instruction)
            await (self._set_recovery_instruction(one) if verb is None else verb(one.params))
        except Exception as error:  # noqa: BLE001 - reported in the status and in the log
            one.state = "failed"
            one.error = (
                str(error)
                if isinstance(error, _InstructionFailedError)
                else f"{type(error).__name__}: {error}"
            )
        else:
            one.state = "done"
        log.info(
            "control.instruction",
            request_id=one.request_id,
            instruction=one.instruction,
            state=one.state,
            error=one.error,
        )

    async def _set_recovery_instruction(self, one: _InstructionStatus) -> None:
        """Pass an instruction on to the engines; raise with the names of those that refuse or fail."""
        rest = {name: value for name, value in one.params.items() if name != "path"}
        path = _only({"path": one.params.get("path", "")}, path="")["path"]
        answers = await self._controls.set_recovery_instruction(
            one.instruction, path, params=rest, request_id=one.request_id
        )
        failed = [f"{path}: {each['reason']}" for path, each in answers.items() if not each["success"]]
        if failed:
            raise _InstructionFailedError("; ".join(failed))


class _InstructionFailedError(Exception):
    """At least one engine has refused an instruction or failed."""


def _instruction_form(each: _InstructionStatus) -> dict[str, Any]:
    return {
        "request_id": each.request_id,
        "instruction": each.instruction,
        "params": plain(each.params),
        "state": each.state,
        "error": each.error,
    }


async def _lines(watch: AsyncIterator[Record]) -> AsyncIterator[bytes]:
    wall = time.time() - time.monotonic()
    async for record in watch:
        yield json.dumps(record_form(record, wall)).encode() + b"\n"


def path_of(target: str) -> str:
    """Return the path of a request's target.

    Raises
    ------
    RefusalError
        The target is no URL.
    """
    return _split(target).path


def _split(target: str) -> SplitResult:
    try:
        return urlsplit(target)
    except ValueError as error:
        raise RefusalError(400, "BadRequest", f"{target[:200]} is no URL: {error}") from None


def _query(target: str) -> dict[str, Any]:
    try:
        return dict(parse_qsl(_split(target).query, keep_blank_values=True))
    except ValueError as error:
        raise RefusalError(400, "BadRequest", f"{target[:200]} has no valid query: {error}") from None


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        given = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, "InvalidJson", f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise RefusalError(400, "WrongValue", f"the body must be a JSON object, not {type(given).__name__}")
    return given


def _only(given: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """Return the given fields completed with defaults; refuse unknown fields."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = ", ".join(known) or "none"
            raise RefusalError(400, "UnknownField", f"no such field: {name!r}{hint} (known fields: {names})")
    wanted = {**known, **given}
    path = wanted.get("path", "")
    if not isinstance(path, str):
        raise RefusalError(
            400, "WrongValue", f"path={path!r}: must be the path of a child, or empty for the tree"
        )
    if "path" in wanted:
        wanted["path"] = path.strip("/")
    return wanted


def _status_of(error: RayvisorError) -> int:
    match error:
        case UnknownChildError():
            return 404
        case SpecError():
            return 400
        case SupervisorBusyError() | SupervisorStoppedError():
            return 503
        case CallError():
            return 409
    return 500


def _error_form(error: Exception) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error)}
