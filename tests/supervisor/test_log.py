"""Logs: quiet by default, and the user's as soon as structlog is configured."""

from __future__ import annotations

import logging

import pytest
import structlog
from structlog.testing import capture_logs

from rayvisor._log import get_logger


def test_without_a_configuration_records_go_to_logging_and_only_warnings_show(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    log = get_logger("rayvisor.test")
    log.info("child.changed", child="a")
    log.warning("fault", child="a", root="ValueError: no")
    assert [(x.name, x.levelname, x.message) for x in caplog.records] == [
        ("rayvisor.test", "WARNING", "event='fault' child='a' root='ValueError: no' level='warning'")
    ]
    assert capfd.readouterr().out == ""


def test_the_level_is_loggings(caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("rayvisor.test")
    with caplog.at_level(logging.INFO, logger="rayvisor"):
        log.info("child.changed", child="a")
    assert [x.levelname for x in caplog.records] == ["INFO"]


def test_an_exception_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        int("boom")
    except ValueError:
        get_logger("rayvisor.test").exception("start.broke", child="a")
    assert "in test_an_exception_is_logged_with_its_traceback" in caplog.text
    assert "ValueError: invalid literal" in caplog.text


def test_the_users_configuration_holds_also_for_loggers_made_before_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = get_logger("rayvisor.test")
    lines: list[object] = []

    def keep(_: object, method: str, event: structlog.typing.EventDict) -> str:
        lines.append((method, dict(event)))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    log.info("child.changed", child="a")
    assert lines == [("info", {"event": "child.changed", "child": "a"})]
    assert caplog.records == []


def test_structlogs_capture_sees_everything() -> None:
    log = get_logger("rayvisor.test")
    with capture_logs() as logs:
        log.info("child.changed", child="a")
        log.bind(child="b").warning("fault")
    assert logs == [
        {"event": "child.changed", "child": "a", "log_level": "info"},
        {"event": "fault", "child": "b", "log_level": "warning"},
    ]


def test_structlogs_configuration_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = structlog.get_config()
    get_logger("rayvisor.test").warning("fault")
    assert not structlog.is_configured()
    assert structlog.get_config() == before
    assert len(caplog.records) == 1
