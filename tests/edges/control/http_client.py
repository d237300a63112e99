"""Shared by tests of the control socket: a raw HTTP client, and trees."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

import rayvisor as rv

PROMPT = "Once upon a time"
GREEDY = {"max_tokens": 60, "temperature": 0.0}


async def exchange(path: Path, data: bytes) -> tuple[int, Any]:
    """Send bytes and return status and JSON of the answer."""
    with anyio.fail_after(60.0):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(data)
            answer = b""
            try:
                while True:
                    answer += await stream.receive()
            except anyio.EndOfStream:
                pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def get(path: Path, target: str) -> tuple[int, Any]:
    return await exchange(path, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def post(path: Path, target: str, body: object = None) -> tuple[int, Any]:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return await exchange(path, head.encode() + content)


def leaves(tree: dict[str, Any]) -> dict[str, str]:
    """Return state and leaf of every child, by path."""
    found = {tree["path"]: f"{tree['state']}.{tree['leaf']}"} if tree["path"] else {}
    for child in tree["children"]:
        found |= leaves(child)
    return found


async def states(path: Path) -> dict[str, str]:
    status, told = await get(path, "/status")
    assert status == 200
    return leaves(told["tree"])


def pool(**options: Any) -> rv.ChildSpec:
    arguments = {"tokens_per_second": 200.0, **options.pop("engine_args", {})}
    return rv.engine_pool(
        "llm", **{"engine": "sim", "engine_args": arguments, "start_timeout": 120.0, **options}
    )


async def idle() -> None:
    await anyio.sleep_forever()


@asynccontextmanager
async def tree(
    folder: Path, *children: rv.ChildSpec, **options: Any
) -> AsyncIterator[tuple[rv.Supervisor, Path]]:
    """Run a tree without Ray; yield it with the path of its socket."""
    path = folder / "private" / "tree.sock"
    spec = rv.SupervisorSpec(intensity=3, period=900.0, children=children)
    async with rv.Supervisor(spec, local=True, seed=7, control=path, handle_signals=False, **options) as sup:
        yield sup, path
