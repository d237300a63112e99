"""The pages of the documentation: their code, their links, and their generated parts.

A part between ``<!-- made of: X -->`` and ``<!-- end -->`` is generated from X, and a picture is the output
of its command. To regenerate all of them:

    python tests/docs/pages.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from rayvisor._edges.metrics.exposition import FAMILIES
from rayvisor.cli import main
from rayvisor.faults import RULES
from statecharts import render
from statecharts.lifecycles import CHARTS

ROOT = Path(__file__).parents[2]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
TRANSLATIONS = tuple(page for page in PAGES if page.name.endswith(".zh-CN.md"))
"""These contain the same code as their originals."""
PICTURES = {
    ROOT / "docs" / "engine.svg": "rayvisor chart engine --format svg",
    ROOT / "docs" / "tree.svg": f"rayvisor chart --tree {ROOT / 'examples' / 'tree.toml'} --format svg",
}
"""The pictures on the pages, and the commands that write them."""

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MADE = re.compile(r"(?<=<!-- made of: )(.+?)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CHART = re.compile(r"rayvisor chart (\w+) --format (\w+)")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Page and line, for the names of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> Iterator[Block]:
    """Return the blocks of one language on a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found[1] == language:
            yield Block(page, text.count("\n", 0, found.start()) + 2, language, found[2])


def navigation() -> Iterator[Path]:
    """Return the pages of the site in the order of its navigation."""
    index = ROOT / "docs" / "index.md"
    for tree in re.findall(
        r"^```\{toctree\}\n(.*?)^```$", index.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        yield from (
            index.parent / f"{line}.md" for line in tree.split("\n") if line and not line.startswith(":")
        )


def documented() -> Iterator[str]:
    """Return the path of every entry of the reference, as it is written there."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        yield from re.findall(
            r"^\.\. auto(?!module)\w+:: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE
        )


def links(page: Path) -> Iterator[str]:
    """Return the link targets of a page, without those in code."""
    yield from _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def made_parts(text: str) -> dict[str, str]:
    """Return the generated parts of a page by the name of their generator."""
    return {found[1]: found[3] for found in _MADE.finditer(text)}


def make(maker: str) -> str:
    """Generate such a part.

    Raises
    ------
    ValueError
        There is no such generator.
    """
    chart = _CHART.fullmatch(maker)
    if chart is not None:
        return f"```{chart[2]}\n{render(CHARTS[chart[1]], chart[2])}```\n"
    if maker == "rayvisor.faults.RULES":
        return _classes()
    if maker == "rayvisor._edges.metrics.exposition.FAMILIES":
        return _metrics()
    raise ValueError(f"no generator is named {maker!r}")


def _classes() -> str:
    rows = [f"| {number} | {name} | {answer} |" for number, (name, _, answer) in enumerate(RULES, 1)]
    head = ["", "| | row | class |", "|---|---|---|"]
    return "\n".join([*head, *rows, f"| {len(rows) + 1} | anything else | FATAL |", "", ""])


def _metrics() -> str:
    rows = [
        f"| `{name}` | {kind} | {' '.join(f'`{label}`' for label in labels)} | {tells} |"
        for name, kind, labels, tells in FAMILIES
    ]
    return "\n".join(["", "| metric | type | labels | |", "|---|---|---|---|", *rows, "", ""])


def draw(command: str) -> str:
    """Return the output of a command."""
    return CliRunner().invoke(main, command.split()[1:], catch_exceptions=False).stdout


def remake(text: str, maker: Callable[[str], str] = make) -> str:
    """Return a page with all its generated parts renewed."""
    return _MADE.sub(lambda found: f"{found[1]}{found[2]}{maker(found[1])}", text)


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(remake(each.read_text(encoding="utf-8")), encoding="utf-8")
    for picture, drawn_by in PICTURES.items():
        picture.write_text(draw(drawn_by), encoding="utf-8")
