"""``vllm serve``: vLLM's own command line, run in the server's own process.

vLLM's command asks for the version of the distribution ``vllm``. The build for the CPU has another name, so
that the command would fail before it begins. Here the version of that build is returned instead, in the form
that vLLM's own platform detection expects.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence

from rayvisor._backends.vllm.environment import BUILDS

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Run vLLM's command.

    Parameters
    ----------
    argv
        Its arguments, from ``serve`` on.
    """
    sys.argv = ["vllm", *argv]
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        for build, suffix in BUILDS.items() if distribution_name == "vllm" else ():
            try:
                return original(build) + suffix
            except importlib.metadata.PackageNotFoundError:
                continue
        return original(distribution_name)

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()
