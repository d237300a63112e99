"""Measures charts and the live page: rendering, the delay of a fault's display, a page with many children.

The page is opened in a headless Chromium if Chromium and playwright (``make test-web`` installs it) are
available. Otherwise, or with ``--no-browser``, only its event stream is read, without the browser's figures.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import click
import h11
import psutil

import rayvisor as rv
from benchmarks.figures import Report, Target, announced
from rayvisor import records as r
from statecharts import formats, render, render_tree
from statecharts.lifecycles import ENGINE

__all__ = ["main", "measure"]

RENDER_MS = 20.0
SHOWN_MS = 300.0
PAGE_PERCENT = 30.0
CHILDREN = 200
CHANGES_A_SECOND = 10
WIDE = {"width": 1280, "height": 900}

# Runs in the page and returns when the decision about a child's fault is on the screen, in seconds since the
# epoch. A MutationObserver sees the change; it is painted one frame later.
_SEEN = """(child) => new Promise((seen) => {
  const there = () => [...document.querySelectorAll("#faults li")].some((line) =>
    line.textContent.includes(` ${child} #`) && line.textContent.includes("decided"));
  const look = () => { if (there()) { observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => seen(Date.now() / 1000))); } };
  const observer = new MutationObserver(look);
  observer.observe(document.getElementById("faults"), { childList: true, subtree: true });
  look();
})"""


def _render(report: Report, runs: int) -> None:
    """Measure the rendering of an engine's chart with highlighted states in each format."""
    worst = 0.0
    for form in formats():
        values = []
        for _ in range(runs):
            began = time.perf_counter()
            render(ENGINE, form, at="PAUSED.STALE {STALE}", path=["STARTING", "SERVING"])
            values.append((time.perf_counter() - began) * 1000.0)
        row = report.add(f"chart of an engine as {form}", values, "ms")
        worst = max(worst, row.median if row else 0.0)
    report.targets.append(Target("a chart is rendered, slowest format, ms", worst, RENDER_MS))


def _browser() -> str | None:
    """Return the path of a Chromium that playwright can drive."""
    if importlib.util.find_spec("playwright") is None:
        return None
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)


@dataclass
class _Page:
    """A page in a browser."""

    page: Any

    async def seen(self, child: str) -> float:
        """Wait until the decision about a child's fault is on the screen; return the time."""
        return float(await self.page.evaluate(_SEEN, child))

    @staticmethod
    def seconds(*, renderer: bool) -> float:
        """Return the CPU time of the browser's processes so far, or of its renderers only."""
        total = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                command = process.cmdline()
                is_renderer = "--type=renderer" in command
                if any("chrom" in part for part in command[:1]) and (is_renderer or not renderer):
                    spent = process.cpu_times()
                    total += spent.user + spent.system
            except psutil.Error:
                continue
        return total


@asynccontextmanager
async def _opened(path: str, url: str) -> AsyncIterator[_Page]:
    from playwright.async_api import async_playwright

    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=[*sandbox, "--disable-gpu"])
        page = await browser.new_page(viewport=WIDE)
        await page.goto(url)
        await page.wait_for_selector("#link:text-is('live')")
        yield _Page(page)
        await browser.close()


async def _streamed_at(host: str, port: int, token: str, child: str) -> float:
    """Wait until the event stream has the decision about a child's fault; return the time."""
    async with await anyio.connect_tcp(host, port) as stream:
        http = h11.Connection(h11.CLIENT)
        headers = [("Host", f"{host}:{port}"), ("X-Rayvisor-Token", token)]
        request = h11.Request(method="GET", target="/events", headers=headers)
        await stream.send((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        text = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive())
            elif isinstance(event, h11.Data):
                text += event.data
                *parts, text = text.split(b"\n\n")
                if any(f'"child":"{child}"'.encode() in part and b'"decision":{' in part for part in parts):
                    return time.time()


async def _faults(report: Report, runs: int, browser: str | None) -> None:
    """Measure the time from the decision about a fault until it is displayed."""
    gates = [anyio.Event() for _ in range(runs)]

    async def fail(number: int) -> None:
        await gates[number].wait()
        raise RuntimeError("for the benchmark")

    backoff = rv.Backoff(initial=3600.0, maximum=3600.0, jitter=rv.Jitter.NONE, first_delay_zero=False)
    children = [rv.coroutine(f"child-{n}", fail, args=(n,), backoff=backoff) for n in range(runs)]
    spec = rv.SupervisorSpec(intensity=runs, period=1e9, children=children)
    supervisor = rv.Supervisor(spec, local=True, handle_signals=False)
    watch = supervisor.watch()
    wall = time.time() - time.monotonic()
    told: list[float] = []
    shown: list[float] = []
    async with supervisor as sup, AsyncExitStack() as stack:
        page = await sup.serve_web()
        token = page.url.partition("#")[2]
        opened = await stack.enter_async_context(_opened(browser, page.url)) if browser else None
        for number, gate in enumerate(gates):
            child = f"child-{number}"
            times: dict[str, float] = {}

            async def stream(child: str = child, times: dict[str, float] = times) -> None:
                times["told"] = await _streamed_at(page.host, page.port, token, child)

            async def screen(child: str = child, times: dict[str, float] = times) -> None:
                if opened is not None:
                    times["shown"] = await opened.seen(child)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream)
                tasks.start_soon(screen)
                await anyio.sleep(0.35)  # both are reading by then, and no earlier message is pending
                gate.set()
            decided = await _decided(watch, child) + wall
            told.append(announced("told", (times["told"] - decided) * 1000.0, "ms"))
            if "shown" in times:
                shown.append(announced("shown", (times["shown"] - decided) * 1000.0, "ms"))
    report.add("a fault: from the decision until the event stream tells", told, "ms")
    report.add("a fault: from the decision until the page has drawn it", shown, "ms")
    if shown:
        report.targets.append(
            Target("the page shows a fault after the decision, worst, ms", max(shown), SHOWN_MS)
        )


