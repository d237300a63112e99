"""A blocking HTTP client for the tests of servers."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import anyio

__all__ = ["complete", "get", "post"]


def get(url: str, path: str) -> str:
    """Return a page as text."""
    return _request(url, "GET", path, None).decode()


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    """Send JSON, and return the JSON of the response."""
    return json.loads(_request(url, "POST", path, json.dumps(body)))


async def complete(url: str, model: str, prompt: str = "Once upon", tokens: int = 8) -> int:
    """Complete a prompt, and return the number of generated tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    response = await anyio.to_thread.run_sync(post, url, "/v1/completions", body)
    return int(response["usage"]["completion_tokens"])


def _request(url: str, method: str, path: str, body: str | None) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status >= http.client.BAD_REQUEST:
        raise OSError(f"{method} {path}: HTTP {response.status}: {content[:500].decode(errors='replace')}")
    return content
