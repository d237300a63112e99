"""A tiny random Llama on disk: two layers, 64 wide, one token for each byte.

Each byte is a token, so that a character of several bytes is split between tokens. The weights are random,
from a fixed seed. Such a model reveals every mistake in sampling and in continuing a text; a trained one,
which is sure of its next token, would hide them.

    from tests.backends.tiny_model import make_tiny_model
    path = make_tiny_model(folder)

It needs torch and transformers, which come with an engine extra. It downloads nothing.
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from pathlib import Path

__all__ = ["EOS", "byte_tokens", "make_tiny_model"]

EOS = 257
_SPECIAL = {"<s>": 256, "</s>": EOS}
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokens(text: str) -> list[int]:
    """Return the token ids of a text: its bytes."""
    return list(text.encode())


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Return the path of the model below ``folder``; create it unless this version of it exists."""
    version = zlib.crc32(Path(__file__).read_bytes())
    path = folder / f"tiny-llama-{seed}-{version:08x}"
    if (path / "config.json").exists():
        return path
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **_SPECIAL}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    bos, eos = _SPECIAL
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    wrapped.chat_template = _CHAT

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=_SPECIAL["<s>"],
        eos_token_id=EOS,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(bos_token_id=_SPECIAL["<s>"], eos_token_id=EOS)
    unfinished = Path(tempfile.mkdtemp(prefix=".tiny-llama-", dir=folder))
    model.save_pretrained(unfinished)
    wrapped.save_pretrained(unfinished)
    with contextlib.suppress(OSError):  # another process has created it meanwhile
        unfinished.rename(path)
    return path


def _byte_characters() -> dict[int, str]:
    """Return the printable character for each byte, as in GPT-2's byte-level tokenizer."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
