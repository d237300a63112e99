"""The documentation agrees with itself and with the program."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import click
import pytest
from click.testing import CliRunner

import rayvisor
import rayvisor.errors
import rayvisor.pool
from rayvisor import records
from rayvisor.cli import main
from rayvisor.config import KINDS
from rayvisor.errors import RayvisorError
from rayvisor.specs.arguments import arguments_of
from statecharts.lifecycles import CHARTS
from tests.docs.pages import PAGES, PICTURES, ROOT, documented, draw, links, made_parts, make, navigation
from tools import docs_reference

PUBLIC = (
    "rayvisor",
    *(
        f"rayvisor.{module.name}"
        for module in iter_modules(rayvisor.__path__)
        if not module.name.startswith("_")
        and module.name not in {"cli", "demo"}  # commands, which programs do not import
    ),
    "statecharts",
    "statecharts.embedding",
    "statecharts.lifecycles",
)
MADE = [(page, maker) for page in PAGES for maker in made_parts(page.read_text(encoding="utf-8"))]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _id(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("page", "maker"), MADE, ids=_id)
def test_a_generated_part_is_up_to_date(page: Path, maker: str) -> None:
    part = made_parts(page.read_text(encoding="utf-8"))[maker]
    assert part == make(maker), "regenerate it: python tests/docs/pages.py"


@pytest.mark.parametrize("picture", PICTURES, ids=_id)
def test_a_picture_is_up_to_date(picture: Path) -> None:
    assert picture.read_text(encoding="utf-8") == draw(PICTURES[picture]), (
        "regenerate it: python tests/docs/pages.py"
    )
    assert f"({picture.name})" in _text("docs/charts.md")


def test_the_reference_shows_the_charts_that_the_command_writes() -> None:
    charts = [maker for page, maker in MADE if page.name == "charts.md"]
    assert len(charts) == len(CHARTS)
    for maker in charts:
        written = CliRunner().invoke(main, maker.split()[1:]).stdout
        assert f"```mermaid\n{written}```" in _text("docs/reference/charts.md")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_relative_links_have_a_target(page: Path) -> None:
    for link in links(page):
        if not link.startswith(("https://", "#")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve()
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in seen:
            seen.add(page)
            paths = (link.partition("#")[0] for link in links(page) if "://" not in link)
            ahead += [(page.parent / path).resolve() for path in paths if path.endswith(".md")]
    assert seen == set(PAGES)


def test_the_pages_beside_the_readme_link_each_other_and_the_license() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        others = {"README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"} - {page}
        assert others <= set(links(ROOT / page)), page


def test_every_path_named_in_the_guide_for_contributors_exists() -> None:
    # A file named without its folder lies in the folder of the path before it, or in the package.
    folder, missing = ROOT, []
    for name in re.findall(r"`([\w./-]+)`", _text("CONTRIBUTING.md")):
        if "NAME" in name or not ("/" in name or name.endswith((".py", ".md", ".toml", ".txt", ".yaml"))):
            continue
        places = (ROOT, ROOT / "supervisor" / "rayvisor", folder)
        found = next((place / name for place in places if (place / name).exists()), None)
        if found is None:
            missing.append(name)
        else:
            folder = found if found.is_dir() else found.parent
    assert missing == []


def test_every_page_is_in_the_navigation_of_the_site_once() -> None:
    pages = [page for page in PAGES if page.parent != ROOT and page.name != "index.md"]
    assert sorted(navigation()) == sorted(pages), "name the page in a toctree of docs/index.md"


def test_every_public_name_has_one_entry_in_the_reference() -> None:
    """design.md defines what is public: ``rayvisor``, its modules without an underscore, ``statecharts``."""
    entries = list(documented())
    assert len(entries) == len(set(entries)), "there are duplicate entries"
    known = [_object(entry) for entry in entries]
    missing = [
        f"{module}.{name}"
        for module in PUBLIC
        for name in import_module(module).__all__
        if not any(each is getattr(import_module(module), name) for each in known)
    ]
    assert missing == [], "add an entry to a page in docs/reference"


def test_the_reference_has_every_command_and_every_key_of_a_file() -> None:
    made = docs_reference.made("<!-- made here: commands -->\n<!-- made here: keys -->")
    for name in main.list_commands(click.Context(main)):
        assert f"## rayvisor {name}\n" in made
    for kind, maker in KINDS.items():
        table = made.partition(f'`kind = "{kind}"`')[2].partition("\n### ")[0]
        keys = set(re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE))
        names = {each.name for each in arguments_of(maker)}
        assert names - keys <= {"cls", "actor", "spec", "start_timeout", "args"}, (
            "there is a key without a type or without a row"
        )
    assert "\n\n\n\n" not in made


def test_the_table_of_messages_has_every_record_and_all_its_fields() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+)\|", _text("docs/events.md"), re.MULTILINE))
    for name in set(records.__all__) - {"Record"}:
        fields = {each.name for each in dataclasses.fields(getattr(records, name))} - {"at"}
        assert set(re.findall(r"\w+", rows[name])) == fields, name
    assert set(rows) == set(records.__all__) - {"Record"}


def _object(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_the_readme_begins_with_the_two_commands() -> None:
    readme = _text("README.md")
    assert re.findall(r"^    (make \w+) +#", readme, re.MULTILINE)[:2] == ["make demo", "make test"]
    assert readme.index("make test") < readme.index("```python")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_make_targets_on_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", _text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_and_options_on_a_page_exist(page: Path) -> None:
    lines = re.findall(
        r"(?:^    |[`/])rayvisor ([a-z]+)([^`#\n]*)", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    demo = re.findall(r"make demo ARGS='([^']*)'", page.read_text(encoding="utf-8"))
    for command, rest in [*lines, *(("demo", options) for options in demo)]:
        help_text = CliRunner().invoke(main, [command, "--help"]).output
        assert "Usage:" in help_text, command
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in help_text, f"rayvisor {command} {option}"


def test_the_tree_of_errors_has_exactly_the_public_errors() -> None:
    known = {
        name
        for module in (rayvisor.errors, rayvisor.pool)
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, RayvisorError) and name in module.__all__
    }
    tree = _text("docs/errors.md").partition("```")[0]
    assert set(re.findall(r"[├└]── (\w+)", tree)) == known - {"RayvisorError"}


def test_the_tree_of_errors_has_each_below_its_base() -> None:
    above: list[str] = ["RayvisorError"]
    for indent, name in re.findall(r"^    ([│ ]*)[├└]── (\w+)", _text("docs/errors.md"), re.MULTILINE):
        depth = len(indent) // 4 + 1
        error = getattr(rayvisor.errors, name, None) or getattr(rayvisor.pool, name)
        above[depth:] = [name]
        assert above[depth - 1] in {base.__name__ for base in error.__mro__[1:]}


def test_each_error_has_a_remedy() -> None:
    page = _text("docs/errors.md")
    for name in re.findall(r"[├└]── (\w+)", page):
        if name not in {"CallError", "RequestError"}:
            assert re.search(rf"^\| `{name}` \|.+\|.+\|$", page, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_names_of_the_package_on_a_page_are_public(page: Path) -> None:
    for name in re.findall(r"\brv\.(\w+)", page.read_text(encoding="utf-8")):
        assert name in rayvisor.__all__, name
