"""The text that the demo's model recites, and prompts taken from it.

The passage is the opening of *Alice's Adventures in Wonderland* (1865) by Lewis Carroll (1832-1898), in the
public domain. It is a well-known text, so that a reader sees whether the sentence continues after a kill. Its
curly quotation marks are three bytes, and therefore three tokens, so that a kill can fall inside a character.

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
"""The end-of-text token; the ids below it are the bytes of UTF-8."""

_PROMPT_CHARACTERS = 40
_LEFT_TO_RECITE = 450


def token_ids(text: str) -> list[int]:
    """Tokenise like the demo's model: one token per byte of UTF-8."""
    return list(text.encode())


def prompts(count: int, *, seed: int = 0) -> list[str]:
    """Return ``count`` prompts from the passage; the first one is its beginning.

    Each prompt starts at a word, occurs exactly once, and is followed by at least 450 tokens. All prompts are
    different until the positions run out; then they repeat.
    """
    last = len(PASSAGE) - _PROMPT_CHARACTERS - _LEFT_TO_RECITE
    starts = [place for place in range(1, last) if PASSAGE[place - 1] == " " and PASSAGE[place].isalpha()]
    random.Random(seed).shuffle(starts)
    starts.insert(0, 0)
    chosen = (starts[number % len(starts)] for number in range(count))
    return [PASSAGE[start : start + _PROMPT_CHARACTERS] for start in chosen]


def continuation(prompt: str) -> str:
    """Return the rest of the passage after ``prompt``.

    Raises
    ------
    ValueError
        If ``prompt`` does not occur exactly once in the passage.
    """
    if PASSAGE.count(prompt) != 1:
        raise ValueError(f"prompt={prompt!r} does not occur exactly once in the passage")
    return PASSAGE.partition(prompt)[2]
