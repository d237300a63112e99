"""Access needs the run's token, the page's own origin, and a host name of the server."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

import rayvisor as rv
from rayvisor._edges.web.auth import Authenticator
from tests.edges.web.browser import idle, tree

OURS = {"host": "127.0.0.1:8080", "origin": "http://127.0.0.1:8080", "x-rayvisor-token": "s3cret"}


def refused(authenticator: Authenticator, headers: dict[str, str], *, acts: bool = True) -> str:
    from rayvisor._edges.http.routes import RefusalError

    try:
        authenticator.authenticate(headers, acts=acts)
    except RefusalError as refusal:
        return str(refusal.answer.body["error"]["type"])
    return ""


@pytest.mark.parametrize(
    ("change", "reads", "acts"),
    [
        ({}, "", ""),
        ({"host": "localhost:9"}, "ForeignOrigin", "ForeignOrigin"),
        ({"host": "localhost:9", "origin": "http://localhost:9"}, "", ""),
        ({"host": "[::1]:9", "origin": "http://[::1]:9"}, "", ""),
        ({"host": "node7:9", "origin": "http://node7:9"}, "", ""),
        ({"origin": "https://127.0.0.1:8080"}, "", ""),
        (
            {"host": "rebound.example:8080", "origin": "http://rebound.example:8080"},
            "ForeignHost",
            "ForeignHost",
        ),
        ({"host": "127.0.0.1.example:8080"}, "ForeignHost", "ForeignHost"),
        ({"host": ""}, "ForeignHost", "ForeignHost"),
        ({"host": "[::1:9"}, "ForeignHost", "ForeignHost"),
        ({"origin": "http://evil.example"}, "ForeignOrigin", "ForeignOrigin"),
        ({"origin": "null"}, "ForeignOrigin", "ForeignOrigin"),
        ({"origin": "http://127.0.0.1:8081"}, "ForeignOrigin", "ForeignOrigin"),
        ({"origin": None}, "", "ForeignOrigin"),
        ({"sec-fetch-site": "same-origin"}, "", ""),
        ({"sec-fetch-site": "cross-site"}, "ForeignOrigin", "ForeignOrigin"),
        ({"sec-fetch-site": "same-site"}, "ForeignOrigin", "ForeignOrigin"),
        ({"x-rayvisor-token": None}, "WrongToken", "WrongToken"),
        ({"x-rayvisor-token": "s3cre"}, "WrongToken", "WrongToken"),
        ({"x-rayvisor-token": "s3cret, s3cret"}, "WrongToken", "WrongToken"),
        ({"x-rayvisor-token": "schlüssel"}, "WrongToken", "WrongToken"),
    ],
)
def test_who_may_read_and_who_may_act(change: dict[str, str | None], reads: str, acts: str) -> None:
    headers = {name: value for name, value in {**OURS, **change}.items() if value is not None}
    authenticator = Authenticator("s3cret", "node7")
    assert refused(authenticator, headers, acts=False) == reads
    assert refused(authenticator, headers, acts=True) == acts


async def test_nothing_of_the_tree_goes_out_and_nothing_is_done_without_the_token() -> None:
    async with tree(rv.coroutine("secret-name", idle)) as (sup, browser):
        stranger = {name: value for name, value in browser.own.items() if name != "X-Rayvisor-Token"}
        for target in ("/", "/page.js", "/page.css", "/chart.css", "/chart/engine.svg", "/icon.svg"):
            status, headers, content = await browser.ask(target, stranger)
            assert status == 200
            assert b"secret-name" not in content
            assert browser.token.encode() not in content
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "access-control-allow-origin" not in headers
        assert (await browser.ask("/events", stranger))[0] == 401
        for verb in ("/pause", "/resume", "/restart", "/v1/restart"):
            body = {"path": "secret-name"}
            assert (await browser.ask(verb, stranger, method="POST", body=body))[0] == 401
            rebound = {**browser.own, "Host": "rebound.example"}
            assert (await browser.ask(verb, rebound, method="POST", body=body))[0] == 421
            elsewhere = {**browser.own, "Origin": "http://evil.example"}
            assert (await browser.ask(verb, elsewhere, method="POST", body=body))[0] == 403
        assert (await browser.ask("/", {**stranger, "Host": "rebound.example"}))[0] == 421
        node = sup.status("secret-name")
        assert (node.state, node.incarnation) == ("ALIVE", 1)


async def test_only_pause_resume_and_restart_are_there() -> None:
    async with tree(rv.coroutine("a", idle)) as (sup, browser):
        for route in ("/stop", "/apply", "/fault_tolerance/apply", "/events", "/"):
            assert (await browser.ask(route, method="POST", body={}))[0] == 405
        for route in (
            "/status",
            "/v1/status",
            "/../page.py",
            "/chart/nothing.svg",
            "/chart/../page.js",
            "//x",
        ):
            assert (await browser.ask(route))[0] == 404
        assert (await browser.ask("/pause"))[0] == 405
        assert sup.status("a").state == "ALIVE"


async def test_a_target_that_is_no_url_is_answered_and_a_head_request_gets_no_body() -> None:
    async with tree(rv.coroutine("a", idle)) as (_, browser):
        for method in ("GET", "HEAD", "POST"):
            assert (await browser.ask("//[", method=method))[0] == 400
        for target, expected in (("/", 200), ("/metrics", 200), ("/events", 200), ("/none", 404)):
            status, headers, content = await browser.ask(target, method="HEAD")
            assert (status, content) == (expected, b"")
            assert "content-security-policy" in headers


def test_the_page_loads_nothing_from_elsewhere_and_sets_no_markup_from_data() -> None:
    texts = {
        name: files("rayvisor._edges.web").joinpath(name).read_text()
        for name in ("page.html", "page.css", "page.js")
    }
    for name, text in texts.items():
        assert not re.search(r"https?://|@import|url\(", text), name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", texts["page.js"])
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src=)", texts["page.html"])