async def _decided(watch: AsyncIterator[r.Record], child: str) -> float:
    async for record in watch:
        if isinstance(record, r.DecisionMade) and record.child == child:
            return record.at
    raise RuntimeError("the tree has ended")


async def _idle() -> None:
    await anyio.sleep_forever()


async def _many(report: Report, seconds: float, browser: str | None) -> None:
    """Measure a page of many children, some of which change constantly."""
    children = [rv.coroutine(f"child-{number:03}", _idle) for number in range(CHILDREN)]
    async with (
        rv.Supervisor(rv.SupervisorSpec(children=children), local=True, handle_signals=False) as sup,
        AsyncExitStack() as stack,
    ):
        page = await sup.serve_web()
        opened = await stack.enter_async_context(_opened(browser, page.url)) if browser else None
        await anyio.sleep(2.0)  # everything is drawn by then
        quiet = await _shares(opened, seconds)
        paused = 0
        async with anyio.create_task_group() as tasks:

            async def change() -> None:
                nonlocal paused
                while True:
                    child = f"child-{paused // 2 % CHILDREN:03}"
                    await (sup.resume(child) if paused % 2 else sup.pause(child, timeout=0.0))
                    paused += 1
                    await anyio.sleep(1.0 / CHANGES_A_SECOND)

            tasks.start_soon(change)
            busy = await _shares(opened, seconds)
            tasks.cancel_scope.cancel()
        report.notes["changes a second"] = round(paused / seconds, 1)
        root = sup.status()
        values = []
        for _ in range(5):
            began = time.perf_counter()
            render_tree(root.tree(), "svg")
            values.append((time.perf_counter() - began) * 1000.0)
        report.add(f"the tree of {CHILDREN} children as svg", values, "ms")
    for name, (idle, at_work) in {key: (quiet[key], busy[key]) for key in busy}.items():
        report.add(f"{name}, {CHILDREN} children, nothing happens", [idle], "% of a core")
        report.add(f"{name}, {CHILDREN} children, {CHANGES_A_SECOND} changes/s", [at_work], "% of a core")
    if "the page" in busy:
        what = f"the page with {CHILDREN} children at {CHANGES_A_SECOND} changes/s, % of a core"
        report.targets.append(Target(what, busy["the page"], PAGE_PERCENT))


async def _shares(opened: _Page | None, seconds: float) -> dict[str, float]:
    """Measure the share of a core that each part takes."""
    own, began = time.process_time(), time.monotonic()
    page, whole = (opened.seconds(renderer=True), opened.seconds(renderer=False)) if opened else (0.0, 0.0)
    await anyio.sleep(seconds)
    lasted = time.monotonic() - began
    shares = {"the supervisor with its page server": time.process_time() - own}
    if opened is not None:
        shares["the page"] = opened.seconds(renderer=True) - page
        shares["all of the browser"] = opened.seconds(renderer=False) - whole
    return {name: spent / lasted * 100.0 for name, spent in shares.items()}


async def measure(runs: int, seconds: float, browser: str | None) -> Report:
    """Run all measurements."""
    report = Report("web", "no")
    report.notes["browser"] = browser or "none"
    _render(report, 5 * runs)
    await _faults(report, runs, browser)
    await _many(report, seconds, browser)
    return report


@click.command("web", help=__doc__)
@click.option(
    "--runs", type=click.IntRange(1), default=10, show_default=True, help="Faults that are injected."
)
@click.option("--seconds", type=click.FloatRange(1.0), default=10.0, show_default=True, help="Of each load.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in Chromium.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON in the last line.")
def main(runs: int, seconds: float, *, browser: bool, as_json: bool) -> None:
    """Measure and print."""
    logging.disable(logging.WARNING)  # the benchmark's own faults are expected
    report: Report = anyio.run(measure, runs, seconds, _browser() if browser else None)
    report.show(as_json=as_json)
