"""Paused paths: the set is what was added and not discarded or dropped, and no link is left over."""

from __future__ import annotations

from random import Random

from rayvisor._core.paths import contains
from rayvisor._core.supervision.paused import PausedPaths


def test_it_is_the_set_that_is_scanned_for_prefixes() -> None:
    random = Random(1)
    paths = ["a", "ab", "b", "a/x", "a/y", "a/x/1", "a/x/2", "ab/x", "b/x/1", "b/x/1/deep"]
    for _ in range(200):
        paused, plain = PausedPaths(), set[str]()
        for _ in range(20):
            path = random.choice(paths)
            match random.randrange(4):
                case 0 | 1:
                    paused.add(path)
                    plain.add(path)
                case 2:
                    paused.discard(path)
                    plain.discard(path)
                case _:
                    paused.drop(path)
                    plain = {one for one in plain if not contains(path, one)}
            assert {one for one in paths if one in paused} == plain
            assert len(paused) == len(plain)
        for path in paths:
            paused.discard(path)
        assert not paused._below


def test_nothing_is_left_of_a_path_that_was_paused_deep_below() -> None:
    paused = PausedPaths()
    paused.add("a/b/c/d")
    paused.drop("a/b")
    assert len(paused) == 0
    assert not paused._below
