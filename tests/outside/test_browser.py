"""The live page in a real Chromium: its content, its buttons, and its robustness.

``make test-web`` runs it, and finds pictures of it in ``build/web``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
import pytest_asyncio
from playwright.async_api import async_playwright, expect

import rayvisor as rv
from tests.edges.web.browser import Browser, idle, tree
from tools.web_tests import ROOT, chromium

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURES = ROOT / "build" / "web"
SECONDS = 60.0
TOLD: list[str] = []
"""Errors reported by pages."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=SECONDS * 1000)
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    async with async_playwright() as driver:
        opened = await driver.chromium.launch(executable_path=chromium(), args=[*sandbox, "--disable-gpu"])
        yield opened
        await opened.close()


@asynccontextmanager
async def page_at(browser: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    """Yield a page that may not report any error unless the test expects it."""
    TOLD.clear()
    size = {"width": 1280, "height": 900}
    context = await browser.new_context(**{"viewport": size, "reduced_motion": "reduce", **options})
    context.set_default_timeout(SECONDS * 1000)
    try:
        page = await context.new_page()
        page.on("pageerror", lambda error: TOLD.append(str(error)))
        page.on("console", lambda said: TOLD.append(said.text) if said.type in {"error", "warning"} else None)
        await page.goto(url)
        yield page
    finally:
        await context.close()


def url_of(reader: Browser, token: str | None = None) -> str:
    return f"http://{reader.host}:{reader.port}/#{reader.token if token is None else token}"


def row(page: Any, name: str) -> Any:
    return page.locator("#rows tr", has=page.get_by_role("button", name=name, exact=True))


async def picture(page: Any, name: str) -> None:
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@asynccontextmanager
async def pool() -> AsyncIterator[tuple[rv.Supervisor, Browser]]:
    """Run two simulated engines with continuous requests, and a supervisor beside them."""
    arguments = {"tokens_per_second": 60.0}
    engines = rv.engine_pool("llm", engine="sim", size=2, engine_args=arguments, start_timeout=120.0)
    side = rv.subtree("side", rv.SupervisorSpec(children=[rv.coroutine("checkpoints", idle)]))
    async with tree(engines, side) as (sup, reader), anyio.create_task_group() as tasks:

        async def ask() -> None:
            while True:
                await sup["llm"].generate_many(["Once upon a time"] * 3, {"max_tokens": 120})

        tasks.start_soon(ask)
        yield sup, reader
        tasks.cancel_scope.cancel()


async def test_a_fault_is_shown_with_cause_decision_and_recovery_and_the_chart_moves(browser: Any) -> None:
    async with pool() as (sup, reader), page_at(browser, url_of(reader)) as page:
        await expect(row(page, "1")).to_contain_text("SERVING")
        await page.get_by_role("button", name="1", exact=True).click()
        await expect(page.locator("#chart rect.live")).to_have_count(1)
        await expect(page.locator("#chart g[data-leaf=SERVING] rect.card")).to_have_class("card live")
        await expect(page.locator("#figures dd[data-key=rate]")).not_to_have_text("0")
        victim = next(process for _, process in sup.processes("llm/1") if "EngineCore" in process.name)
        os.kill(victim.pid, signal.SIGKILL)
        await expect(page.locator("#chart g[data-leaf=SERVING] rect.card")).not_to_have_class("card live")
        fault = page.locator("#faults li").first
        await expect(fault).to_contain_text(f"EngineCore (pid {victim.pid}) was ended by SIGKILL")
        await expect(fault).to_contain_text(
            "decided: restart immediately (one_for_one; 1 of 5 restarts used)"
        )
        await expect(fault).to_contain_text("recovered after")
        await expect(page.locator("#chart g[data-leaf=SERVING] rect.card")).to_have_class("card live")
        await expect(page.locator("#chart g[data-leaf=STARTING] rect.card")).to_have_class("card passed")
        await expect(row(page, "llm")).to_contain_text("1 of 5")
        await page.get_by_text("All transitions, with counts").click()
        await expect(
            page.locator("#counts li").filter(has_text="SERVING to STOPPING (fault)")
        ).to_contain_text("once")
        await page.get_by_text("All transitions, with counts").click()
        await expect(row(page, "1").locator("td").nth(2)).to_have_text("2")
        await expect(page.locator("#figures dd[data-key=failed]")).to_have_text("0")
        await picture(page, "fault")
        await page.emulate_media(color_scheme="dark")
        await picture(page, "fault-dark")
        for width in (1180, 920, 390):
            await page.set_viewport_size({"width": width, "height": 844})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            tops = await page.locator("main > section").evaluate_all(
                "all => all.map(each => each.getBoundingClientRect().top)"
            )
            assert tops == sorted(tops), (width, tops)  # reading order and tab order are the visual order
            heights = await page.locator("#rows .name").evaluate_all(
                "all => all.map(each => each.offsetHeight)"
            )
            assert max(heights) < 40, (width, heights)  # no name is wrapped letter by letter
            hidden = await page.locator(".tree").evaluate("tree => tree.scrollWidth - tree.clientWidth")
            assert hidden == 0, (width, hidden)
        await picture(page, "fault-phone")
        assert TOLD == []


async def test_buttons_pause_resume_and_restart(browser: Any) -> None:
    children = [rv.coroutine(name, idle) for name in ("a", "b")]
    async with tree(*children) as (sup, reader), page_at(browser, url_of(reader)) as page:
        await page.get_by_role("button", name="b", exact=True).click()
        child = page.get_by_role("group", name="This child")
        await child.get_by_role("button", name="Pause").click()
        await expect(row(page, "b")).to_contain_text("REQUESTED")
        assert (sup.status("a").state, sup.status("b").state) == ("ALIVE", "PAUSED")
        await expect(page.locator("#answer")).to_have_text("pause b: done")
        await child.get_by_role("button", name="Resume").click()
        await expect(row(page, "b")).to_contain_text("SERVING")
        await child.get_by_role("button", name="Restart").click()
        assert sup.status("b").incarnation == 1
        await child.get_by_role("button", name="Really restart?").click()
        await expect(row(page, "b").locator("td").nth(2)).to_have_text("2")
        await expect(page.locator("#steps")).to_contain_text("STOPPING")
        await page.get_by_role("button", name="Pause all").click()
        await expect(row(page, "a")).to_contain_text("REQUESTED")
        assert TOLD == []


@pytest.mark.parametrize("token", ["", "not-the-one"])
async def test_without_the_runs_token_nothing_is_shown_and_nothing_is_done(browser: Any, token: str) -> None:
    async with (
        tree(rv.coroutine("secret-name", idle)) as (sup, reader),
        page_at(browser, url_of(reader, token)) as page,
    ):
        await expect(page.locator("#link")).to_have_text("refused")
        await expect(page.locator("#notice")).to_contain_text(
            "open the URL exactly as printed" if not token else "Refused"
        )
        await page.get_by_role("button", name="Pause all").click()
        await expect(page.locator("#answer")).to_contain_text("must be the part after #")
        assert sup.status("secret-name").state == "ALIVE"
        assert "secret-name" not in await page.content()


class Cable:
    """A proxy to the page that can be cut: open streams end, new ones are refused."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._plugged = True
        self._scopes: set[anyio.CancelScope] = set()
        self.port = 0

    def cut(self) -> None:
        self._plugged = False
        for scope in list(self._scopes):
            scope.cancel()

    def repair(self) -> None:
        self._plugged = True

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - anyio's extra(), not Django's
        task_status.started()
        async with listener:
            await listener.serve(self._carry)

    async def _carry(self, near: anyio.abc.SocketStream) -> None:
        async with near:
            if not self._plugged:
                return
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    async with (
                        await anyio.connect_tcp("127.0.0.1", self._to) as far,
                        anyio.create_task_group() as both,
                    ):
                        both.start_soon(self._copy, near, far)
                        await self._copy(far, near)
                        both.cancel_scope.cancel()
                finally:
                    self._scopes.discard(scope)

    @staticmethod
    async def _copy(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream) -> None:
        try:
            async for part in source:
                await sink.send(part)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return


async def test_what_was_missed_is_made_up_for_after_the_connection_broke(browser: Any) -> None:
    children = [rv.coroutine(name, idle) for name in ("a", "b")]
    async with tree(*children) as (sup, reader), anyio.create_task_group() as tasks:
        cable = Cable(reader.port)
        await tasks.start(cable.run)
        async with page_at(browser, f"http://127.0.0.1:{cable.port}/#{reader.token}") as page:
            await expect(page.locator("#link")).to_have_text("live")
            cable.cut()
            await expect(page.locator("#link")).to_have_text("connection lost, reconnecting")
            await sup.restart("a")
            await sup.start_child(rv.coroutine("c", idle))
            await sup.terminate_child("b")
            await sup.delete_child("b")
            await picture(page, "lost")
            cable.repair()
            await expect(page.locator("#link")).to_have_text("live")
            await expect(page.locator("#rows tr")).to_have_count(2)
            await expect(row(page, "a").locator("td").nth(2)).to_have_text("2")
            await expect(row(page, "c")).to_contain_text("SERVING")
        tasks.cancel_scope.cancel()


async def test_everything_can_be_reached_and_done_by_keyboard(browser: Any) -> None:
    children = [rv.coroutine(name, idle) for name in ("a", "b", "c")]
    async with tree(*children) as (sup, reader), page_at(browser, url_of(reader)) as page:
        await expect(row(page, "c")).to_contain_text("SERVING")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the selected child")).to_be_focused()
        for _ in range(3):  # past both buttons for the whole tree, to the selected row
            await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="a", exact=True)).to_be_focused()
        for key, name in (
            ("ArrowDown", "b"),
            ("End", "c"),
            ("ArrowUp", "b"),
            ("Home", "a"),
            ("ArrowDown", "b"),
        ):
            await page.keyboard.press(key)
            await expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
            await expect(page.locator("#child-title")).to_have_text(name)
        await page.keyboard.press("Tab")
        await expect(
            page.get_by_role("group", name="This child").get_by_role("button", name="Pause")
        ).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(row(page, "b")).to_contain_text("REQUESTED")
        assert sup.status("b").state == "PAUSED"


NAMES = {
    "heading": ("rayvisor", "Tree", "Faults", "a"),
    "region": ("Tree", "Faults", "a", "Chart of a: now in ALIVE.SERVING"),
    "table": ("Children in start order; arrow keys move, Enter selects",),
    "columnheader": ("Child", "State", "Restarts"),
    "group": ("The whole tree", "This child"),
    "list": ("Last transitions",),
}


async def test_a_screen_reader_finds_names_headings_and_what_changes(browser: Any) -> None:
    async with tree(rv.coroutine("a", idle)) as (_, reader), page_at(browser, url_of(reader)) as page:
        await expect(row(page, "a")).to_contain_text("SERVING")
        for role, names in NAMES.items():
            for name in names:
                await expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)
        buttons = page.get_by_role("button")
        assert all([text.strip() for text in await buttons.all_inner_texts()])  # noqa: C419 - an async comprehension
        assert await page.locator("#link").get_attribute("role") == "status"
        assert await page.locator("#faults").get_attribute("aria-live") == "polite"
        assert await page.locator("html").get_attribute("lang") == "en"
        await expect(page.get_by_role("button", name="a", exact=True)).to_have_attribute(
            "aria-current", "true"
        )


CONTRAST = """() => {
  const paint = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255).map((part) =>
    part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4).reduce((sum, part, at) =>
    sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (each) => { for (; each; each = each.parentElement) {
    const found = paint(getComputedStyle(each).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found; } return [255, 255, 255]; };
  const texts = "button, .badge, dt, dd, th, td, h1, h2, h3, small, .kind, .more, .root, time, .link";
  return [...document.querySelectorAll(texts)]
    .filter((each) => each.checkVisibility() && each.textContent.trim() && !each.disabled)
    .map((each) => { const [one, other] = [light(paint(getComputedStyle(each).color)), light(behind(each))];
      const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      return [ratio, each.className || each.tagName, each.textContent.slice(0, 30)]; })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_can_be_read_in_light_and_in_dark(browser: Any, scheme: str) -> None:
    backoff = rv.Backoff(initial=40.0, maximum=40.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    gate = anyio.Event()

    async def fail() -> None:
        await gate.wait()
        raise RuntimeError("it cannot work")

    children = [
        rv.coroutine("a", idle),
        rv.coroutine("b", idle),
        rv.coroutine("failing", fail, backoff=backoff),
    ]
    async with (
        tree(*children, intensity=5, period=9000.0) as (sup, reader),
        page_at(browser, url_of(reader), color_scheme=scheme) as page,
    ):
        gate.set()
        await sup.pause("b")
        await expect(row(page, "failing")).to_contain_text("BACKOFF")
        await expect(row(page, "failing")).to_contain_text("in 3")
        await expect(page.locator("#faults")).to_contain_text("RuntimeError: it cannot work")
        await expect(row(page, "b")).to_contain_text("REQUESTED")
        assert await page.evaluate(CONTRAST) == []
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(1, 4, 9)"
        assert dark is (scheme == "dark")
        await picture(page, f"states-{scheme}")


async def test_two_hundred_children_are_all_there_and_move(browser: Any) -> None:
    children = [rv.coroutine(f"child-{number:03}", idle) for number in range(200)]
    async with tree(*children) as (sup, reader), page_at(browser, url_of(reader)) as page:
        await expect(page.locator("#rows tr")).to_have_count(200)
        await sup.restart("child-150")
        await expect(row(page, "child-150").locator("td").nth(2)).to_have_text("2")
        await sup.terminate_child("child-000")
        await expect(row(page, "child-000")).to_contain_text("STOPPED")
        await picture(page, "two-hundred")


async def test_the_end_of_the_tree_is_said_and_the_last_state_stays(browser: Any) -> None:
    async with tree(rv.coroutine("a", idle)) as (sup, reader), page_at(browser, url_of(reader)) as page:
        await expect(row(page, "a")).to_contain_text("SERVING")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sup.stop)
            await expect(page.locator("#tree-state")).to_have_text("ENDED")
            await expect(page.get_by_role("button", name="Pause all")).to_be_disabled()
            await expect(page.locator("#rows tr")).to_have_count(1)
