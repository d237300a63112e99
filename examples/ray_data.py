"""Ray Data with an actor pool whose engines are killed: every row is produced once, with the correct text.

    python examples/ray_data.py                 # child processes simulate the engines: seconds
    python examples/ray_data.py --engine vllm   # two real vLLM engines: minutes

A plain UDF is the control: once its engine is dead, its actor fails every further batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import exit_types  # type: ignore[import-not-found]  # beside this file
import psutil
import ray

import rayvisor as rv
from rayvisor.demo.model import ensure_model

ROWS, KILLED_AT = 240, (40, 150)
ANSWER = "import sys\nfor line in sys.stdin: print(line.strip()[::-1], flush=True)"


class EngineDeadError(Exception):
    """A stand-in for vLLM's EngineDeadError."""


class SimEngine:
    """A child process as a simulated engine."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANSWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.core = self.process.pid

    def generate(self, prompts: list[str]) -> list[str]:
        """Answer each prompt."""
        try:
            return [self._ask(prompt) for prompt in prompts]
        except BrokenPipeError as error:
            raise EngineDeadError("the engine is gone") from error

    def _ask(self, prompt: str) -> str:
        stdin: Any = self.process.stdin
        stdout: Any = self.process.stdout
        print(prompt, file=stdin, flush=True)
        return stdout.readline().strip() or self._gone()

    def _gone(self) -> str:
        raise BrokenPipeError


class VllmEngine:
    """A vLLM engine with the demo's small model."""

    def __init__(self) -> None:
        import vllm

        self.sampling = vllm.SamplingParams(temperature=0, max_tokens=8)
        self.llm = vllm.LLM(
            str(ensure_model()),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            kv_cache_memory_bytes=1 << 28,
        )
        children = multiprocessing.active_children()
        core = next(child for child in children if child.name.startswith("EngineCore"))
        self.core = core.pid or 0
        threading.Thread(target=self._tell_of_its_end, args=(core,), daemon=True).start()

    def _tell_of_its_end(self, core: Any) -> None:
        """Wake a waiting ``generate``; vLLM's synchronous client does not when its core is killed."""
        multiprocessing.connection.wait([core.sentinel])
        self.llm.llm_engine.engine_core.outputs_queue.put(EngineDeadError("EngineCore has ended"))

    def generate(self, prompts: list[str]) -> list[str]:
        """Continue each prompt."""
        return [done.outputs[0].text for done in self.llm.generate(prompts, self.sampling, use_tqdm=False)]


class Plain:
    """An ordinary UDF with an engine, which is killed once for some of the rows."""

    def __init__(self, engine: str, faults: Path) -> None:
        self.engine = VllmEngine() if engine == "vllm" else SimEngine()
        self.faults = faults

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Generate the texts of a batch."""
        for fault in [self.faults / str(row) for row in batch["id"]]:
            if fault.exists():
                fault.unlink()
                os.kill(self.engine.core, signal.SIGKILL)
                psutil.wait_procs([psutil.Process(self.engine.core)], timeout=5)
        texts = self.engine.generate([f"Alice said {row}" for row in batch["id"]])
        return {"id": batch["id"], "text": texts, "pid": [os.getpid()] * len(texts)}


@rv.fatal(EngineDeadError, "vllm.v1.engine.exceptions.EngineDeadError", name="engine died", limit=8)
class Guarded(Plain):
    """The same UDF, whose actor exits when its engine dies; Ray moves the batch to another one."""


def run(udf: type[Plain], engine: str, killed_at: tuple[int, ...]) -> list[dict[str, Any]]:
    """Run the job and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        for row in killed_at:
            (Path(folder) / str(row)).touch()
        rows: Any = ray.data.range(ROWS, override_num_blocks=ROWS // 10).map_batches(
            udf,
            fn_constructor_args=(engine, Path(folder)),
            batch_size=10,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        return sorted(rows.take_all(), key=lambda row: int(row["id"]))


def main() -> None:
    """Run the job without faults, with them, and with them but without ``rv.fatal``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["sim", "vllm"], default="sim")
    engine = parser.parse_args().engine
    ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    exit_types.main()
    expected = [row["text"] for row in run(Plain, engine, ())]
    ray.data.DataContext.get_current().max_errored_blocks = -1  # continue after failed batches
    for udf in (Guarded, Plain):
        rows = run(udf, engine, KILLED_AT)
        texts = "the same text" if all(row["text"] == expected[row["id"]] for row in rows) else "OTHER TEXT"
        pids = {row["pid"] for row in rows}
        print(
            f"{udf.__name__}: {len({row['id'] for row in rows})} of {ROWS} rows, {len(rows)} in all, {texts}"
        )
        print(f"    from {len(pids)} processes; crashes so far: {len(rv.last_words('engine died'))}")


if __name__ == "__main__":
    main()
