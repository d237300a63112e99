"""The version of this rayvisor, and the check that workers have the same one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rayvisor._backends.ray.errors import WorkerPackageError
from rayvisor._version import __version__

__all__ = ["check", "local_version", "package_folders"]


def local_version() -> str:
    """Return the version of this rayvisor."""
    return __version__


def package_folders() -> tuple[str, ...]:
    """Return the folders of the packages that workers need, for ``py_modules``."""
    folders = []
    for name in ("rayvisor", "statecharts"):
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            folders.append(str(Path(next(iter(spec.submodule_search_locations)))))
    return tuple(folders)


def check(found: str | None, detail: str = "") -> None:
    """Raise WorkerPackageError unless a worker has this version."""
    wanted = local_version()
    if found != wanted:
        raise WorkerPackageError(found, wanted, package_folders(), detail)
