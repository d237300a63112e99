"""The HTTP interface of a running server: its description, its fault tolerance, pause and resume.

vLLM serves its fault tolerance at ``/fault_tolerance/...``, other versions at ``/v1/fault_tolerance/...``;
the prefix is determined once. The server accepts an instruction with 202 and carries it out later. The
outcome shows in the status that follows, and in the log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from rayvisor._backends.host.engine import EngineError, EngineStatus, RequestLostError, RequestRefusedError
from rayvisor._backends.host.post_mortem import log_size, read_log
from rayvisor._backends.server.client import Answer, HttpClient, HttpFailedError
from rayvisor._log import get_logger
from rayvisor.faults import Cause
from rayvisor.timeouts import DEFAULT_TIMEOUTS, ServerTimeouts

__all__ = ["Completion", "ServerApi", "completion_of"]

log = get_logger("rayvisor.server")

_PREFIXES = ("", "/v1")
_FAILED = re.compile(
    r"\[FT\] Recovery (?:failed for request (?P<request>\S+): (?P<reason>.*)|dispatch failed)"
)

_ROUTES: Mapping[str, tuple[str, str]] = {
    "pause_generation": ("POST", "/pause"),
    "resume_generation": ("POST", "/resume"),
    "is_paused": ("GET", "/is_paused"),
    "sleep": ("POST", "/sleep"),
    "wake_up": ("POST", "/wake_up"),
    "is_sleeping": ("GET", "/is_sleeping"),
    "reset_prefix_cache": ("POST", "/reset_prefix_cache"),
}
"""Methods of an engine, and their routes; vLLM's server has these in its development mode only."""


class Completion(NamedTuple):
    """A completed prompt."""

    token_ids: tuple[int, ...]
    """Zeros if the server does not return ids."""
    text: str
    finish_reason: str | None


def completion_of(answer: Answer) -> Completion:
    """Read the response to a completion request.

    Raises
    ------
    RequestRefusedError
        Its status is not 200.
    RequestLostError
        Its body is no completion.
    """
    if answer.status != HTTPStatus.OK:
        raise RequestRefusedError((Cause(f"HTTP {answer.status}", answer.text),))
    try:
        message = answer.json()
        choice = message["choices"][0]
        ids = choice.get("token_ids") or [0] * int(message["usage"]["completion_tokens"])
        return Completion(tuple(ids), str(choice.get("text") or ""), choice["finish_reason"])
    except (AttributeError, LookupError, TypeError, ValueError):
        raise RequestLostError(f"the server's response is no completion: {answer.text}") from None


