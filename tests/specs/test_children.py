from __future__ import annotations

import math
from typing import Any

import pytest

import rayvisor as rv
from rayvisor.specs import EnginePoolSpec, EngineStart


class Router:
    pass


def test_a_pool_is_a_supervisor_of_engines_that_start_side_by_side() -> None:
    pool = rv.engine_pool("llm", engine_args={"model": "/m"}, size=3, shutdown=math.inf, num_gpus=2)
    assert isinstance(pool.start, EnginePoolSpec)
    assert [child.id for child in pool.start.children] == ["1", "2", "3"]
    assert pool.start.max_concurrent_starts > 1
    engine = pool.start.children[0]
    assert isinstance(engine.start, EngineStart)
    assert (engine.start.engine, engine.start.arguments) == ("vllm", {"model": "/m"})
    assert engine.start.options.num_gpus == 2
    assert engine.crash_loop_limit == 3
    assert engine.ending.endless


def test_spares_and_engines_that_serve_are_to_be_apart_unless_their_place_was_chosen() -> None:
    def apart(**options: Any) -> list[tuple[str, ...]]:
        pool = rv.engine_pool("llm", engine_args={}, size=2, **options)
        assert isinstance(pool.start, EnginePoolSpec)
        starts = [child.start for child in pool.start.children]
        return [start.options.apart_from for start in starts if isinstance(start, EngineStart)]

    assert apart(standby=1) == [("3",), ("3",), ("1", "2")]
    assert apart() == [(), ()]
    assert apart(standby=1, scheduling="SPREAD") == [(), (), ()]


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"size": 0}, "size", "0"),
        ({"size": True}, "size", "True"),
        ({"engine": "triton"}, "engine", "'triton'"),
        ({"engine_args": ["model"]}, "engine_args", "['model']"),
        ({"intensity": -1}, "intensity", "-1"),
        ({"queue_limit": 0}, "queue_limit", "0"),
        ({"max_attempts": 1.5}, "max_attempts", "1.5"),
        ({"request_timeout": 0}, "request_timeout", "0"),
        ({"request_timeout": math.nan}, "request_timeout", "nan"),
        ({"shutdown": -1}, "shutdown", "-1"),
        ({"period": 10.0}, "children['1'].backoff", "Backoff("),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_field_and_value(
    options: dict[str, Any], field: str, value: str
) -> None:
    with pytest.raises(rv.SpecError) as raised:
        rv.engine_pool("llm", **{"engine_args": {}, **options})
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}={value}")


def test_what_is_no_class_or_no_function_is_refused() -> None:
    with pytest.raises(rv.SpecError, match="cls="):
        rv.actor("router", Router())  # type: ignore[arg-type]  # the mistake
    with pytest.raises(rv.SpecError, match="function="):
        rv.coroutine("ticker", 7)  # type: ignore[arg-type]  # the mistake
