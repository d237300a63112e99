"""No secret is shown in the repr of a spec, in an error, or in the causes of a fault."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rayvisor as rv
from rayvisor._core.protocol.causes import plain_causes
from rayvisor._redaction import is_secret, masked_text
from rayvisor.config import load_tree

HIDDEN = "s3cr3t-value"


class Worker:
    pass


async def work(key: str) -> None:
    del key


SPECS: list[Callable[[], Any]] = [
    lambda: rv.engine_pool("p", engine_args={"hf_token": HIDDEN}),
    lambda: rv.engine_pool("p", engine_args={"x": {"y": [{"API_KEY": HIDDEN}]}}),
    lambda: rv.engine_pool("p", engine_args={}, runtime_env={"env_vars": {"ANY": HIDDEN}}),
    lambda: rv.engine_group("p", engine_args={}, ranks=2, rank_args=[{"password": HIDDEN}] * 2),
    lambda: rv.server("s", model="m", env={"ANY": HIDDEN}),
    lambda: rv.server("s", model="m", args=["--api-key", HIDDEN]),
    lambda: rv.server("s", model="m", args=["--api-key", "a", HIDDEN, "--seed", "7"]),
    lambda: rv.server("s", model="m", args=[f"--api-key={HIDDEN}"]),
    lambda: rv.server("s", model="m", engine_args={"hf_overrides": {"authToken": HIDDEN}}),
    lambda: rv.actor("a", Worker, kwargs={"aws_secret_access_key": HIDDEN}),
    lambda: rv.actor("a", Worker, args=[f"https://user:{HIDDEN}@host/"]),
    lambda: rv.coroutine("c", work, args=[{"openai_api_key": HIDDEN}]),
    lambda: rv.TaskPolicy(options={"runtime_env": {"env_vars": {"ANY": HIDDEN}}}),
    lambda: rv.Instance("i", args=({"token": HIDDEN},)),
]


@pytest.mark.parametrize("make", SPECS)
def test_the_repr_of_a_spec_shows_no_secret(make: Callable[[], Any]) -> None:
    spec = make()
    assert HIDDEN not in repr(spec)
    assert "***" in repr(spec)
    if isinstance(spec, rv.ChildSpec):
        assert HIDDEN not in repr(rv.SupervisorSpec(children=[spec], intensity=1, period=1e9))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("env", {"ANY": HIDDEN}),
        ("env", [f"ANY={HIDDEN}"]),
        ("children[0].env.ANY", HIDDEN),
        ("engine_args", [("hf_token", 1), {"hf_token": HIDDEN}]),
        ("engine_args", f"hf_token={HIDDEN}"),
        ("ray_options", {"runtime_env": {"env_vars": {"ANY": HIDDEN}}}),
        ("options['api_key']", HIDDEN),
        ("password", HIDDEN.encode()),
        ("args", ["--hf-token", HIDDEN]),
        ("child", rv.server("s", model="m", env={"ANY": HIDDEN})),
    ],
)
def test_the_message_of_an_error_shows_no_secret(field: str, value: object) -> None:
    for error in (
        rv.SpecError(field, value, f"is wrong, token={HIDDEN!r}"),
        rv.SpecFileError("tree.toml", field, value, f"is wrong, token={HIDDEN!r}"),
    ):
        for each in (error, pickle.loads(pickle.dumps(error))):
            assert HIDDEN not in str(each) + repr(each)
            assert field in str(each)
            assert "***" in str(each)


@pytest.mark.parametrize(
    "text",
    [
        f'kind = "server"\nmodel = ""\nenv = {{ ANY = "{HIDDEN}" }}\nhf_token = "{HIDDEN}"',
        f'kind = "server"\nmodel = "m"\nenv = ["ANY={HIDDEN}"]',
        f'kind = "server"\nmodel = "m"\nport = -1\nenv = "{HIDDEN}"',
        f'kind = "engine_pool"\nengine_args = "api_key={HIDDEN}"',
        f'kind = "engine_pool"\nengine_args = {{}}\nruntime_env = [{{ env_vars = {{ A = "{HIDDEN}" }} }}]',
    ],
)
def test_the_error_of_a_tree_file_shows_no_secret(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text(f'[[children]]\nid = "c"\n{text}\n')
    with pytest.raises(rv.SpecFileError) as caught:
        load_tree(file)
    assert HIDDEN not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"non-default args: {{'model': 'm', 'hf_token': '{HIDDEN}'}}",
        f'input_value={{"api_key": "{HIDDEN}"}}',
        f"HF_TOKEN={HIDDEN} vllm serve --api-key {HIDDEN}",
        f"cannot reach https://me:{HIDDEN}@host/path",
        f"Authorization: Bearer {HIDDEN}",
        f"spawn failed: env={{'A': '{HIDDEN}'}}",
    ],
)
def test_the_causes_of_a_fault_show_no_secret(text: str) -> None:
    assert HIDDEN not in str(plain_causes(RuntimeError(text)))


def test_ordinary_names_and_texts_are_shown() -> None:
    for name in ("max_tokens", "stop_token_ids", "tokenizer", "bos_token", "max_num_batched_tokens", "model"):
        assert not is_secret(name), name
    text = "max_tokens=5 of 12 tokens: the token was late, --seed 7, model='m', key=3"
    assert masked_text(text) == text
    assert repr(rv.engine_pool("p", engine_args={"max_model_len": 5})).count("'max_model_len': 5") == 1
    assert str(rv.SpecError("intensity", -1, "must be 0 or more")) == "intensity=-1: must be 0 or more"


@pytest.mark.parametrize("piece", ["a=", "'", "token='", "env={", "://", "a", "token=token", "--a ", "a: "])
def test_the_time_for_a_text_grows_with_its_length_only(piece: str) -> None:
    began = time.process_time()
    masked_text(piece * 20_000)
    assert time.process_time() - began < 2.0