class ServerApi:
    """The HTTP interface of one server.

    Parameters
    ----------
    client
        Sends requests to the server.
    log_file
        The server writes its output to this file.
    timeouts
        How long a response may take, and the intervals at which the status is read.
    """

    def __init__(
        self, client: HttpClient, log_file: str, *, timeouts: ServerTimeouts = DEFAULT_TIMEOUTS.server
    ) -> None:
        self._client = client
        self._log_file = log_file
        self._timeouts = timeouts
        self._prefix = ""
        self._model = ""
        self.version = ""
        self.max_model_len = 0
        self.instructions: tuple[str, ...] = ()
        """Its instructions. HTTP does not list them; each version with fault tolerance accepts "retry"."""
        self.status = EngineStatus("healthy")
        """The last status that was read."""

    async def discover(self) -> None:
        """Read the version and the model of the server, and whether it has fault tolerance.

        Raises
        ------
        HttpFailedError
            It does not respond.
        """
        version = (await self._client.get("/version", self._timeouts.request)).json()
        self.version = str(version.get("version", "")) if isinstance(version, dict) else ""
        models = (await self._client.get("/v1/models", self._timeouts.request)).json()
        listed = models.get("data") if isinstance(models, dict) else None
        if listed:
            self._model = str(listed[0].get("id", ""))
            self.max_model_len = int(listed[0].get("max_model_len") or 0)
        for prefix in _PREFIXES:
            answer = await self._client.get(f"{prefix}/fault_tolerance/status", self._timeouts.request)
            engines = _engines(answer)
            if engines:
                self._prefix = prefix
                self.instructions = ("retry",)
                self.status = EngineStatus.worst_of(engines)
                return

    async def poll_status(self) -> None:
        """Read the status again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._timeouts.status_poll)
            try:
                await self._fetch_status()
            except HttpFailedError as failed:  # the health checks notice a server that does not respond
                log.debug("server.status.unknown", why=str(failed))

    async def complete(self, prompt: str | Sequence[Any], params: Mapping[str, Any]) -> Completion:
        """Complete a prompt. There is no timeout.

        Raises
        ------
        RequestRefusedError
            The server refuses the request.
        RequestLostError
            It does not respond, or its response is no completion.
        """
        body = {"model": self._model, "prompt": prompt, "return_token_ids": True, **params}
        try:
            return completion_of(await self._client.post("/v1/completions", body, None))
        except HttpFailedError as failed:
            raise RequestLostError(str(failed)) from None

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of an engine.

        Raises
        ------
        EngineError
            The server has no such method, or does not respond.
        """
        try:
            return await self._ask(method, args, kwargs)
        except HttpFailedError as failed:
            raise EngineError(str(failed)) from None

    async def _ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if method == "get_status":
            return await self._fetch_status() if self.instructions else _status_report(())
        if method == "handle_fault":
            return await self._handle(args[0])
        if method not in _ROUTES:
            raise EngineError(f"a server has no method {method!r}; it has {', '.join(_ROUTES)}")
        verb, path = _ROUTES[method]
        query = {name: str(value).lower() for name, value in kwargs.items()}
        target = f"{path}?{urlencode(query)}" if query else path
        answer = await (
            self._client.get(target, self._timeouts.request)
            if verb == "GET"
            else self._client.post(target, None, None)
        )
        if answer.status == HTTPStatus.NOT_FOUND:
            raise EngineError(f"the server has no {path}: vLLM's has it with VLLM_SERVER_DEV_MODE=1 only")
        if answer.status != HTTPStatus.OK:
            raise EngineError(f"{verb} {path} answered {answer.status}: {answer.text}")
        return answer.json()

    # -- fault tolerance ------------------------------------------------------------------------

    async def _handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send an instruction, and wait until it has been carried out or has failed."""
        instruction = str(request["instruction"])
        if instruction not in self.instructions:
            known = ", ".join(self.instructions) or "none: it has no fault tolerance"
            raise EngineError(
                f"the server does not accept the instruction {instruction!r}; it accepts {known}"
            )
        caller_request = str(request.get("request_id") or "")
        log_position = log_size(self._log_file)
        await self._fetch_status()
        if self.status.status != "unhealthy":
            # The server would accept it, and refuse it later in its log only.
            return _instruction_result(caller_request, f"the server is {self.status.status}")
        body = {"instruction": instruction, "params": dict(request.get("params") or {})}
        answer = await self._client.post(
            f"{self._prefix}/fault_tolerance/apply", body, self._timeouts.request
        )
        accepted = answer.json()
        if answer.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED} or not isinstance(accepted, dict):
            return _instruction_result(caller_request, f"HTTP {answer.status}: {answer.text}")
        request_id = str(accepted.get("request_id") or "")
        while True:
            await self._fetch_status()
            if self.status.status != "unhealthy":
                recovered = self.status.status == "healthy"
                reason = "" if recovered else f"the server is {self.status.status}"
                return _instruction_result(caller_request, reason)
            for failed in _FAILED.finditer(read_log(self._log_file, log_position)):
                if failed["request"] in (None, request_id):
                    return _instruction_result(
                        caller_request, failed["reason"] or "it could not be dispatched"
                    )
            await asyncio.sleep(self._timeouts.follow)

    async def _fetch_status(self) -> dict[str, Any]:
        answer = await self._client.get(f"{self._prefix}/fault_tolerance/status", self._timeouts.request)
        engines = _engines(answer)
        if engines:
            self.status = EngineStatus.worst_of(engines)
        return _status_report(engines)


def _engines(answer: Answer) -> Sequence[Mapping[str, Any]]:
    status = answer.json() if answer.status == HTTPStatus.OK else None
    engines = status.get("engines") if isinstance(status, dict) else None
    if not isinstance(engines, list):
        return ()
    return [each for each in engines if isinstance(each, dict) and "status" in each]


def _status_report(engines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"schema_version": 1, "total_engines": len(engines), "engines": list(engines)}


def _instruction_result(request: str, failure: str) -> dict[str, Any]:
    return {"request_id": request, "success": not failure, "reason": failure or None}
