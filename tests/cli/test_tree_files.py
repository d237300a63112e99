"""Trees as TOML files: their content, and the errors for invalid keys and values."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import rayvisor as rv
from rayvisor._edges.control.client import ControlClient
from rayvisor._edges.http.json_forms import node_from
from rayvisor.cli._lines import tree_lines
from rayvisor.cli._picture import tree_of
from rayvisor.config import KINDS, TreeFile, load_tree
from rayvisor.specs import ActorStart, CoroutineStart, EnginePoolSpec, EngineStart, PlacementOptions
from rayvisor.specs.tree import LEVELS_MAX
from statecharts import render_tree, tree_formats

POOL = '[[children]]\nkind = "engine_pool"\nid = "llm"\nengine_args = {}\n'
COROUTINE = '[[children]]\nkind = "coroutine"\nid = "a"\n'
ACTOR = '[[children]]\nkind = "actor"\nid = "a"\n'
SUPERVISOR = '[[children]]\nkind = "supervisor"\nid = "a"\n'


@pytest.fixture(autouse=True)
def python_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def load(folder: Path, text: str) -> TreeFile:
    (folder / "tree.toml").write_text(text, encoding="utf-8")
    return load_tree(folder / "tree.toml")


def test_a_file_says_what_the_functions_take(tmp_path: Path) -> None:
    (tmp_path / "beside_tree.py").write_text("class Router: ...\n")
    text = """
        strategy = "rest_for_one"
        intensity = 3
        period = 900
        max_concurrent_starts = 2
        [run]
        local = true
        seed = 7
        ray_options = { num_cpus = 4 }
        [[children]]
        kind = "engine_pool"
        id = "llm"
        engine = "sim"
        engine_args = { seed = 3, tokens_per_second = 50.0 }
        size = 2
        shutdown = "brutal_kill"
        backoff = { initial = 0.5, maximum = 8, jitter = "equal" }
        placement = { bundles = [{ CPU = 1 }], strategy = "SPREAD" }
        [[children]]
        kind = "actor"
        id = "router"
        class = "beside_tree:Router"
        kwargs = { deep = { er = [1, 2] } }
        restart = "transient"
        shutdown = 2
        [[children]]
        kind = "supervisor"
        id = "side"
        strategy = "one_for_all"
        auto_shutdown = "any_significant"
        shutdown = "infinity"
            [[children.children]]
            kind = "coroutine"
            id = "napper"
            function = "anyio:sleep"
            args = [60.0]
            restart = "transient"
            significant = true
    """
    tree = load(tmp_path, text)
    assert tree.options == {"local": True, "seed": 7, "ray_options": {"num_cpus": 4}}
    spec = tree.spec
    assert (spec.strategy, spec.intensity, spec.period, spec.max_concurrent_starts) == (
        rv.Strategy.REST_FOR_ONE,
        3,
        900,
        2,
    )
    llm, router, side = spec.children
    assert isinstance(llm.start, EnginePoolSpec)
    assert [child.id for child in llm.start.children] == ["1", "2"]
    engine = llm.start.children[0]
    assert isinstance(engine.start, EngineStart)
    assert engine.start.arguments == {"seed": 3, "tokens_per_second": 50.0}
    assert engine.shutdown == rv.Shutdown.BRUTAL_KILL
    assert engine.backoff == rv.Backoff(initial=0.5, maximum=8, jitter=rv.Jitter.EQUAL)
    assert engine.start.options.placement == PlacementOptions(bundles=({"CPU": 1},), strategy="SPREAD")
    assert isinstance(router.start, ActorStart)
    assert router.start.cls.__name__ == "Router"
    assert router.start.kwargs == {"deep": {"er": [1, 2]}}
    assert (router.restart, router.shutdown) == (rv.Restart.TRANSIENT, rv.Shutdown(2.0))
    assert isinstance(side.start, rv.SupervisorSpec)
    assert side.start.auto_shutdown is rv.AutoShutdown.ANY_SIGNIFICANT
    (napper,) = side.start.children
    assert isinstance(napper.start, CoroutineStart)
    assert (napper.start.function, napper.start.args) == (anyio.sleep, (60.0,))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_which_key_is_missing(tmp_path: Path, kind: str) -> None:
    with pytest.raises(rv.SpecFileError, match=r"children\[0\]\.id: is missing"):
        load(tmp_path, f'[[children]]\nkind = "{kind}"\n')


WRONG = [
    ("intensty = 3", "intensty=3: is not known (did you mean 'intensity'?); there are: auto_shutdown, "),
    ('intensity = "3"', "intensity='3': must be a whole number"),
    ("intensity = -1", "intensity=-1: must be a whole number of restarts, 0 or more"),
    ("[run]\nlocl = true", "run.locl=True: is not known (did you mean 'local'?)"),
    ("[run]\nlocal = 1", "run.local=1: must be true or false"),
    ("run = 3", "run=3: must be a table"),
    ("[[child]]", "child=[{}]: is not known (did you mean 'children'?)"),
    ("children = 3", "children=3: must be an array of tables: [[children]]"),
    ("children = [3]", "children[0]=3: must be a table"),
    ('[[children]]\nid = "a"', "children[0].kind: is missing; it must be one of actor, "),
    ('[[children]]\nkind = "enginepool"', "kind='enginepool': is not known (did you mean 'engine_pool'?)"),
    ("[[children]]\nkind = 3", "children[0].kind=3: is not known"),
    (POOL + "siz = 2", "children[0].siz=2: is not known (did you mean 'size'?)"),
    (POOL + 'size = "two"', "children[0].size='two': must be a whole number"),
    (POOL + "size = true", "children[0].size=True: must be a whole number"),
    (POOL + "size = 0", "children[0].size=0: must be a whole number of engines, 1 or more"),
    (POOL + 'shutdown = "never"', "shutdown='never': must be 'infinity' or 'brutal_kill' or a number"),
    (POOL + "backoff = { maximum = -1 }", "children[0].backoff.maximum=-1: must be a number of seconds"),
    (POOL + "backoff = { maxmum = 1 }", "backoff.maxmum=1: is not known (did you mean 'maximum'?)"),
    (POOL + 'backoff = { jitter = "ful" }', "backoff.jitter='ful': must be one of 'none', 'full', "),
    (POOL + 'restart = "transien"', "children[0].restart='transien': must be one of 'permanent', "),
    (POOL + "resources = { slot = 'x' }", "children[0].resources.slot='x': must be a number"),
    (POOL + "placement = {}", "children[0].placement={}: must say bundles"),
    (POOL + "placement = { bundles = [3] }", "children[0].placement.bundles[0]=3: must be a table"),
    (POOL + "scheduling = 3", "children[0].scheduling=3: must be a text or a table (node_id, soft)"),
    (POOL + POOL, "children[1].id='llm': is used twice"),
    (COROUTINE, "children[0].function: is missing; a child of kind 'coroutine' needs it"),
    (COROUTINE + 'function = "anyio"', "children[0].function='anyio': must be 'module:name'"),
    (COROUTINE + 'function = "anyio:slep"', "there is no 'slep' in it (did you mean 'sleep'?)"),
    (COROUTINE + 'function = "nomodule:x"', "cannot be imported: ModuleNotFoundError: No module"),
    (COROUTINE + 'function = "broken_module:x"', "cannot be imported: ZeroDivisionError"),
    (COROUTINE + 'function = "pathlib:__doc__"', "function='pathlib:__doc__': must be an async function"),
    (ACTOR + 'class = "anyio:sleep"', "children[0].class='anyio:sleep': must be a plain class"),
    (ACTOR + 'cls = "a:b"', "children[0].cls='a:b': is not known (did you mean 'class'?)"),
    (SUPERVISOR + "child = []", "children[0].child=[]: is not known (did you mean 'children'?)"),
    (SUPERVISOR + 'strategy = "quorun"', "children[0].strategy='quorun': is neither one of OTP's nor "),
    (SUPERVISOR + "[[children.children]]\nkind = 3", "children[0].children[0].kind=3: is not known"),
    ("x = = 3", "is not TOML: "),
]  # fmt: skip


def test_a_group_takes_what_a_pool_takes_but_for_what_it_settles_itself(tmp_path: Path) -> None:
    group = '[[children]]\nkind = "engine_group"\nid = "llm"\nengine = "sim"\nengine_args = {}\nranks = 2\n'
    made = load(tmp_path, group + "rank_args = [{seed = 1}, {}]\nrecoveries = 1\n").spec.children[0].start
    assert isinstance(made, EnginePoolSpec)
    assert made.recover_as_group
    assert [child.recoveries for child in made.children] == [1, 1]
    assert made.children[0].start == EngineStart(engine="sim", arguments={"seed": 1})
    with pytest.raises(rv.SpecFileError, match=r"children\[0\].standby"):
        load(tmp_path, group + "standby = 1\n")


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_what_cannot_work_is_one_error_with_file_key_and_value(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    with pytest.raises(rv.SpecFileError) as raised:
        load(tmp_path, text)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'tree.toml'}: ")
    assert words in message
    assert raised.value.file == str(tmp_path / "tree.toml")
    assert isinstance(raised.value, rv.SpecError)


def test_a_long_value_is_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(rv.SpecFileError) as raised:
        load(tmp_path, f'intensity = "{"x" * 5000}"')
    assert len(str(raised.value)) < 400
    assert raised.value.value == "x" * 5000


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeffintensity = 3\n").spec.intensity == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("raise SystemExit\n", "SystemExit: "),
        ("class PanicException(BaseException): ...\nraise PanicException('oh')\n", "PanicException: oh"),
    ],
)
def test_a_module_that_ends_the_program_on_import_is_one_error(
    tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "ending_module.py").write_text(source)
    with pytest.raises(rv.SpecFileError) as raised:
        load(tmp_path, COROUTINE + 'function = "ending_module:x"')
    assert f"children[0].function='ending_module:x': cannot be imported: {words}" in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'tree.toml'}: ")


def test_ctrl_c_while_a_module_is_imported_remains_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "interrupted_module.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, COROUTINE + 'function = "interrupted_module:x"')


def deep(levels: int) -> str:
    lines = []
    for level in range(1, levels):
        lines += [f"[[{'.'.join(['children'] * level)}]]", 'kind = "supervisor"', f'id = "s{level}"']
    lines += [f"[[{'.'.join(['children'] * levels)}]]", 'kind = "coroutine"', 'id = "idler"']
    return "\n".join([*lines, 'function = "anyio:sleep_forever"'])


@pytest.mark.parametrize("levels", [LEVELS_MAX + 1, 300, 2000])
def test_a_tree_that_is_too_deep_is_one_error(tmp_path: Path, levels: int) -> None:
    with pytest.raises(rv.SpecFileError, match=f"must have at most {LEVELS_MAX} levels of supervisors"):
        load(tmp_path, deep(levels))


def test_values_that_are_nested_too_deeply_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(rv.SpecFileError, match="nested too deeply"):
        load(tmp_path, f"x = {'[' * 2000}{']' * 2000}")


async def test_the_deepest_tree_that_is_accepted_works(tmp_path: Path) -> None:
    spec = load(tmp_path, deep(LEVELS_MAX)).spec
    socket = tmp_path / "control" / "a.sock"
    async with rv.Supervisor(spec, local=True, handle_signals=False, control=socket) as sup:
        idler = "/".join([*(f"s{level}" for level in range(1, LEVELS_MAX)), "idler"])
        assert sup.status(idler).leaf == "SERVING"
        assert f'child="{idler}"' in sup.metrics()
        answer = await anyio.to_thread.run_sync(ControlClient(socket).get, "/v1/status")
        tree = node_from(answer["tree"])
        for form in tree_formats():
            assert "idler" in render_tree(tree.tree(), form)
            assert "idler" in render_tree(tree_of(spec, "tree"), form)
        await sup.restart("s1")
        assert "\n".join(tree_lines(answer["tree"])).count("idler") == 1
