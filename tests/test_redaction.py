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

SECRET = "-".join(("s3cr3t", "value"))


class Worker:
    pass


async def work(key: str) -> None:
    del key


SPECS: list[Callable[[], Any]] = [
    lambda: rv.engine_pool("p", engine_args={"hf_token": SECRET}),
    lambda: rv.engine_pool("p", engine_args={"x": {"y": [{"API_KEY": SECRET}]}}),
    lambda: rv.engine_pool("p", engine_args={}, runtime_env={"env_vars": {"ANY": SECRET}}),
    lambda: rv.engine_group("p", engine_args={}, ranks=2, rank_args=[{"password": SECRET}] * 2),
    lambda: rv.server("s", model="m", env={"ANY": SECRET}),
    lambda: rv.server("s", model="m", args=["--api-key", SECRET]),
    lambda: rv.server("s", model="m", args=["--api-key", "a", SECRET, "--seed", "7"]),
    lambda: rv.server("s", model="m", args=[f"--api-key={SECRET}"]),
    lambda: rv.server("s", model="m", engine_args={"hf_overrides": {"authToken": SECRET}}),
    lambda: rv.actor("a", Worker, kwargs={"aws_secret_access_key": SECRET}),
    lambda: rv.actor("a", Worker, args=[f"https://user:{SECRET}@host/"]),
    lambda: rv.coroutine("c", work, args=[{"openai_api_key": SECRET}]),
    lambda: rv.TaskPolicy(options={"runtime_env": {"env_vars": {"ANY": SECRET}}}),
    lambda: rv.Instance("i", args=({"token": SECRET},)),
]


@pytest.mark.parametrize("make", SPECS)
def test_the_repr_of_a_spec_shows_no_secret(make: Callable[[], Any]) -> None:
    spec = make()
    assert SECRET not in repr(spec)
    assert "***" in repr(spec)
    if isinstance(spec, rv.ChildSpec):
        assert SECRET not in repr(rv.SupervisorSpec(children=[spec], intensity=1, period=1e9))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("env", {"ANY": SECRET}),
        ("env", [f"ANY={SECRET}"]),
        ("children[0].env.ANY", SECRET),
        ("engine_args", [("hf_token", 1), {"hf_token": SECRET}]),
        ("engine_args", f"hf_token={SECRET}"),
        ("ray_options", {"runtime_env": {"env_vars": {"ANY": SECRET}}}),
        ("options['api_key']", SECRET),
        ("password", SECRET.encode()),
        ("args", ["--hf-token", SECRET]),
        ("child", rv.server("s", model="m", env={"ANY": SECRET})),
    ],
)
def test_the_message_of_an_error_shows_no_secret(field: str, value: object) -> None:
    for error in (
        rv.SpecError(field, value, f"is wrong, token={SECRET!r}"),
        rv.SpecFileError("tree.toml", field, value, f"is wrong, token={SECRET!r}"),
    ):
        for each in (error, pickle.loads(pickle.dumps(error))):
            assert SECRET not in str(each) + repr(each)
            assert field in str(each)
            assert "***" in str(each)


@pytest.mark.parametrize(
    "text",
    [
        f'kind = "server"\nmodel = ""\nenv = {{ ANY = "{SECRET}" }}\nhf_token = "{SECRET}"',
        f'kind = "server"\nmodel = "m"\nenv = ["ANY={SECRET}"]',
        f'kind = "server"\nmodel = "m"\nport = -1\nenv = "{SECRET}"',
        f'kind = "engine_pool"\nengine_args = "api_key={SECRET}"',
        f'kind = "engine_pool"\nengine_args = {{}}\nruntime_env = [{{ env_vars = {{ A = "{SECRET}" }} }}]',
    ],
)
def test_the_error_of_a_tree_file_shows_no_secret(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text(f'[[children]]\nid = "c"\n{text}\n')
    with pytest.raises(rv.SpecFileError) as caught:
        load_tree(file)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"non-default args: {{'model': 'm', 'hf_token': '{SECRET}'}}",
        f'input_value={{"api_key": "{SECRET}"}}',
        f"HF_TOKEN={SECRET} vllm serve --api-key {SECRET}",
        f"cannot reach https://me:{SECRET}@host/path",
        f"Authorization: Bearer {SECRET}",
        f"spawn failed: env={{'A': '{SECRET}'}}",
    ],
)
def test_the_causes_of_a_fault_show_no_secret(text: str) -> None:
    assert SECRET not in str(plain_causes(RuntimeError(text)))


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
