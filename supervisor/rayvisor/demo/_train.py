"""Makes the demo's models: run as ``python -m rayvisor.demo._train FOLDER {trained,random}``.

Nothing imports this module: torch and transformers stay in the process that trains. It writes lines of
progress to standard output and ends with exit status 0 when the folder holds a complete model.

The trained model is a Llama so small that it learns the passage by heart in under a minute. Training is over
when the model's first choice is right at every place that a prompt can lead to, by a margin that no
difference between two machines' arithmetic can eat up.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rayvisor.demo.text import END_TOKEN, PASSAGE, token_ids

SEED = 1865
END_TEXT = "<|end|>"
MOST_STEPS = 1500
PIECES = 8
PIECE_TOKENS = 128
UNCERTAIN = 16
CHECK_EVERY = 20
GOOD_LOSS = 0.05
MARGIN = 3.0
"""How far (in logits) the right token must lead everywhere."""
PROMPT_TOKENS = 32
"""The model may be unsure of its place in a text until it has read this much of it."""
IGNORED = -100


def byte_symbols() -> list[str]:
    """List the printable symbol that byte-level tokenizers write for each byte, in the order of the bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose ids are the bytes of UTF-8, and one more that ends a text."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_TEXT])
    special = {"eos_token": END_TEXT, "pad_token": END_TEXT}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        clean_up_tokenization_spaces=False,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def make_model(*, spread: float) -> LlamaForCausalLM:
    """Make a model with random weights of the given standard deviation."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=END_TOKEN + 1,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            initializer_range=spread,
            bos_token_id=None,
            eos_token_id=END_TOKEN,
            pad_token_id=END_TOKEN,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )


def narrowest_margin(model: LlamaForCausalLM, tokens: torch.Tensor, starts: list[int]) -> float:
    """Return by how much the right token leads at the worst place (negative: it does not)."""
    worst = float("inf")
    model.eval()
    with torch.no_grad():
        for start in starts:
            sequence = tokens[start:]
            logits = model(sequence[None, :-1]).logits[0, PROMPT_TOKENS:]
            right = sequence[PROMPT_TOKENS + 1 :, None]
            others = logits.scatter(1, right, float("-inf")).max(1).values
            worst = min(worst, float((logits.gather(1, right)[:, 0] - others).min()))
    model.train()
    return worst


def loss_of(model: LlamaForCausalLM, rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of predicting ``rows``, but for their first tokens: nothing foretells those."""
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    labels = batch.clone()
    labels[:, :UNCERTAIN] = IGNORED
    return model(batch.clamp(min=0), labels=labels).loss


def train() -> LlamaForCausalLM:
    """Teach a model the passage by heart.

    Most of the training is on short pieces, from which it learns to find its place by what it reads and not
    by counting; every second step shows it the passage up to its end as well, so that it can go on for long.

    Raises
    ------
    RuntimeError
        If it has not learnt it in ``MOST_STEPS`` steps.
    """
    model = make_model(spread=0.05)
    tokens = torch.tensor([*token_ids(PASSAGE), END_TOKEN])
    last = len(tokens) - 4 * PROMPT_TOKENS
    chance = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.1)
    speed = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20, max(0.1, (280 - step) / 150))
    )
    for step in range(1, MOST_STEPS + 1):
        starts = [chance.randrange(len(tokens) - PROMPT_TOKENS) for _ in range(PIECES)]
        loss = loss_of(model, [tokens[start : start + PIECE_TOKENS] for start in starts])
        if step % 2 == 0:
            start = chance.choice([0, chance.randrange(last)])
            loss = loss + loss_of(model, [tokens[start:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        speed.step()
        if step % CHECK_EVERY == 0:
            now = float(loss.detach())
            print(f"step {step} of about 300, loss {now:.3f}", flush=True)
            if now < GOOD_LOSS and narrowest_margin(model, tokens, list(range(0, last, 97))) > MARGIN:
                margin = narrowest_margin(model, tokens, list(range(0, last, 11)))
                if margin > MARGIN:
                    print(f"step {step}, learnt by heart; narrowest margin {margin:.1f}", flush=True)
                    return model
    raise RuntimeError(f"the model has not learnt the passage in {MOST_STEPS} steps")


def main() -> int:
    """Write one model to a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=["trained", "random"])
    chosen = parser.parse_args()
    # One thread: on a busy machine two of them mostly wait for each other, spinning.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = train() if chosen.kind == "trained" else make_model(spread=0.2)
    model.generation_config.eos_token_id = END_TOKEN
    model.save_pretrained(chosen.folder)
    make_tokenizer().save_pretrained(chosen.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
