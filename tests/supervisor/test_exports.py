from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import rayvisor
from rayvisor import errors


def test_what_is_exported_is_sorted_and_there() -> None:
    assert rayvisor.__all__ == sorted(rayvisor.__all__)
    for name in rayvisor.__all__:
        home = import_module(f"rayvisor.{rayvisor._HOMES[name]}")
        assert getattr(rayvisor, name) is getattr(home, name)
        assert name in home.__all__


def test_every_error_of_the_tree_is_exported() -> None:
    assert set(errors.__all__) <= set(rayvisor.__all__)


def test_importing_brings_in_neither_ray_nor_vllm_nor_torch() -> None:
    program = (
        "import sys, rayvisor\n"
        "for name in rayvisor.__all__: getattr(rayvisor, name)\n"
        "print(sorted({'ray', 'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
