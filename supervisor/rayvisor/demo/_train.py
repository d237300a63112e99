"""Makes the demo's models, as ``python -m rayvisor.demo._train FOLDER {trained,random}``.

Nothing imports this module, so torch and transformers stay in the training process. It prints lines of
progress to standard output and exits with status 0 when the folder holds a complete model.

The trained model is a Llama that is small enough to memorize the passage in less than a minute. Training ends
when the model's first choice is correct at every position that a prompt can lead to, by a margin larger than
any difference between the arithmetic of two machines.
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
"""Minimum lead, in logits, of the correct token at every position."""
PROMPT_TOKENS = 32
"""Number of tokens that the model may need to find its position in the text."""
IGNORED = -100


def byte_symbols() -> list[str]:
    """Return the printable symbol that byte-level tokenizers use for each byte, in the order of the bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose ids are the bytes of UTF-8 and an end-of-text token."""
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
    """Return the lead of the correct token at the worst position; negative if another token leads."""
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
    """Return the mean loss of predicting ``rows`` without their first tokens, which are unpredictable."""
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    labels = batch.clone()
    labels[:, :UNCERTAIN] = IGNORED
    return model(batch.clamp(min=0), labels=labels).loss


def train() -> LlamaForCausalLM:
    """Train a model to recite the passage.

    Most of the training uses short pieces, from which it learns to find its position by content instead of by
    counting. Every second step also uses the passage up to its end, so that it can continue for long.

    Raises
    ------
    RuntimeError
        If it has not learned the passage in ``MOST_STEPS`` steps.
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
                    print(f"step {step}, passage learned; narrowest margin {margin:.1f}", flush=True)
                    return model
    raise RuntimeError(f"the model has not learned the passage in {MOST_STEPS} steps")


def main() -> int:
    """Write one model to a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=["trained", "random"])
    chosen = parser.parse_args()
    # One thread, since on a busy machine two threads mostly spin while waiting for each other.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = train() if chosen.kind == "trained" else make_model(spread=0.2)
    model.generation_config.eos_token_id = END_TOKEN
    model.save_pretrained(chosen.folder)
    make_tokenizer().save_pretrained(chosen.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
