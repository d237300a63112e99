"""``rayvisor run``: runs a tree from a file until it is stopped or gives up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from rayvisor._backends.process.identity import identify
from rayvisor._edges.control.client import ControlClient
from rayvisor.cli import main

ROOT = Path(__file__).parents[2]

STEADY = """
[[children]]
kind = "coroutine"
id = "idler"
function = "anyio:sleep_forever"
"""
FAILING = """
intensity = 1
period = 60.0

[[children]]
kind = "coroutine"
id = "worker"
function = "work:fail"
args = ["the disk is full"]
"""
NO_MODEL = """
[[children]]
kind = "engine_pool"
id = "llm"
engine = "sim"
engine_args = { model = "/none" }
"""
WORK = """
import anyio

async def fail(why):
    await anyio.sleep(0.2)
    raise OSError(why)

class Router: ...
"""


class Running:
    """The command in a separate process."""

    def __init__(self, process: subprocess.Popen[str], socket: Path) -> None:
        self.process = process
        self.socket = socket
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def saw(self, words: str) -> None:
        """Wait for a line that contains a text."""

        def there() -> bool:
            return any(words in line for line in self.lines)

        with self._news:
            self._news.wait_for(lambda: there() or self._over, 60.0)
            assert there(), (self.lines, self._over and self.end())

    def end(self) -> tuple[int, str]:
        errors = self.process.stderr.read() if self.process.stderr else ""
        status = self.process.wait(60.0)
        self._reader.join(60.0)
        return status, errors


@contextmanager
def running(folder: Path, text: str, *options: str) -> Iterator[Running]:
    (folder / "tree.toml").write_text(text)
    (folder / "work.py").write_text(WORK)
    socket = folder / "control" / "a.sock"
    command = [
        str(Path(sys.executable).with_name("rayvisor")),
        "run",
        str(folder / "tree.toml"),
        "--socket",
        str(socket),
        *options,
    ]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=own)
    try:
        with process:
            try:
                yield Running(process, socket)
            finally:
                process.kill()
    finally:
        assert not socket.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_tree_in_order_and_the_exit_status_is_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path, STEADY) as command:
        command.saw("running; to inspect it")
        command.process.send_signal(number)
        status, errors = command.end()
        assert (status, errors) == (0, "")
        command.saw("idler #1       RESTARTING.STOPPING -> DEAD.STOPPED")
        command.saw("tree           supervisor ended")


def test_a_stop_over_the_socket_ends_it_with_0_and_is_published(tmp_path: Path) -> None:
    with running(tmp_path, STEADY, "--publish", "tcp://127.0.0.1:0") as command:
        command.saw("publishing events at tcp://127.0.0.1:")
        command.saw("running; to inspect it")
        ControlClient(command.socket).post("/stop", {})
        assert command.end() == (0, "")


def test_a_tree_that_gives_up_exits_1_and_says_the_root_cause_first(tmp_path: Path) -> None:
    with running(tmp_path, FAILING) as command:
        status, errors = command.end()
        assert status == 1
        assert errors.startswith("Error: OSError: the disk is full (worker, incarnation 2")
        command.saw("FAULT OSError: the disk is full (FATAL, while serving")
        command.saw("decided: give up")


def test_a_tree_that_cannot_be_started_exits_1(tmp_path: Path) -> None:
    with running(tmp_path, NO_MODEL, "--local") as command:
        status, errors = command.end()
        assert status == 1
        assert errors.startswith("Error: ValueError: model: /none does not exist (llm/1")


def test_a_tree_with_nothing_left_to_do_exits_0(tmp_path: Path) -> None:
    text = 'auto_shutdown = "any_significant"\n[[children]]\nkind = "coroutine"\nid = "once"\n'
    text += 'function = "anyio:sleep"\nargs = [0.2]\nrestart = "transient"\nsignificant = true\n'
    with running(tmp_path, text) as command:
        assert command.end() == (0, "")


@pytest.mark.ray
def test_an_actor_of_a_module_beside_the_file_is_found_by_rays_workers(tmp_path: Path) -> None:
    text = '[[children]]\nkind = "actor"\nid = "router"\nclass = "work:Router"\n'
    with running(tmp_path, f"[run]\nray_options = {{ num_cpus = 1 }}\n{text}") as command:
        command.saw("running; to inspect it")
        command.process.send_signal(signal.SIGINT)
        assert command.end()[0] == 0


def test_events_can_be_had_as_json_lines(tmp_path: Path) -> None:
    with running(tmp_path, STEADY, "--json") as command:
        command.saw('"state": "running"')
        command.process.send_signal(signal.SIGINT)
        assert command.end()[0] == 0
        records = [json.loads(line) for line in command.lines]
        assert {"StateChanged", "SupervisorStateChanged"} <= {record["record"] for record in records}


def test_a_socket_that_is_taken_is_one_line_and_exit_status_1(tmp_path: Path) -> None:
    with running(tmp_path, STEADY) as command:
        command.saw("running; to inspect it")
        result = CliRunner().invoke(
            main, ["run", str(tmp_path / "tree.toml"), "--socket", str(command.socket)]
        )
        assert result.exit_code == 1
        assert "a running tree listens there" in result.output
        command.process.send_signal(signal.SIGINT)
        assert command.end()[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("intensty = 3", "tree.toml: intensty=3: is not known (did you mean 'intensity'?)"),
        ("intensity = ", "tree.toml: is not TOML"),
        (
            '[run]\nlocal = true\n[[children]]\nkind = "actor"\nid = "a"\nclass = "pathlib:Path"',
            "local=True: cannot go with actor",
        ),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_status_2(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "tree.toml").write_text(text)
    result = CliRunner().invoke(main, ["run", str(tmp_path / "tree.toml")])
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("order", [["--web", "{}"], ["{}", "--web"], ["--web", "0", "{}"], ["--web=0", "{}"]])
def test_a_port_for_the_page_may_be_left_out_wherever_the_file_stands(
    order: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "gone.toml"
    result = CliRunner().invoke(main, ["run", *(word.format(file) for word in order)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {file}: ")


@pytest.mark.parametrize("port", ["80a", "70000"])
def test_a_port_that_is_none_is_said_to_be_none(port: str) -> None:
    result = CliRunner().invoke(main, ["run", "--web", port, "tree.toml"])
    assert result.exit_code == 2
    assert (
        f"Invalid value for '--web': '{port}'" in result.stderr or f"'--web': {port} is not" in result.stderr
    )


def test_a_missing_file_exits_2() -> None:
    result = CliRunner().invoke(main, ["run", "/none/tree.toml"])
    assert result.exit_code == 2
    assert result.output == "Error: /none/tree.toml: cannot be read: No such file or directory\n"


def test_the_example_runs_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path, (ROOT / "examples" / "tree.toml").read_text(encoding="utf-8")) as command:
        command.saw("running; to inspect it")
        tree = ControlClient(command.socket).get("/status")["tree"]
        assert [child["path"] for child in tree["children"]] == ["llm", "side"]
        pids = [pid for engine in tree["children"][0]["children"] for _, pid, _ in engine["processes"]]
        assert len(pids) == 4
        command.process.send_signal(signal.SIGINT)
        assert command.end() == (0, "")
        assert [pid for pid in pids if identify(pid) is not None] == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8"])
def test_a_character_that_the_output_cannot_encode_silences_nothing(tmp_path: Path, encoding: str) -> None:
    work = WORK.replace("OSError(why)", 'OSError("disk é → 磁盘 \\ud800")')
    (tmp_path / "work.py").write_text(work, "utf-8")
    (tmp_path / "tree.toml").write_text(FAILING)
    command = [sys.executable, "-c", "from rayvisor.cli import main; main()", "run", "tree.toml"]
    own = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, check=False, timeout=60)
    printed = done.stdout.decode("utf-8" if encoding == "ascii" else encoding)  # click writes UTF-8 then
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
    assert "FAULT OSError: disk " in printed
    assert "decided: give up" in printed
    assert "\\ud800" in printed


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_other_commands_print_in_any_encoding_as_well(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "tree.toml").write_text(STEADY.replace('"idler"', '"空闲"'), "utf-8")
    command = ["chart", "--tree", str(tmp_path / "tree.toml"), "--format", "table"]
    told = CliRunner(charset=encoding).invoke(main, command)
    assert (told.exit_code, told.exception) == (0, None)
    assert "\\u7a7a" in told.output


@pytest.mark.parametrize("error", [ValueError("no such form"), BrokenPipeError(32, "Broken pipe")])
def test_that_events_are_no_longer_printed_is_reported_and_the_tree_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: object) -> str:
        raise error

    monkeypatch.setattr("rayvisor.cli.run.record_line", fail)
    text = 'auto_shutdown = "any_significant"\n[[children]]\nkind = "coroutine"\nid = "once"\n'
    text += 'function = "anyio:sleep"\nargs = [0.2]\nrestart = "transient"\nsignificant = true\n'
    (tmp_path / "tree.toml").write_text(text)
    socket = str(tmp_path / "control" / "a.sock")
    told = CliRunner().invoke(main, ["run", str(tmp_path / "tree.toml"), "--socket", socket])
    assert told.exit_code == 0
    assert told.stderr == f"Error: events are no longer printed: {type(error).__name__}: {error}\n"
