"""Starting an AsyncLLM: its arguments, its environment, and the output of its processes.

All of it blocks, for half a minute and more. It runs in a thread, in steps, so that a start can be cancelled
between them.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rayvisor._backends.process.engine_tree import TAG
from rayvisor._backends.vllm.plugin import METHOD, OWN_METHOD
from rayvisor._core.protocol.causes import Causes, plain_causes
from rayvisor.faults import Cause, memory_refused

__all__ = [
    "Redirection",
    "check_arguments",
    "construct",
    "engine_config",
    "eos_token_ids",
    "is_permanent",
    "killed_during_start",
    "prepare_environment",
    "release",
    "start_causes",
    "vllm_version",
]

_PATHS = ("model", "tokenizer")
_UNREACHABLE = frozenset(
    {"ConnectError", "ConnectTimeout", "ConnectionError", "LocalEntryNotFoundError", "ReadTimeout", "Timeout"}
)
"""Errors of the libraries that vLLM asks a model hub through, where the hub cannot be reached."""
_CORES_ENDED = re.compile(r"Failed core proc\(s\): \{'(?P<name>\w+)': -(?P<signal>\d+)")
"""vLLM's message when engine cores end before their handshake; of several, the first one counts."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Validate engine arguments as far as possible without vLLM.

    Raises
    ------
    TypeError
        An argument's name is not a string.
    ValueError
        The model is missing, or is a path that does not exist.
    """
    for name in arguments:
        if not isinstance(name, str):
            raise TypeError(f"the name of an engine argument must be a string, not {name!r}")
    if not arguments.get("model"):
        raise ValueError("model: an engine needs one")
    for name in _PATHS:
        value = arguments.get(name)
        is_path = isinstance(value, str) and value.startswith(("/", "./", "../", "~"))
        if is_path and not Path(str(value)).expanduser().exists():
            raise ValueError(f"{name}: {value} does not exist")


def prepare_environment(tag: str) -> None:
    """Set the environment that the engine's processes inherit. Variables that the user has set stay."""
    os.environ[TAG] = tag
    os.environ.setdefault(OWN_METHOD, "" if METHOD in os.environ else "fork")
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # A host has threads: a forked child could wait forever for a lock that one of them holds.
        METHOD: "spawn",
        # A title then overwrites the arguments only, and the tag stays visible, also in forked workers.
        "SPT_NOENV": "1",
    }.items():
        os.environ.setdefault(name, value)


def vllm_version() -> str:
    """Import vLLM, and return its version. This is the first, slow step."""
    from vllm import __version__

    return str(__version__)


def engine_config(arguments: Mapping[str, Any]) -> Any:
    """Validate the arguments with vLLM. This is the second step.

    Raises
    ------
    TypeError
        There is no such argument; the message names it.
    ValueError
        A value is not valid.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    return AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)


def construct(config: Any, arguments: Mapping[str, Any]) -> Any:
    """Start the engine's processes, and wait until they are up. This is the third step."""
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_vllm_config(
        config,
        enable_log_requests=bool(arguments.get("enable_log_requests", False)),
        disable_log_stats=bool(arguments.get("disable_log_stats", False)),
    )


def eos_token_ids(llm: Any) -> tuple[int, ...]:
    """Return the token ids that end a text: the tokenizer's, and those of the model's generation config."""
    found: list[int] = []
    tokenizer = llm.renderer.tokenizer
    own = getattr(tokenizer, "eos_token_id", None)
    listed = llm.model_config.try_get_generation_config().get("eos_token_id")
    for each in (own, *(listed if isinstance(listed, Iterable) else (listed,))):
        if each is not None and each not in found:
            found.append(int(each))
    return tuple(found)


def release(llm: Any) -> None:
    """Terminate the ZMQ context of an engine that has been shut down, and with it its threads."""
    context = getattr(getattr(llm.engine_core, "resources", None), "ctx", None)
    if context is not None and not context.closed:
        context.term()


class Redirection:
    """Redirects the output of this process and of its new children to the engine's log.

    The children keep it. The host turns it off as soon as they exist.
    """

    def __init__(self, log_file: str) -> None:
        self._log_file = log_file
        self._lock = threading.Lock()
        self._saved: list[tuple[int, int]] = []

    def on(self) -> None:
        """Turn the redirection on."""
        with self._lock:
            _flush()
            output = os.open(self._log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                for descriptor in (1, 2):
                    self._saved.append((descriptor, os.dup(descriptor)))
                    os.dup2(output, descriptor)
            finally:
                os.close(output)

    def off(self) -> None:
        """Turn the redirection off, if it is on."""
        with self._lock:
            if self._saved:
                _flush()
            for descriptor, saved in self._saved:
                os.dup2(saved, descriptor)
                os.close(saved)
            self._saved.clear()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def start_causes(error: BaseException, from_log: Causes) -> Causes:
    """Append the causes in the engine's log to those that the host saw. The root cause is last."""
    seen = plain_causes(error)
    return (*seen, *(cause for cause in from_log if cause not in seen))


def killed_during_start(error: BaseException) -> tuple[Cause, int] | None:
    """Return the cause and the signal if vLLM reports that a signal ended an engine core; else None."""
    found = _CORES_ENDED.search(str(error))
    if found is None:
        return None
    number = int(found["signal"])
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return Cause("ProcessKilled", f"{found['name']} was ended by {name}"), number


def is_permanent(error: BaseException) -> bool:
    """Return whether the configuration is the cause, so that no other start with it can succeed."""
    # vLLM raises NotImplementedError for what a model or a platform does not support.
    if not isinstance(error, TypeError | ValueError | ImportError | NotImplementedError):
        return False
    # A library that could not be mapped for lack of memory is an ImportError as well, and a model hub that
    # did not answer ends in a ValueError: both may pass.
    causes = plain_causes(error)
    return not memory_refused(causes) and not any(cause.type in _UNREACHABLE for cause in causes)
