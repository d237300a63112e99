"""The command line of a server.

>>> to_flags({"max_model_len": 512, "enforce_eager": True, "seed": None})
('--max-model-len', '512', '--enforce-eager')
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["SETTLED", "has_flag", "sizes", "to_flags", "value_of"]

SETTLED: Mapping[str, str] = {
    "--host": "host=",
    "--port": "port=",
    "--uds": "host= and port=: a server is watched over TCP",
    "--model": "model=",
    "--headless": "nothing: a server without an HTTP front cannot be watched",
    "--grpc": "nothing: a server without an HTTP front cannot be watched",
}
"""Options that are set elsewhere, and the keyword to use instead."""

_FACTORS: tuple[tuple[str, ...], ...] = (
    ("--tensor-parallel-size", "-tp"),
    ("--pipeline-parallel-size", "-pp"),
    ("--data-parallel-size-local", "-dpl"),
)
_OF_MANY = ("--data-parallel-rank", "-dpn", "--data-parallel-external-lb", "-dpe")
"""Options by which a server is one of several ranks of one deployment."""


def to_flags(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Turn arguments by name into options, as vLLM's command line spells them.

    True becomes the option alone, False its opposite (``--no-...``), None nothing, a mapping JSON, another
    sequence several arguments.
    """
    flags: list[str] = []
    for name, value in arguments.items():
        option = "--" + str(name).replace("_", "-")
        if value is None:
            continue
        if value is True:
            flags.append(option)
        elif value is False:
            flags.append("--no-" + option[2:])
        elif isinstance(value, Mapping):
            flags += [option, json.dumps(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flags += [option, *map(str, value)]
        else:
            flags += [option, str(value)]
    return tuple(flags)


def value_of(words: Sequence[str], *options: str) -> str | None:
    """Return the value of an option under any of its names; the last one wins, as in argparse."""
    found: str | None = None
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in options:
            if equals:
                found = value
            elif index + 1 < len(words):
                found = words[index + 1]
    return found


def has_flag(words: Sequence[str], option: str) -> bool:
    """Whether an option is present, with or without a value; underscores count as dashes, as for vLLM."""
    return any(word.partition("=")[0].replace("_", "-") == option for word in words)


def sizes(words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that say how many GPUs a server needs, by the names of engine arguments.

    >>> sizes(["-tp", "2", "--data-parallel-size=3"])
    {'tensor_parallel_size': 6}
    """
    count = 1
    for options in _FACTORS:
        count *= _whole(value_of(words, *options))
    ranks = value_of(words, "--data-parallel-size", "-dp")
    if not has_flag(words, _FACTORS[-1][0]) and not any(has_flag(words, each) for each in _OF_MANY):
        count *= _whole(ranks)
    device = value_of(words, "--device")
    return {"tensor_parallel_size": count} | ({} if device is None else {"device": device})


def _whole(value: str | None) -> int:
    """Return a count; 1 for anything else: vLLM itself reports the mistake."""
    return int(value) if value is not None and value.isdigit() else 1
