"""The Chinese pages have the same commands, code and links as the English ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, TRANSLATIONS, blocks, links

PAIRS = [(ROOT / "README.md", ROOT / "README.zh-CN.md")] + [
    (page.with_name(page.name.replace(".zh-CN", "")), page)
    for page in TRANSLATIONS
    if page.parent.name == "docs"
]


def _commands(page: Path) -> list[str]:
    """Return the indented lines of a page without their comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [line.partition(" #")[0].rstrip() for line in lines]


def _headings(page: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", page.read_text(encoding="utf-8"), re.MULTILINE)]


def test_every_translation_has_an_original() -> None:
    assert {page for _, page in PAIRS} == set(TRANSLATIONS)
    assert all(original.exists() for original, _ in PAIRS)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].name)
def test_commands_and_code_are_the_same(pair: tuple[Path, Path]) -> None:
    original, translation = pair
    assert _commands(translation) == _commands(original)
    # Comments may be translated, so the syntax trees are compared.
    code = [[ast.dump(ast.parse(block.text)) for block in blocks(page, "python")] for page in pair]
    assert code[1] == code[0]
    assert [block.text for block in blocks(translation, "text")] == [
        block.text for block in blocks(original, "text")
    ]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].name)
def test_sections_and_links_are_the_same(pair: tuple[Path, Path]) -> None:
    original, translation = pair
    assert _headings(translation) == _headings(original)
    there = {link.replace(".zh-CN", "") for link in links(translation)} - {original.name}
    assert there == {link.replace(".zh-CN", "") for link in links(original)} - {original.name}
