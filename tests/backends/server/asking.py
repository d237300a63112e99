"""What the tests of servers ask a server over HTTP, as any client would."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import anyio

__all__ = ["complete", "get", "post"]


def get(url: str, path: str) -> str:
    """Get a page."""
    with urllib.request.urlopen(url + path, timeout=60) as page:  # noqa: S310 - a server of the test's own
        return str(page.read(), "utf-8")


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    """Post JSON, and give what comes back."""
    request = urllib.request.Request(  # noqa: S310 - a server of the test's own
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - as above
        return json.loads(answer.read())


async def complete(url: str, model: str, prompt: str = "Once upon", tokens: int = 8) -> int:
    """Have a prompt completed; how many tokens came."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    said = await anyio.to_thread.run_sync(post, url, "/v1/completions", body)
    return int(said["usage"]["completion_tokens"])
