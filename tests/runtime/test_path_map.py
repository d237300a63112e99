"""The mapping by path: it does what a dictionary does, and finds what is below a path."""

from __future__ import annotations

from random import Random

import pytest

from rayvisor._core.paths import contains
from rayvisor._runtime.path_map import PathMap


def test_it_finds_entries_below_paths_that_are_no_entries() -> None:
    entries = PathMap[int]()
    entries["a/b/c"], entries["a/d"], entries["ab"] = 1, 2, 3
    assert list(entries.below("a")) == ["a/b/c", "a/d"]
    assert list(entries.below("a/b")) == ["a/b/c"]
    assert list(entries.below("")) == ["a/b/c", "a/d", "ab"]
    assert list(entries.below("b")) == []
    assert entries["a/d"] == 2
    with pytest.raises(KeyError):
        del entries["a/b"]


def test_a_parent_comes_before_what_is_below_it() -> None:
    entries = PathMap[None]()
    for path in ("a/b", "a", "a/b/c", "d"):
        entries[path] = None
    assert list(entries.below("")) == ["a", "a/b", "a/b/c", "d"]


def test_nothing_is_left_of_entries_that_were_deleted() -> None:
    entries = PathMap[None]()
    for path in ("a/b/c", "a/b", "d/e/f/g"):
        entries[path] = None
    for path in ("a/b", "d/e/f/g", "a/b/c"):
        del entries[path]
    assert len(entries) == 0
    assert entries._children == {}


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_a_scan_over_all_paths(seed: int) -> None:
    rng = Random(seed)
    entries, plain = PathMap[int](), dict[str, int]()
    for step in range(600):
        path = "/".join(rng.choice("abc") for _ in range(rng.randint(1, 4)))
        if path in plain and rng.random() < 0.5:
            del entries[path], plain[path]
        else:
            entries[path] = plain[path] = step
        root = "/".join(rng.choice("abc") for _ in range(rng.randint(0, 3)))
        assert sorted(entries.below(root)) == sorted(each for each in plain if contains(root, each))
        assert dict(entries) == plain
