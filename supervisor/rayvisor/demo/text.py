"""The text that the demo's model recites, and prompts taken from it.

The passage is the opening of *Alice's Adventures in Wonderland* (1865) by Lewis Carroll (1832-1898), in the
public domain. It is well known on purpose: a reader sees whether the sentence goes on after a kill. Its curly
quotation marks are three bytes, so three tokens each: a kill can fall into the middle of one.

    >>> first = prompts(1)[0]
    >>> first
    'Alice was beginning to get very tired of'
    >>> continuation(first)[:24]
    ' sitting by her sister o'
"""

from __future__ import annotations

import random

__all__ = ["END_TOKEN", "PASSAGE", "SOURCE", "continuation", "prompts", "token_ids"]

SOURCE = "Lewis Carroll, Alice's Adventures in Wonderland (1865)"

PASSAGE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing "
    "to do: once or twice she had peeped into the book her sister was reading, but it had no pictures "
    "or conversations in it, “and what is the use of a book,” thought Alice “without pictures or "
    "conversations?”\n"
    "So she was considering in her own mind (as well as she could, for the hot day made her feel very "
    "sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the trouble of "
    "getting up and picking the daisies, when suddenly a White Rabbit with pink eyes ran close by her.\n"
    "There was nothing so very remarkable in that; nor did Alice think it so very much out of the way "
    "to hear the Rabbit say to itself, “Oh dear! Oh dear! I shall be late!” But when the Rabbit "
    "actually took a watch out of its waistcoat-pocket, and looked at it, and then hurried on, Alice "
    "started to her feet."
)

END_TOKEN = 256
"""The token that ends a text; the ids below it are the bytes of UTF-8."""

_PROMPT_CHARACTERS = 40
_LEFT_TO_RECITE = 450


def token_ids(text: str) -> list[int]:
    """Tokenise as the demo's model does: one token a byte of UTF-8."""
    return list(text.encode())


def prompts(count: int, *, seed: int = 0) -> list[str]:
    """Take ``count`` prompts from the passage; the first one is its beginning.

    Each starts at a word, occurs once only, and leaves at least 450 tokens to recite. They are all different
    until the places run out, and then come round again.
    """
    last = len(PASSAGE) - _PROMPT_CHARACTERS - _LEFT_TO_RECITE
    starts = [place for place in range(1, last) if PASSAGE[place - 1] == " " and PASSAGE[place].isalpha()]
    random.Random(seed).shuffle(starts)
    starts.insert(0, 0)
    chosen = (starts[number % len(starts)] for number in range(count))
    return [PASSAGE[start : start + _PROMPT_CHARACTERS] for start in chosen]


def continuation(prompt: str) -> str:
    """Return what the passage says after ``prompt``, up to its end.

    Raises
    ------
    ValueError
        If ``prompt`` is not a piece of the passage that occurs exactly once.
    """
    if PASSAGE.count(prompt) != 1:
        raise ValueError(f"prompt={prompt!r} does not occur exactly once in the passage")
    return PASSAGE.partition(prompt)[2]
