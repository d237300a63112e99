"""What a running server api beside requests: what it is, its fault tolerance, pause and resume.

vLLM serves its fault tolerance at ``/fault_tolerance/...``, other versions of it at
``/v1/fault_tolerance/...``; which one is looked for once. There an instruction is accepted (202), and carried
out later; how it went is seen by the status that follows, and by the log.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from rayvisor._backends.host.engine import EngineError, EngineStatus
from rayvisor._backends.host.post_mortem import read_log
from rayvisor._backends.server.client import Answer, HttpClient, HttpFailedError
from rayvisor._log import get_logger

__all__ = ["ServerApi"]

log = get_logger("rayvisor.server")

_ASK_SECONDS = 5.0
_POLL_SECONDS = 0.1
_PREFIXES = ("", "/v1")
_OK, _ACCEPTED, _NOT_FOUND = 200, 202, 404
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
"""Calls of an engine, and where a server takes them: vLLM's does in its development mode only."""


class ServerApi:
    """What can be asked of one server.

    Parameters
    ----------
    client
        Talks to it.
    log_file
        Where its output goes.
    """

    def __init__(self, client: HttpClient, log_file: str) -> None:
        self._client = client
        self._log_file = log_file
        self._prefix = ""
        self._model = ""
        self.version = ""
        self.max_model_len = 0
        self.instructions: tuple[str, ...] = ()
        """What it can be told. HTTP does not say; every version with fault tolerance knows "retry"."""
        self.status = EngineStatus("healthy")
        """How it said it is when it was asked last."""

    async def discover(self) -> None:
        """Find out what the server is, and what it api.

        Raises
        ------
        HttpFailedError
            It does not answer.
        """
        said = (await self._client.get("/version", _ASK_SECONDS)).json()
        self.version = str(said.get("version", "")) if isinstance(said, dict) else ""
        models = (await self._client.get("/v1/models", _ASK_SECONDS)).json()
        listed = models.get("data") if isinstance(models, dict) else None
        if listed:
            self._model = str(listed[0].get("id", ""))
            self.max_model_len = int(listed[0].get("max_model_len") or 0)
        for prefix in _PREFIXES:
            answer = await self._client.get(f"{prefix}/fault_tolerance/status", _ASK_SECONDS)
            engines = _engines(answer)
            if engines:
                self._prefix = prefix
                self.instructions = ("retry",)
                self.status = _worst_status(engines)
                return

    async def poll_status(self) -> None:
        """Keep the status up to date, for as long as this is awaited."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self._fetch_status()
            except HttpFailedError as failed:  # its silence is seen by whoever asks after its health
                log.debug("server.status.unknown", why=str(failed))

    async def complete(self, prompt: str | Sequence[Any], params: Mapping[str, Any]) -> Answer:
        """Have it complete a prompt; the answer comes when the server has one."""
        body = {"model": self._model, "prompt": prompt, "return_token_ids": True, **params}
        return await self._client.post("/v1/completions", body, None)

    async def ask(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Carry out one of an engine's calls.

        Raises
        ------
        EngineError
            The server does not offer it.
        HttpFailedError
            It does not answer.
        """
        if method == "get_status":
            return await self._fetch_status() if self.instructions else _status_report(())
        if method == "handle_fault":
            return await self._handle(args[0])
        if method not in _ROUTES:
            raise EngineError(f"a server is not asked for {method!r}; for one of {', '.join(_ROUTES)}")
        verb, path = _ROUTES[method]
        query = {name: str(value).lower() for name, value in kwargs.items()}
        target = f"{path}?{urlencode(query)}" if query else path
        answer = await (
            self._client.get(target, _ASK_SECONDS) if verb == "GET" else self._client.post(target, None, None)
        )
        if answer.status == _NOT_FOUND:
            raise EngineError(f"the server has no {path}: vLLM's has it with VLLM_SERVER_DEV_MODE=1 only")
        if answer.status != _OK:
            raise EngineError(f"{verb} {path} answered {answer.status}: {answer.text}")
        return answer.json()

    # -- fault tolerance ------------------------------------------------------------------------

    async def _handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Pass an instruction on, and wait until it has been carried out, or has failed."""
        instruction = str(request["instruction"])
        if instruction not in self.instructions:
            known = ", ".join(self.instructions) or "none: it has no fault tolerance"
            raise EngineError(f"the server does not take the instruction {instruction!r}; it takes {known}")
        asked = str(request.get("request_id") or "")
        since = os.path.getsize(self._log_file)  # noqa: ASYNC240, PTH202 - a Path is no faster
        await self._fetch_status()
        if self.status.status != "unhealthy":
            # It would be refused, later, in the server's log only.
            return _instruction_result(asked, f"the server is {self.status.status}")
        body = {"instruction": instruction, "params": dict(request.get("params") or {})}
        answer = await self._client.post(f"{self._prefix}/fault_tolerance/apply", body, _ASK_SECONDS)
        said = answer.json()
        if answer.status not in {_OK, _ACCEPTED} or not isinstance(said, dict):
            return _instruction_result(asked, f"HTTP {answer.status}: {answer.text}")
        theirs = str(said.get("request_id") or "")
        while True:
            await self._fetch_status()
            if self.status.status != "unhealthy":
                well = self.status.status == "healthy"
                return _instruction_result(asked, "" if well else f"the server is {self.status.status}")
            for failed in _FAILED.finditer(read_log(self._log_file, since)):
                if failed["request"] in (None, theirs):
                    return _instruction_result(asked, failed["reason"] or "it could not be passed on")
            await asyncio.sleep(_POLL_SECONDS / 4)

    async def _fetch_status(self) -> dict[str, Any]:
        answer = await self._client.get(f"{self._prefix}/fault_tolerance/status", _ASK_SECONDS)
        engines = _engines(answer)
        if engines:
            self.status = _worst_status(engines)
        return _status_report(engines)


def _engines(answer: Answer) -> Sequence[Mapping[str, Any]]:
    said = answer.json() if answer.status == _OK else None
    engines = said.get("engines") if isinstance(said, dict) else None
    if not isinstance(engines, list):
        return ()
    return [each for each in engines if isinstance(each, dict) and "status" in each]


def _worst_status(engines: Sequence[Mapping[str, Any]]) -> EngineStatus:
    for status in ("dead", "unhealthy"):
        for engine in engines:
            if engine["status"] == status:
                return EngineStatus(status, str(engine.get("fault_info") or ""))
    return EngineStatus("healthy")


def _status_report(engines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"schema_version": 1, "total_engines": len(engines), "engines": list(engines)}


def _instruction_result(request: str, wrong: str) -> dict[str, Any]:
    return {"request_id": request, "success": not wrong, "reason": wrong or None}
