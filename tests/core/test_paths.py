"""Paths are text: joined, split and compared by their ids."""

from __future__ import annotations

import pytest

from rayvisor._core.paths import ancestors, contains, join, split


@pytest.mark.parametrize(
    ("parent", "own", "path"), [("", "a", "a"), ("a", "b", "a/b"), ("a/b", "c", "a/b/c"), ("", "", "")]
)
def test_split_undoes_join(parent: str, own: str, path: str) -> None:
    assert join(parent, own) == path
    assert split(path) == (parent, own)


@pytest.mark.parametrize("path", ["", "a", "a/b"])
def test_the_empty_root_contains_everything(path: str) -> None:
    assert contains("", path)


@pytest.mark.parametrize(
    ("root", "path", "inside"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "a/b/c", True),
        ("a", "ab", False),
        ("a", "ab/c", False),
        ("a/b", "a", False),
        ("a/b", "a/bc", False),
        ("a", "", False),
    ],
)
def test_a_path_contains_itself_and_what_is_below(root: str, path: str, *, inside: bool) -> None:
    assert contains(root, path) is inside


def test_ancestors_end_with_the_root() -> None:
    assert list(ancestors("a/b/c")) == ["a/b", "a", ""]
    assert list(ancestors("a")) == [""]
    assert list(ancestors("")) == []
