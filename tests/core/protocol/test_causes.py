"""Cause chains: any exception becomes plain data, whatever it does."""

from __future__ import annotations

import asyncio
import pickle
from itertools import pairwise
from typing import TypeVar

import anyio
import pytest

from rayvisor._core.protocol.causes import in_one_line, plain_causes, shortened, text_cause
from rayvisor.faults import Cause

E = TypeVar("E", bound=BaseException)
MOST_TEXT = 4000


class PanicException(BaseException):
    """Stands in for the exception that PyO3 raises when Rust code panics: it is no `Exception`."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise PanicException("formatting panicked")

    __repr__ = __str__


class Foreign(str):
    """A text whose class another process cannot import."""

    __slots__ = ()

    def strip(self, chars: str | None = None) -> str:
        del chars
        raise AssertionError


class FalsyError(Exception):
    def __len__(self) -> int:
        return 0


class TaskError(Exception):
    def __init__(self, cause: object, text: str = "") -> None:
        super().__init__("the worker's own words")
        self.cause = cause
        self.traceback_str = text


RayTaskError = type("RayTaskError", (TaskError,), {"__module__": "ray.exceptions"})


def chained(error: E, *causes: BaseException) -> E:
    """Make each of them the cause of the one before."""
    links: list[BaseException] = [error, *causes]
    for outer, inner in pairwise(links):
        outer.__cause__ = inner
    return error


def types(error: BaseException) -> list[str]:
    return [cause.type for cause in plain_causes(error)]


def test_a_chain_is_followed_outermost_first() -> None:
    error = chained(RuntimeError("start failed"), ValueError("no model"), KeyError("config"))
    assert plain_causes(error) == (
        Cause("RuntimeError", "start failed"),
        Cause("ValueError", "no model"),
        Cause("KeyError", "'config'"),
    )
    assert in_one_line(error) == "RuntimeError: start failed; ValueError: no model; KeyError: 'config'"


def test_the_context_is_followed_unless_it_is_suppressed() -> None:
    error = ValueError("y")
    error.__context__ = KeyError("x")
    assert types(error) == ["ValueError", "KeyError"]
    error.__suppress_context__ = True
    assert types(error) == ["ValueError"]


def test_a_chain_ends_after_eight_links_and_where_it_comes_back_to_itself() -> None:
    assert types(chained(*(ValueError(number) for number in range(20)))) == ["ValueError"] * 8
    first, second = ValueError("1"), KeyError("2")
    first.__cause__, second.__context__ = second, first
    assert types(first) == ["ValueError", "KeyError"]


def test_an_exception_that_is_false_is_followed_all_the_same() -> None:
    assert types(chained(ValueError(), FalsyError(), KeyError())) == ["ValueError", "FalsyError", "KeyError"]


@pytest.mark.parametrize(
    "error", [MuteError(), chained(ValueError("outer"), MuteError()), ExceptionGroup("", [MuteError()])]
)
def test_an_exception_without_a_readable_text_breaks_nothing(error: BaseException) -> None:
    assert plain_causes(error)[-1] == Cause("MuteError", "<no message: __str__ raised PanicException>")


def test_ctrl_c_is_not_taken_for_an_unreadable_text() -> None:
    class CtrlCError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plain_causes(CtrlCError())


def test_a_text_of_a_foreign_class_becomes_a_plain_one() -> None:
    class SpeakingError(Exception):
        def __str__(self) -> str:
            return Foreign(" words ")

    (cause,) = plain_causes(SpeakingError())
    assert type(cause.message) is str
    assert cause.message == "words"
    assert pickle.loads(pickle.dumps(cause)) == cause


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    (cause,) = plain_causes(ValueError("head" + 100_000 * "x" + "tail"))
    assert len(cause.message) <= MOST_TEXT
    assert cause.message.startswith("head")
    assert cause.message.endswith("tail")
    assert "\n...\n" in cause.message
    assert shortened(MOST_TEXT * "x") == MOST_TEXT * "x"


def test_a_panic_of_an_extension_is_a_cause_like_any_other() -> None:
    error = chained(RuntimeError("tokenizer"), PanicException("index out of bounds"))
    assert plain_causes(error)[-1] == Cause("PanicException", "index out of bounds")
    group = BaseExceptionGroup("panics", [PanicException("a"), ValueError("b")])
    assert plain_causes(group) == (
        Cause("BaseExceptionGroup", "panics (2 exceptions, the first of which follows)"),
        Cause("PanicException", "a"),
    )


# --- groups -----------------------------------------------------------------------------------------


def test_a_group_is_followed_into_its_first_leaf_and_counts_the_others() -> None:
    root = chained(RuntimeError("worker"), KeyError("weights"))
    group = ExceptionGroup(
        "outer", [ExceptionGroup("inner", [root, ValueError("x")]), ExceptionGroup("other", [TypeError("y")])]
    )
    assert plain_causes(chained(OSError("load"), group)) == (
        Cause("OSError", "load"),
        Cause("ExceptionGroup", "outer (3 exceptions, the first of which follows)"),
        Cause("RuntimeError", "worker"),
        Cause("KeyError", "'weights'"),
    )


def test_a_group_of_one_is_not_counted() -> None:
    assert plain_causes(ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("x")])])) == (
        Cause("ExceptionGroup", "outer"),
        Cause("ValueError", "x"),
    )


def test_a_group_as_deep_as_python_lets_it_be_is_read() -> None:
    error: Exception = ValueError("x")
    for _ in range(5000):
        error = ExceptionGroup("deep", [error])
    assert plain_causes(error) == (Cause("ExceptionGroup", "deep"), Cause("ValueError", "x"))


async def fails(message: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(message)


async def test_the_root_cause_is_taken_out_of_asyncio_s_task_group() -> None:
    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails("no weights"))
    assert plain_causes(failed.value) == (
        Cause("ExceptionGroup", "unhandled errors in a TaskGroup"),
        Cause("ValueError", "no weights"),
    )


async def test_the_root_cause_is_taken_out_of_anyio_s_nested_task_groups() -> None:
    async def both_fail() -> None:
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(fails, "first")
            inner.start_soon(fails, "second")

    with pytest.raises(ExceptionGroup) as failed:
        await both_fail()
    first, *_, root = plain_causes(failed.value)
    assert first.type == "ExceptionGroup"
    assert root.type == "ValueError"
    assert root.message in {"first", "second"}


# --- Ray's wrapper, without Ray ------------------------------------------------------------------------


def test_ray_s_wrapper_around_a_task_s_error_is_taken_off() -> None:
    inner = chained(ValueError("bad"), KeyError("name"))
    as_cause = type("RayTaskError(ValueError)", (RayTaskError, ValueError), {"__module__": "ray.exceptions"})
    for wrapper in (RayTaskError(inner), as_cause(inner), RayTaskError(RayTaskError(inner))):
        assert plain_causes(wrapper) == (Cause("ValueError", "bad"), Cause("KeyError", "'name'"))


def test_a_wrapper_that_is_the_cause_of_what_it_wraps_is_followed_once() -> None:
    inner = ValueError("bad")
    inner.__cause__ = RayTaskError(inner)
    assert plain_causes(inner) == (Cause("ValueError", "bad"),)


def test_wrappers_around_each_other_end_with_the_first_one() -> None:
    first = RayTaskError(None)
    first.cause = RayTaskError(first)
    assert plain_causes(first) == (Cause("RayTaskError", "the worker's own words"),)


def test_a_wrapper_without_its_exception_is_read_off_its_traceback() -> None:
    text = "Traceback (most recent call last):\n  File 'y'\nvllm.v1.EngineDeadError: gone\nfor good"
    assert plain_causes(RayTaskError(None, text)) == (Cause("EngineDeadError", "gone\nfor good"),)
    assert plain_causes(RayTaskError(None)) == (Cause("UnknownError", "the worker's own words"),)


def test_only_ray_s_own_wrapper_is_taken_off() -> None:
    other = type("RayTaskError", (TaskError,), {"__module__": "somebody.else"})
    assert types(other(ValueError("x"))) == ["RayTaskError"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Traceback:\n  File x\na.b.CudaError: no device", Cause("CudaError", "no device")),
        ("Traceback:\n  File x\nKeyError", Cause("KeyError", "")),
        ("no traceback at all!", Cause("UnknownError", "no traceback at all!")),
        ("", Cause("UnknownError", "")),
    ],
)
def test_an_exception_is_read_off_the_last_lines_of_a_text(text: str, cause: Cause) -> None:
    assert text_cause(text) == cause
